"""The server: uvicorn, with an end to the patience for those who connect and ask for nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import socket
import time
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from orcast.serve.live_state import LiveState
from orcast.serve.stream import LINE, Line

_HEADERS_S = 10.0  # for all headers of a request to come
_KEEP_ALIVE_S = 30
_SHUTDOWN_S = 2


class Protocol(HttpToolsProtocol):  # type: ignore[misc,unused-ignore]
    """uvicorn's, but a connection has only so long to ask for something, and carries streams."""

    _impatient: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._line = Line(transport)
        self._await_headers()

    def _await_headers(self) -> None:
        self._impatient = self.loop.call_later(_HEADERS_S, self._hang_up)

    def _hang_up(self) -> None:
        self._impatient = None
        if self.transport is not None and not self.transport.is_closing():
            self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {LINE: self._line}
        if self._impatient is None:
            self._await_headers()

    def on_headers_complete(self) -> None:
        self._calm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._line.came_s = time.monotonic()
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._line.fill()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._line.drain()

    def connection_lost(self, exc: Exception | None) -> None:
        self._calm()
        self._line.fill()
        super().connection_lost(exc)

    def _calm(self) -> None:
        if self._impatient is not None:
            self._impatient.cancel()
            self._impatient = None


def run_server(app: ASGIApp, state: LiveState, listening: socket.socket, *, ready: Any) -> None:
    """Serve until interrupted; `ready` is called once connections are taken."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a connection takes a file
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=4096,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )
    server = _Server(config, state, ready)
    gc.collect()
    gc.freeze()  # what is there now stays: no need to look at it again
    gc.set_threshold(50_000, 20, 50)
    server.run(sockets=[listening])


class _Server(uvicorn.Server):  # type: ignore[misc,unused-ignore]
    def __init__(self, config: uvicorn.Config, state: LiveState, ready: Any) -> None:
        super().__init__(config)
        self._state, self._ready = state, ready
        self._noted_s = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's, ten times a second."""
        if counter % 10 == 0:
            self._state.note()
        over: bool = await super().on_tick(counter)
        return over
