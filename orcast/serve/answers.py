"""Answers on their way to clients: tokens as they come become the events and bodies of the API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any, Protocol

from orcast.serve.errors import ApiError
from orcast.serve.texts import Filler
from sim.request import Request

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True, eq=False)
class Choice:
    """One answer: how many tokens it will have, and how many of them are there and sent."""

    number: int  # among those of its HTTP request
    place: int  # where its filler begins
    tokens: int
    finish_reason: str
    answer: Answer
    stop: str | None = None  # the string that ends it
    text: str | None = None  # all of it, where stop strings are asked for
    count: int = 0  # tokens that are there
    sent: int = 0  # tokens that were sent
    shown: int = 0  # characters of `text` that were sent
    last_s: float = 0.0  # when the latest token came, simulated
    due: bytes = b""  # the comment that tells when the first that was not sent was due


@dataclass(slots=True, eq=False)
class Prompt:
    """One prompt of an HTTP request: a request of the simulated cluster."""

    tokens: int
    choices: list[Choice]
    request: Request | None = None
    replica: int = 0  # that gave its first token
    over: bool = False


class Hearer(Protocol):
    """Who takes tokens as they come."""

    def hear(self, choice: Choice, due: bytes) -> None:
        """There are more of a choice's; `due`: when they were, as an event's comment."""


@dataclass(slots=True, eq=False)
class Answer:
    """All that one HTTP request gets."""

    prompts: list[Prompt] = field(default_factory=list)
    stream: Hearer | None = None  # None: it is sent as a whole
    error: ApiError | None = None
    dropped: bool = False  # its connection is to be cut
    _waiter: asyncio.Future[None] | None = None

    @property
    def choices(self) -> Iterator[Choice]:
        return (choice for prompt in self.prompts for choice in prompt.choices)

    @property
    def over(self) -> bool:
        """Nothing more will come."""
        return self.error is not None or self.dropped or all(one.over for one in self.prompts)

    def wake(self) -> None:
        """It may be over."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def end(self) -> None:
        """Until nothing more will come."""
        while not self.over:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter


class Format:
    """How one kind of API writes answers down: its chunks, its usage, its whole body."""

    def __init__(
        self, kind: str, *, name: str, model: str, created: int, filler: Filler,
        logprobs: int | None = None, usage: bool = False, continuous: bool = False,
        hold: int = 0, echo: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """`kind`: ``chat`` or ``text``. `logprobs`: alternatives a token, None: none asked for.

        `hold`: characters that are held back since a stop string may have begun. `echo`: each
        choice's prompt, sent before its answer.
        """
        self._chat = kind == "chat"
        self._filler = filler
        self._logprobs, self._hold, self._echo = logprobs, hold, echo
        self._usage, self._continuous = usage, continuous
        self._head = {
            "id": name, "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": created, "model": model,
        }  # fmt: skip
        opened = json.dumps(self._head, separators=(",", ":"))[:-1]
        self._plain = not continuous and logprobs is None
        self._opened = f'data: {opened},"choices":[{{"index":'
        self._openings: dict[int, bytes] = {}  # of each choice: what stands before its tokens
        self._closing = b'%b,"logprobs":null,"finish_reason":null}]}\n\n' % (
            b'"}' if self._chat else b'"'
        )

    def _first(self, choice: Choice) -> bytes:
        """What comes before a choice's first token: a chat's role, or the prompt to be echoed."""
        if self._chat:
            delta = {"role": "assistant", "content": ""}
            return self._event(choice, {"delta": delta, "logprobs": None, "finish_reason": None}, 0)
        if self._echo:
            text = {"text": self._echo[choice.number], "logprobs": None, "finish_reason": None}
            return self._event(choice, text | {"stop_reason": None}, 0)
        return b""

    def unsent(self, choice: Choice) -> bytes:
        """The tokens that have come and were not sent, as events."""
        start, stop = choice.sent, choice.count
        if start == stop:
            return b""
        before = choice.due if start else self._first(choice) + choice.due
        choice.sent, choice.due = stop, b""
        ended = stop == choice.tokens
        if self._plain and not ended and choice.text is None:
            opening = self._openings.get(choice.number) or self._opening(choice.number)
            words = self._filler.encoded(choice.place, start, stop)
            return b"%b%b%b%b" % (before, opening, words, self._closing)
        text = self._text(choice, start, stop, ended=ended)
        said: dict[str, Any] = {"delta": {"content": text}} if self._chat else {"text": text}
        said["logprobs"] = self._logprobs_of(choice, start, stop)
        said["finish_reason"] = choice.finish_reason if ended else None
        if ended or not self._chat:
            said["stop_reason"] = choice.stop if ended else None
        return before + self._event(choice, said, stop)

    def last(self, answer: Answer) -> bytes:
        """What comes behind all choices: an error, or usage where it is asked for; and the end."""
        if answer.error is not None:
            return event(answer.error.body) + DONE
        if not self._usage:
            return DONE
        return event(self._head | {"choices": [], "usage": usage(answer)}) + DONE

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = []
        for choice in answer.choices:
            text = self._text(choice, 0, choice.count, ended=True)
            one: dict[str, Any] = {"index": choice.number}
            if self._chat:
                one["message"] = {
                    "role": "assistant", "content": text, "refusal": None, "annotations": None,
                    "audio": None, "function_call": None, "tool_calls": [], "reasoning": None,
                }  # fmt: skip
            else:
                one["text"] = (self._echo[choice.number] if self._echo else "") + text
            one["logprobs"] = self._logprobs_of(choice, 0, choice.count)
            one["finish_reason"], one["stop_reason"] = choice.finish_reason, choice.stop
            choices.append(one)
        head = self._head | {"object": "chat.completion" if self._chat else "text_completion"}
        return head | {
            "choices": choices, "service_tier": None, "system_fingerprint": None,
            "usage": usage(answer),
        }  # fmt: skip

    def _opening(self, number: int) -> bytes:
        text = '"delta":{"content":"' if self._chat else '"text":"'
        self._openings[number] = opening = f"{self._opened}{number},{text}".encode()
        return opening

    def _event(self, choice: Choice, said: dict[str, Any], count: int) -> bytes:
        body: dict[str, Any] = self._head | {"choices": [{"index": choice.number} | said]}
        if self._continuous:
            prompt = _prompt_of(choice).tokens
            body["usage"] = {
                "prompt_tokens": prompt, "total_tokens": prompt + count,
                "completion_tokens": count,
            }  # fmt: skip
        return event(body)

    def _text(self, choice: Choice, start: int, stop: int, *, ended: bool) -> str:
        if choice.text is None:
            return self._filler.text(choice.place, start, stop)
        end = len(choice.text)
        if not ended:
            there = len(self._filler.text(choice.place, 0, stop)) - self._hold
            end = max(choice.shown, min(there, end))
        text = choice.text[choice.shown : end]
        choice.shown = end
        return text

    def _logprobs_of(self, choice: Choice, start: int, stop: int) -> dict[str, Any] | None:
        """Of the right shape; that each token had even odds is as made up as the tokens are."""
        most = self._logprobs
        if most is None:
            return None
        words = self._filler.words(choice.place, start, stop)
        others = self._filler.words(choice.place, stop, stop + max(most, 1))
        if self._chat:
            ranks = [[_likely(*one) for one in _ranked(word, others, most)] for word in words]
            tops = zip(words, ranks, strict=True)
            return {"content": [_likely(word) | {"top_logprobs": top} for word, top in tops]}
        at = len(self._filler.text(choice.place, 0, start))
        offsets = []
        for word in words:
            offsets.append(at)
            at += len(word)
        return {
            "text_offset": offsets,
            "token_logprobs": [_HALF] * len(words),
            "tokens": words,
            "top_logprobs": [dict(_ranked(word, others, max(most, 1))) for word in words],
        }


_HALF = -log(2)


def event(body: dict[str, Any]) -> bytes:
    """As a client gets it in a stream."""
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n".encode()


def _ranked(word: str, others: Sequence[str], most: int) -> list[tuple[str, float]]:
    """The token and so many in all, each half as likely as the one before."""
    ranked = list(dict.fromkeys((word, *others)))[:most]
    return [(one, _HALF * (place + 1)) for place, one in enumerate(ranked)]


def _likely(word: str, logprob: float = _HALF) -> dict[str, Any]:
    return {"token": word, "logprob": logprob, "bytes": list(word.encode())}


def _prompt_of(choice: Choice) -> Prompt:
    return next(one for one in choice.answer.prompts if choice in one.choices)


def usage(answer: Answer) -> dict[str, Any]:
    """Tokens in and out, and how many of the prompts' were cached."""
    prompt = sum(one.tokens for one in answer.prompts)
    completion = sum(one.count for one in answer.choices)
    cached = sum(one.request.cached_tokens for one in answer.prompts if one.request is not None)
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
