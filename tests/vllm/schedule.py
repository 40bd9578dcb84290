"""A schedule: who computes how many tokens in which step, whoever has decided it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.vllm.workloads import TICKS_PER_S


@dataclass(frozen=True, slots=True)
class Step:
    """One batch. A sequence's name is its request's number, or NUMBER.SAMPLE where it asks for n.

    start: ticks. tokens: that each sequence computes. preempted: by this decision, in order, and by
    decisions just before it that left nothing to compute. hits: tokens that those who are admitted
    find in the prefix cache. free_blocks: after the decision.
    """

    start: int
    tokens: Mapping[str, int]
    preempted: tuple[str, ...]
    hits: Mapping[str, int]
    free_blocks: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """All steps, and when each request had the first and the last token of all its samples."""

    steps: tuple[Step, ...]
    first: Mapping[str, int]
    last: Mapping[str, int]

    @classmethod
    def from_vllm(cls, data: Mapping[str, Any]) -> Schedule:
        """The schedule in what `record.py` writes."""
        steps: list[Step] = []
        preempted: list[str] = []
        for _, start, tokens, victims, hits, free_blocks in data["steps"]:
            preempted += victims
            if tokens:
                steps.append(Step(start, tokens, tuple(preempted), hits, free_blocks))
                preempted = []
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for name, ticks in data["first"].items():
            request = name.partition(".")[0]
            first[request] = min(first.get(request, ticks), ticks)
        for name, ticks in data["last"].items():
            request = name.partition(".")[0]
            last[request] = max(last.get(request, ticks), ticks)
        return cls(tuple(steps), first, last)

    def as_json(self) -> dict[str, Any]:
        """Plain data, column by column: so it is small when it is compressed."""
        steps = self.steps
        return {
            "start": [step.start for step in steps],
            "tokens": [step.tokens for step in steps],
            "free_blocks": [step.free_blocks for step in steps],
            "preempted": {at: step.preempted for at, step in enumerate(steps) if step.preempted},
            "hits": {at: step.hits for at, step in enumerate(steps) if step.hits},
            "first": self.first,
            "last": self.last,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Schedule:
        """What `as_json` gave, though it went through a file."""
        columns = zip(data["start"], data["tokens"], data["free_blocks"], strict=True)
        preempted, hits = data["preempted"], data["hits"]
        steps = (
            Step(start, tokens, tuple(preempted.get(str(at), ())), hits.get(str(at), {}), free)
            for at, (start, tokens, free) in enumerate(columns)
        )
        return cls(tuple(steps), data["first"], data["last"])


def difference(vllm: Schedule, orcast: Schedule, *, ticks_per_s: int = TICKS_PER_S) -> str | None:
    """Where two schedules of one workload part, in words; None where they are equal."""

    def seconds(ticks: int | None) -> str:
        return "no time" if ticks is None else f"{ticks / ticks_per_s:.3f} s"

    for number, (one, other) in enumerate(zip(vllm.steps, orcast.steps, strict=False)):
        if one == other:
            continue
        where = f"step {number} ({seconds(one.start)})"
        if one.start != other.start:
            return f"{where}: Orcast begins it at {seconds(other.start)}"
        said = [
            f"vLLM {word} {_shown(mine)}, Orcast {_shown(theirs)}"
            for word, mine, theirs in (
                ("computes", one.tokens, other.tokens),
                ("preempts", one.preempted, other.preempted),
                ("finds cached", one.hits, other.hits),
                ("leaves free blocks:", one.free_blocks, other.free_blocks),
            )
            if mine != theirs
        ]
        return f"{where}: " + "; ".join(said)
    if len(vllm.steps) != len(orcast.steps):
        return f"vLLM takes {len(vllm.steps)} steps, Orcast {len(orcast.steps)}"
    for word in ("first", "last"):
        times, others = getattr(vllm, word), getattr(orcast, word)
        for request in sorted(times.keys() | others.keys(), key=int):
            if times.get(request) != others.get(request):
                return (
                    f"request {request}: {word} token at {seconds(times.get(request))} in vLLM, "
                    f"{seconds(others.get(request))} in Orcast"
                )
    return None


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {value[name]}" for name in sorted(value, key=_order)) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(value) + "]"
    return str(value)


def _order(name: str) -> tuple[int, int]:
    request, _, sample = name.partition(".")
    return int(request), int(sample or 0)
