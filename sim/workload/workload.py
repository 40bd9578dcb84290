"""The requests of one run, as columns."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim.workload.content import PromptContent
from sim.workload.samples import Samples


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """n requests in order of arrival; every array is [n] and read-only.

    arrival_s: float64, ascending, seconds from the start of the run.
    prompt_tokens: int64, at least 1.
    output_tokens: int64, at least 1: how many tokens the request really generates.
    max_tokens: int64, at least output_tokens: the limit that a scheduler which reserves memory
        sees; output_tokens where not given.
    content: what the prefix cache sees of the prompts; None when nothing is known to be shared.
    max_concurrency: closed loop: a request enters once it has arrived and fewer than this many are
        in flight; None for an open loop.
    follows: int64, the request whose answer each waits for, -1 for none; None: nobody waits. A
        follower arrives ``think_s`` after that answer has ended, and no earlier than its arrival_s.
    think_s: float64, 0 where not given.
    client_think_s: float64, of a closed loop: how long the client that got each request's answer
        waits before it sends another; None: not at all.
    leaves_s: float64, when each client is gone, answered or not (infinity: never); None: nobody
        leaves. No earlier than its arrival_s.
    samples: for requests that ask for several answers; output_tokens is then their longest one's.
    request_ids: names from a trace, n of them.
    labels: the class of each request, n of them.
    name: where the requests come from.
    notes: what a reader of the results should know, e.g. rows that were left out.

    Raises ValueError naming the first offending request and its value. Anything that can be
    converted without loss may be given for the arrays.
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    max_tokens: NDArray[np.int64] = None  # type: ignore[assignment]  # set by __post_init__
    content: PromptContent | None = None
    max_concurrency: int | None = None
    request_ids: list[str] | None = None
    labels: list[str] | None = None
    name: str = "workload"
    notes: tuple[str, ...] = ()
    samples: Samples | None = None
    follows: NDArray[np.int64] | None = None
    think_s: NDArray[np.float64] = None  # type: ignore[assignment]  # set where somebody follows
    client_think_s: NDArray[np.float64] | None = None
    leaves_s: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        arrival_s = _column("arrival_s", self.arrival_s, np.dtype(np.float64))
        prompt_tokens = _column("prompt_tokens", self.prompt_tokens, np.dtype(np.int64))
        output_tokens = _column("output_tokens", self.output_tokens, np.dtype(np.int64))
        max_tokens = (
            output_tokens
            if self.max_tokens is None
            else _column("max_tokens", self.max_tokens, np.dtype(np.int64))
        )
        n = len(arrival_s)
        if n == 0:
            raise ValueError("a workload needs at least one request")
        lengths = {
            "prompt_tokens": len(prompt_tokens),
            "output_tokens": len(output_tokens),
            "max_tokens": len(max_tokens),
            "content": n if self.content is None else len(self.content),
            "samples": n if self.samples is None else len(self.samples.counts),
            "request_ids": n if self.request_ids is None else len(self.request_ids),
            "labels": n if self.labels is None else len(self.labels),
            "follows": n if self.follows is None else len(self.follows),
            "client_think_s": n if self.client_think_s is None else len(self.client_think_s),
            "leaves_s": n if self.leaves_s is None else len(self.leaves_s),
        }
        for column, length in lengths.items():
            if length != n:
                raise ValueError(f"{column} has {length} entries, arrival_s has {n}")
        _refuse("arrival_s", arrival_s, ~np.isfinite(arrival_s), "a finite number of seconds")
        _refuse("arrival_s", arrival_s, arrival_s < 0, "0 or more seconds")
        late = np.zeros(n, bool)
        np.less(arrival_s[1:], arrival_s[:-1], out=late[1:])
        _refuse("arrival_s", arrival_s, late, "no earlier than the request before it")
        _refuse("prompt_tokens", prompt_tokens, prompt_tokens < 1, "at least 1")
        _refuse("output_tokens", output_tokens, output_tokens < 1, "at least 1")
        _refuse("max_tokens", max_tokens, max_tokens < output_tokens, "at least output_tokens")
        if self.samples is not None:
            _refuse("output_tokens", output_tokens, output_tokens != self.samples.longest,
                    "as many as the longest sample")  # fmt: skip
        if self.max_concurrency is not None:
            whole_number("max_concurrency", self.max_concurrency)
        if self.client_think_s is not None:
            waits_s = _column("client_think_s", self.client_think_s, np.dtype(np.float64))
            _refuse("client_think_s", waits_s, ~(waits_s >= 0), "0 or more seconds")
            object.__setattr__(self, "client_think_s", waits_s)
        if self.follows is not None:
            follows = _column("follows", self.follows, np.dtype(np.int64))
            _refuse("follows", follows, follows >= np.arange(n), "a request before it")
            think_s = np.zeros(n) if self.think_s is None else self.think_s
            think_s = _column("think_s", think_s, np.dtype(np.float64))
            _refuse("think_s", think_s, ~(think_s >= 0), "0 or more seconds")
            object.__setattr__(self, "follows", follows)
            object.__setattr__(self, "think_s", think_s)
        if self.leaves_s is not None:
            leaves_s = _column("leaves_s", self.leaves_s, np.dtype(np.float64))
            _refuse("leaves_s", leaves_s, ~(leaves_s >= arrival_s), "no earlier than its arrival")
            object.__setattr__(self, "leaves_s", leaves_s)
        object.__setattr__(self, "arrival_s", arrival_s)
        object.__setattr__(self, "prompt_tokens", prompt_tokens)
        object.__setattr__(self, "output_tokens", output_tokens)
        object.__setattr__(self, "max_tokens", max_tokens)

    @property
    def awaits_answers(self) -> bool:
        """Whether it depends on answers when requests come."""
        return self.max_concurrency is not None or self.follows is not None

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.arrival_s)

    def slice(self, start: int | None = None, stop: int | None = None) -> Workload:
        """Requests start to stop - 1 (as in Python's slices), the first of them at time 0.

        Raises ValueError when that leaves no request.
        """
        first, last, _ = slice(start, stop).indices(len(self))
        if last <= first:
            raise ValueError(
                f"requests {start} to {stop} of a workload of {len(self)}: that leaves none"
            )
        return self._part(first, last, origin_s=float(self.arrival_s[first]))

    def between(self, start_s: float, end_s: float) -> Workload:
        """Requests that arrive in [start_s, end_s), start_s (if not negative) becoming time 0.

        Raises ValueError when no request arrives then, or for a NaN.
        """
        if math.isnan(start_s) or math.isnan(end_s):
            raise ValueError(f"window is {start_s} to {end_s} s, expected numbers")
        first, last = np.searchsorted(self.arrival_s, [start_s, end_s]).tolist()
        if last <= first:
            raise ValueError(
                f"no request arrives between {start_s} s and {end_s} s: the workload spans "
                f"{self.arrival_s[0]:g} s to {self.arrival_s[-1]:g} s"
            )
        return self._part(first, last, origin_s=max(start_s, 0.0))

    def scaled(self, time_scale: float) -> Workload:
        """The same requests with arrival times multiplied: 0.5 makes the load twice as dense.

        How long people think before their next turn stays as it is. Raises ValueError for a scale
        that is not finite and above 0.
        """
        if not (math.isfinite(time_scale) and time_scale > 0):
            raise ValueError(f"time_scale is {time_scale}, expected a finite number above 0")
        leaves_s = self.leaves_s
        if leaves_s is not None:  # as long after its arrival
            leaves_s = leaves_s + self.arrival_s * (time_scale - 1)
        return replace(self, arrival_s=self.arrival_s * time_scale, leaves_s=leaves_s)

    def _part(self, first: int, last: int, *, origin_s: float) -> Workload:
        part = slice(first, last)
        follows = None
        if self.follows is not None:  # whose answer is left out has it
            follows = np.maximum(self.follows[part] - first, -1)
        return replace(
            self,
            follows=follows,
            client_think_s=None if self.client_think_s is None else self.client_think_s[part],
            think_s=self.think_s if follows is None else self.think_s[part],
            arrival_s=self.arrival_s[part] - origin_s,
            prompt_tokens=self.prompt_tokens[part],
            output_tokens=self.output_tokens[part],
            max_tokens=self.max_tokens[part],
            content=None if self.content is None else self.content.slice(first, last),
            samples=None if self.samples is None else self.samples.slice(first, last),
            request_ids=None if self.request_ids is None else self.request_ids[part],
            labels=None if self.labels is None else self.labels[part],
            leaves_s=None if self.leaves_s is None else self.leaves_s[part] - origin_s,
        )


def whole_number(name: str, value: Any) -> int:
    """`value` as an int, which must be whole and at least 1; ValueError naming it otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least 1")
    return int(value)


def _column(name: str, values: ArrayLike, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A read-only contiguous one-dimensional array of dtype; ValueError where a value is lost."""
    given = np.asarray(values)
    if given.ndim != 1:
        raise ValueError(f"{name} has {given.ndim} dimensions, expected 1")
    if given.dtype.kind not in "iuf" and given.size:
        raise ValueError(f"{name} holds {given.dtype}, expected numbers")
    with np.errstate(invalid="ignore"):
        column = np.ascontiguousarray(given, dtype=dtype)
    if dtype.kind == "i" and given.dtype.kind != "i":
        _refuse(name, given, column != given, "a whole number of tokens")
    view = column.view()
    view.setflags(write=False)
    return view


def _refuse(name: str, values: NDArray[Any], wrong: NDArray[np.bool_], expected: str) -> None:
    """ValueError for the first request whose value is wrong."""
    if wrong.any():
        request = int(np.argmax(wrong))
        raise ValueError(f"request {request}: {name} is {values[request]}, expected {expected}")
