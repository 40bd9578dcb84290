"""The HTTP API: OpenAI's paths as vLLM serves them, metrics, and the live page."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orcast.serve.bodies import ChatBody, CompletionBody, TokenizeBody, parsed
from orcast.serve.desk import Asked, Desk
from orcast.serve.errors import ApiError, phrased
from orcast.serve.faults import Faults
from orcast.serve.live_engine import LiveEngine
from orcast.serve.live_state import LiveState
from orcast.serve.stream import LINE, Stream
from orcast.serve.texts import chat_ids
from reports.live.page import content_policy
from reports.page.own_names import OwnNames

log = logging.getLogger("orcast.serve")

MOST_BODY_BYTES = 64 * 2**20
BODY_S = 30.0  # for each piece of a body
_METRICS_END = b"# EOF\n"
_PAGE_HEADERS = {
    "Content-Security-Policy": content_policy(),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """All that the paths need."""

    desk: Desk
    faults: Faults
    state: LiveState
    version: str
    page: str
    own_names: OwnNames
    api_keys: tuple[str, ...] = ()


class _Alone:
    """A family of metrics, as what there is to collect."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> list[Metric]:
        return [self._family]


def serving_app(endpoint: Endpoint) -> ASGIApp:
    """The application."""
    engine, desk, faults = endpoint.desk.engine, endpoint.desk, endpoint.faults
    created = int(time.time())

    async def completions(request: Request) -> Any:
        return await _generate(endpoint, request, CompletionBody, desk.completion)

    async def chat(request: Request) -> Any:
        return await _generate(endpoint, request, ChatBody, desk.chat)

    async def models(request: Request) -> Response:
        cards: list[dict[str, Any]] = [
            {
                "id": name, "object": "model", "created": created, "owned_by": "orcast",
                "root": desk.names[0], "parent": None, "max_model_len": desk.max_model_len,
                "permission": [],
            }
            for name in desk.names
        ]  # fmt: skip
        return JSONResponse({"object": "list", "data": cards})

    async def tokenize(request: Request) -> Response:
        body = parsed(TokenizeBody, request.headers.get("content-type", ""), await _body(request))
        desk.check_model(body.model)
        if body.prompt is not None:
            ids = desk.tokens.ids(body.prompt)
            strings = desk.tokens.strings(body.prompt)
        else:
            messages = [(one.role, one.text) for one in body.messages or ()]
            ids, strings = chat_ids(desk.tokens, messages), []
        said = {
            "count": len(ids), "max_model_len": desk.max_model_len, "tokens": ids.tolist(),
            "token_strs": strings if body.return_token_strs and strings else None,
        }  # fmt: skip
        return JSONResponse(said)

    async def health(request: Request) -> Response:
        ready = engine.serves and not faults.loading
        return Response(status_code=200 if ready else 503)

    async def version(request: Request) -> Response:
        return JSONResponse({"version": endpoint.version})

    async def metrics(request: Request) -> Response:
        encoder, content_type = choose_encoder(request.headers.get("accept", ""))
        parts = []
        for family in engine.meters.collect():
            parts.append(encoder(_Alone(family)))
            await asyncio.sleep(0)  # tokens do not wait until all is written down
        ends = parts[-1].endswith(_METRICS_END)  # in OpenMetrics, and each of its parts, too
        text = b"".join([part.removesuffix(_METRICS_END) for part in parts])
        return Response(text + _METRICS_END * ends, headers={"Content-Type": content_type})

    async def page(request: Request) -> Response:
        return HTMLResponse(endpoint.page, headers=_PAGE_HEADERS)

    async def state(request: Request) -> Response:
        return JSONResponse(endpoint.state.shown(since=request.query_params.get("since")))

    async def change(request: Request) -> Response:
        headers = request.headers
        if not endpoint.own_names.addressed(headers.get("host", ""), headers.get("origin")):
            raise phrased(
                403, "Settings are changed by this server's own page alone, at the address that it "
                "listens at.",
            )  # fmt: skip
        if request.headers.get("content-type", "").split(";")[0] != "application/json":
            raise phrased(415, "Settings are JSON.")
        try:
            given = json.loads(await _body(request))
        except ValueError:
            raise phrased(400, "Settings are JSON.") from None
        return JSONResponse(endpoint.state.change(given))

    app = Starlette(
        routes=[
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/health", health),
            Route("/ping", health),
            Route("/version", version),
            Route("/metrics", metrics),
            Route("/", page),
            Route("/live/state", state),
            Route("/live/settings", change, methods=["POST"]),
        ],
        exception_handlers={ApiError: _said, HTTPException: _not_here},
    )
    return _Guarded(app, endpoint.api_keys)


async def _said(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response


async def _not_here(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return phrased(error.status_code, error.detail).response


async def _body(request: Request) -> bytes:
    """All of it. Raises ApiError for one that is too large, or does not come."""
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > MOST_BODY_BYTES:
        raise phrased(413, f"The body may have {MOST_BODY_BYTES} bytes at most.")
    parts: list[bytes] = []
    size = 0
    pieces = request.stream()
    try:
        while True:
            async with asyncio.timeout(BODY_S):
                piece = await anext(pieces, None)
            if piece is None:
                return b"".join(parts)
            size += len(piece)
            if size > MOST_BODY_BYTES:
                raise phrased(413, f"The body may have {MOST_BODY_BYTES} bytes at most.")
            parts.append(piece)
    except TimeoutError:
        raise phrased(408, "The body did not come.") from None
    except ClientDisconnect:
        raise phrased(400, "The client left.") from None


async def _generate(
    endpoint: Endpoint, request: Request, kind: type[Any], ask: Callable[[Any], Asked]
) -> Any:
    data = await _body(request)
    body = parsed(kind, request.headers.get("content-type", ""), data)
    endpoint.faults.strike()
    asked = ask(body)
    engine, line = endpoint.desk.engine, request.scope["extensions"][LINE]
    if engine.cuts and not engine.serves:
        raise phrased(503, "No replica is up.")
    breaks_off = endpoint.faults.breaks_off(sum(one.tokens for one in asked.answer.choices))
    stream = None
    if asked.stream:
        stream = Stream(asked.answer, asked.format, line, breaks_off=breaks_off)
    reached_s = [
        engine.submit(
            prompt, max_tokens=limit, block_hashes=hashes, label=asked.label, came_s=line.came_s
        )
        for prompt, limit, hashes in zip(
            asked.answer.prompts, asked.max_tokens, asked.hashes, strict=True
        )
    ]
    return _Reply(engine, asked, stream, max(reached_s), breaks_off=breaks_off is not None)


class _Reply:
    """An answer, streamed or whole, as an ASGI response; a client that leaves ends it."""

    def __init__(
        self, engine: LiveEngine, asked: Asked, stream: Stream | None, reached_s: float, *,
        breaks_off: bool,
    ) -> None:  # fmt: skip
        """`reached_s`: when an engine has all of its prompts, or has refused them."""
        self._engine, self._asked, self._stream = engine, asked, stream
        self._reached_s, self._breaks_off = reached_s, breaks_off

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watching = asyncio.ensure_future(self._watch(receive))
        try:
            await self._engine.reached(self._reached_s)
            if self._asked.answer.error is not None:
                await self._asked.answer.error.response(scope, receive, send)
            elif self._stream is not None:
                await self._stream.run(send)
            else:
                await self._whole(scope, receive, send)
        except OSError:
            pass  # the client is gone
        finally:
            watching.cancel()
            if not self._asked.answer.over:
                self._engine.cancel(self._asked.answer)

    async def _watch(self, receive: Receive) -> None:
        """Cancel what is asked for once the client is gone."""
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self._asked.answer.over:
            self._engine.cancel(self._asked.answer)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._asked.answer
        await answer.end()
        if answer.dropped or self._breaks_off:
            return
        if answer.error is not None:
            await answer.error.response(scope, receive, send)
        else:
            await JSONResponse(self._asked.format.whole(answer))(scope, receive, send)


class _Guarded:
    """Asks for the API key where there is one, and keeps faults of the server to itself."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self._app = app
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        asks = path.startswith("/v1") or path == "/live/settings"
        if scope["type"] == "http" and self._keys and asks and scope["method"] != "OPTIONS":
            headers = dict(scope["headers"])
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            digest = hashlib.sha256(key).digest()
            known = [hmac.compare_digest(digest, one) for one in self._keys]
            if scheme.lower() != b"bearer" or not any(known):
                refusal = JSONResponse({"error": "Unauthorized"}, status_code=401)
                await refusal(scope, receive, send)
                return
        await self._run(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            # Streams go past the wrapper: every token would pay for it.
            await self._app(scope, receive, send if scope["path"].startswith("/v1/") else sent)
        except OSError:
            pass  # the client is gone
        except Exception:
            log.exception("%s %s failed", scope.get("method"), scope.get("path"))
            if not begun:
                with suppress(Exception):
                    await ApiError(
                        "Internal server error", kind="InternalServerError", status=500
                    ).response(scope, receive, send)
