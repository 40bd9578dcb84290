"""Runs that vLLM served for real: what the simulator is told of one, and a file that keeps some."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from tests.vllm.schedule import Schedule, Step
from tests.vllm.traffic import Traffic
from tests.vllm.turns import Chain, Sent, Turn, chain
from tests.vllm.workloads import Request, Workload

FILE = Path(__file__).with_name("served.json.xz")
TICKS_PER_S = 1 << 30  # finer than nanoseconds, and sums of ticks are exact in a float
_NS_PER_S = 10**9
_TIMES = ("decided", "arrived")  # columns of the file that are kept as differences


@dataclass(frozen=True)
class Served:
    """One run: the engine's limits, the loop's turns, the requests in order of arrival."""

    limits: Mapping[str, Any]
    batches_in_flight: int
    versions: Mapping[str, str]
    turns: tuple[Turn, ...]
    requests: tuple[Sent, ...]

    @classmethod
    def from_vllm(cls, traffic: Traffic, data: Mapping[str, Any]) -> Served:
        """What `serve.py` wrote, asked with this traffic."""
        turns = (
            Turn(
                turn["decided"],
                turn.get("slept"),
                turn.get("tokens", {}),
                tuple(turn["preempted"]),
                turn.get("hits", {}),
                turn.get("free_blocks", 0),
                turn.get("result"),
            )
            for turn in data["turns"]
        )
        return cls(
            traffic.limits(),
            data["batches_in_flight"],
            data["versions"],
            tuple(turns),
            tuple(_sent(one) for one in data["requests"]),
        )

    @cached_property
    def chain(self) -> Chain:
        """Its steps one after the other."""
        return chain(self.turns, self.requests)

    def workload(self) -> Workload:
        """All that the simulator is told."""
        told = self.chain
        return Workload(
            policy="fcfs",
            **self.limits,
            durations=tuple(
                ticks(end) - ticks(start) for start, end in zip(told.starts, told.ends, strict=True)
            ),
            requests=tuple(
                Request(ticks(arrives), one.prompt, one.output_tokens, one.max_tokens)
                for one, arrives in zip(self.requests, told.arrives, strict=True)
            ),
            ticks_per_s=TICKS_PER_S,
            launches=tuple(ticks(until) - ticks(since) for since, until in told.launches),
        )

    def schedule(self) -> Schedule:
        """What vLLM decided, and when each request had its first and last token."""
        told = self.chain
        steps: list[Step] = []
        preempted: list[str] = []
        for turn in self.turns:
            preempted += turn.preempted
            if turn.tokens:
                start = ticks(told.starts[len(steps)])
                steps.append(
                    Step(start, turn.tokens, tuple(preempted), turn.hits, turn.free_blocks)
                )
                preempted = []
        ends = {at: ticks(end) for at, end in zip(told.collected, told.ends, strict=True)}
        return Schedule(
            tuple(steps),
            first={f"{number}": ends[one.first_turn] for number, one in enumerate(self.requests)},
            last={f"{number}": ends[one.last_turn] for number, one in enumerate(self.requests)},
        )

    def as_json(self) -> dict[str, Any]:
        """Plain data, column by column: so it is small when it is compressed."""
        turns, requests = ([asdict(one) for one in rows] for rows in (self.turns, self.requests))
        return {
            "limits": self.limits,
            "batches_in_flight": self.batches_in_flight,
            "versions": self.versions,
            "turns": _columns(turns),
            "requests": _columns(requests),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Served:
        """What `as_json` gave, though it went through a file."""
        turns = (
            Turn(**{**one, "preempted": tuple(one["preempted"])}) for one in _rows(data["turns"])
        )
        return cls(
            data["limits"],
            data["batches_in_flight"],
            data["versions"],
            tuple(turns),
            tuple(_sent(one) for one in _rows(data["requests"])),
        )


def ticks(nanoseconds: int) -> int:
    """The same in ticks; what is a nanosecond apart stays apart."""
    return (nanoseconds * TICKS_PER_S + _NS_PER_S // 2) // _NS_PER_S


def _sent(one: Mapping[str, Any]) -> Sent:
    return Sent(**{**one, "prompt": tuple((stream, tokens) for stream, tokens in one["prompt"])})


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for name in _TIMES:
        if name in columns:
            columns[name] = [later - at for at, later in pairwise([0, *columns[name]])]
    return columns


def _rows(columns: Mapping[str, list[Any]]) -> Iterable[dict[str, Any]]:
    whole = {
        name: accumulate(column) if name in _TIMES else column for name, column in columns.items()
    }
    for row in zip(*whole.values(), strict=True):
        yield dict(zip(whole, row, strict=True))


@cache
def read() -> dict[str, Served]:
    """The runs that are kept, by mode."""
    lines = lzma.decompress(FILE.read_bytes()).decode().splitlines()
    return {one["mode"]: Served.from_json(one) for one in map(json.loads, lines)}


def write(runs: Mapping[str, Served]) -> None:
    """Renew the file."""
    lines = [
        json.dumps({"mode": mode} | run.as_json(), separators=(",", ":"))
        for mode, run in runs.items()
    ]
    FILE.write_bytes(lzma.compress("\n".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME))
