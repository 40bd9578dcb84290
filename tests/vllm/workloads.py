"""Random workloads for an engine and its scheduler, as plain data.

Times are whole ticks of 1/1024 s, so that sums are exact and an arrival falls on the very moment of
a decision, or does not, for everybody alike: who arrives at that moment is seen by the decision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any

TICKS_PER_S = 1024
STREAM_TOKENS = 1 << 16  # token ids of a stream: no two streams have one in common
OWN_STREAM = 100  # of request 0; lower ones are shared
ANSWER_STREAM = 1000  # of request 0's first sample
MOST_SAMPLES = 8

Piece = tuple[int, int]  # the first so many tokens of a stream
Table = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Request:
    """One request. An answer may end before its limit, as with an end-of-sequence token.

    at: ticks. prompt: pieces, one after the other. priority: the lower the sooner.
    samples: answers that are asked for (n).
    """

    at: int
    prompt: tuple[Piece, ...]
    output_tokens: int
    max_tokens: int
    priority: int = 0
    samples: int = 1

    @property
    def prompt_tokens(self) -> int:
        return sum(tokens for _, tokens in self.prompt)

    @property
    def final_tokens(self) -> int:
        """In the cache at the very end; the last token generated is never written."""
        return self.prompt_tokens + self.output_tokens - 1


@dataclass(frozen=True, slots=True)
class Workload:
    """An engine's limits, how long its steps take, and its requests in order of arrival.

    num_gpu_blocks: as vLLM counts them: one of them, the null block, holds nothing.
    durations: ticks that the n-th step takes, used again from the first when they are used up.
    launches: ticks between a decision and the next where that waits for no step to end, one after
    the other; none from where they are used up.
    tables: block tables of a sequence that are alike, as (kind, window, number of them).
    """

    policy: str  # fcfs or priority
    async_scheduling: bool
    max_num_seqs: int
    max_num_batched_tokens: int
    long_prefill_token_threshold: int
    max_model_len: int
    block_size: int
    num_gpu_blocks: int
    enable_prefix_caching: bool
    durations: tuple[int, ...]
    requests: tuple[Request, ...]
    ticks_per_s: int = TICKS_PER_S
    scheduler_reserve_full_isl: bool = True
    launches: tuple[int, ...] = ()
    tables: tuple[Table, ...] = ()  # none: one that keeps every token

    def as_json(self) -> dict[str, Any]:
        """Plain data, which `from_json` reads again."""
        return asdict(self)

    def for_vllm(self) -> dict[str, Any]:
        """Plain data for `record.py`, with what token ids are made of."""
        data = self.as_json()
        data["stream_tokens"] = STREAM_TOKENS
        for number, one in enumerate(data["requests"]):
            one["answer_streams"] = [answer_stream(number, at) for at in range(one["samples"])]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Workload:
        """What `as_json` gave, though it went through a file."""
        requests = tuple(
            Request(
                **{**one, "prompt": tuple((stream, tokens) for stream, tokens in one["prompt"])}
            )
            for one in data["requests"]
        )
        lists: dict[str, Any] = {
            name: tuple(data.get(name, ())) for name in ("durations", "launches")
        }
        lists["tables"] = tuple((kind, window, n) for kind, window, n in data.get("tables", ()))
        return cls(**{**data, **lists, "requests": requests})


def answer_stream(request: int, sample: int) -> int:
    """The stream of token ids that a sample generates."""
    return ANSWER_STREAM + request * MOST_SAMPLES + sample


def draw(mode: str, rng: Random) -> Workload:
    """A workload of that mode (a key of `MODES`)."""
    return MODES[mode](rng)


# -- modes --------------------------------------------------------------------------------------


def _synchronous(rng: Random) -> Workload:
    return _mixed(rng, async_scheduling=False)


def _asynchronous(rng: Random) -> Workload:
    return _mixed(rng, async_scheduling=True)


def _mixed(rng: Random, *, async_scheduling: bool) -> Workload:
    return _workload(
        rng,
        async_scheduling=async_scheduling,
        threshold=rng.random() < 0.15,
        room=rng.choice(("ample", "ample", "some", "little")),
    )


def _priority(rng: Random) -> Workload:
    """Caches are small, so that whom a preemption hits is seen.

    With a threshold that may be one who already has tokens of this step.
    """
    return _workload(
        rng,
        policy="priority",
        threshold=rng.random() < 0.4,
        samples=rng.random() < 0.2,
        seats=(2, 3, 4, 8, 16),
        budgets=(16, 16, 32, 64, 128),
        room=rng.choice(("some", "little", "little", "least")),
        longest=150,
        most_output=60,
    )


def _thresholds(rng: Random) -> Workload:
    return _workload(
        rng, threshold=True, longest=300, room=rng.choice(("ample", "ample", "some", "little"))
    )


def _preemption(rng: Random) -> Workload:
    return _workload(
        rng, seats=(3, 4, 8, 16), room=rng.choice(("little", "least")), longest=80, most_output=80
    )


def _prefixes(rng: Random) -> Workload:
    return _workload(
        rng, caching=True, sharing=0.9, room=rng.choice(("ample", "some", "little", "least"))
    )


def _samples(rng: Random) -> Workload:
    return _workload(rng, samples=True, room=rng.choice(("ample", "some", "little")))


def _stops(rng: Random) -> Workload:
    """With answers that end before their limit, which nobody knows beforehand."""
    return _workload(rng, stops=True, room=rng.choice(("ample", "some", "little", "least")))


def _first_chunks(rng: Random) -> Workload:
    """Prompts are admitted though no more than their first chunk fits."""
    drawn = _workload(
        rng,
        threshold=rng.random() < 0.3,
        budgets=(7, 16, 16, 32, 64, 128),
        room=rng.choice(("some", "little", "little", "least")),
        longest=300,
    )
    return replace(drawn, scheduler_reserve_full_isl=False)


def _windows(rng: Random) -> Workload:
    """Layers with a sliding window, most often beside full ones (gpt-oss, Gemma 3, Mistral)."""
    full, windows = ("full", 0, 1), rng.choice((1, 1, 1, 2, 5))
    sliding = ("sliding", rng.choice((2, 5, 16, 17, 32, 33, 48, 64, 100)), windows)
    return _hybrid(rng, rng.choice(((sliding, full), (sliding, full), (full, sliding), (sliding,))))


def _chunks(rng: Random) -> Workload:
    """Layers that look at the chunk they are in beside full ones (Llama 4)."""
    # A chunk is a whole number of blocks, whose size is drawn up to 32.
    chunked = ("chunked", rng.choice((32, 64, 96)), rng.choice((1, 3)))
    return _hybrid(rng, rng.choice(((chunked, ("full", 0, 1)), (("full", 0, 1), chunked))))


def _three_kinds(rng: Random) -> Workload:
    """Full layers beside windows of two lengths."""
    short, long = ("sliding", rng.choice((5, 16, 20)), 1), ("sliding", rng.choice((40, 64)), 1)
    return _hybrid(rng, (short, long, ("full", 0, 1)))


def _states(rng: Random) -> Workload:
    """Layers with states beside full ones, and no prefix cache (Qwen3-Next, Granite 4)."""
    tables = (("full", 0, 1), ("state", 0, rng.choice((1, 3, 9))))
    return replace(_hybrid(rng, tables), enable_prefix_caching=False)


def _checkpoints(rng: Random) -> Workload:
    """Layers with states that are kept at the ends of blocks, beside full ones."""
    states = ("checkpoint", 0, rng.choice((1, 1, 3)))
    tables = (states, ("full", 0, 1)) if rng.random() < 0.7 else (("full", 0, 1), states)
    return replace(_hybrid(rng, tables), enable_prefix_caching=True)


def _hybrid(rng: Random, tables: tuple[Table, ...]) -> Workload:
    return _workload(
        rng,
        tables=tables,
        threshold=rng.random() < 0.15,
        caching=rng.random() < 0.8,
        sharing=0.7,
        stops=rng.random() < 0.2,
        longest=rng.choice((80, 150, 300)),
        most_output=rng.choice((20, 80)),
        room=rng.choice(("some", "little", "least", "least")),
    )


MODES: dict[str, Callable[[Random], Workload]] = {
    "synchronous": _synchronous,
    "asynchronous": _asynchronous,
    "priority": _priority,
    "thresholds": _thresholds,
    "preemption": _preemption,
    "prefixes": _prefixes,
    "samples": _samples,
    "stops": _stops,
    "first_chunks": _first_chunks,
    "windows": _windows,
    "chunks": _chunks,
    "three_kinds": _three_kinds,
    "states": _states,
    "checkpoints": _checkpoints,
}


# -- what they draw -----------------------------------------------------------------------------


def _workload(
    rng: Random,
    *,
    policy: str = "fcfs",
    async_scheduling: bool | None = None,
    threshold: bool = False,
    caching: bool | None = None,
    sharing: float = 0.4,
    samples: bool = False,
    stops: bool = False,
    seats: tuple[int, ...] = (1, 2, 3, 4, 8, 8, 16),
    budgets: tuple[int, ...] = (7, 16, 32, 64, 100, 128, 512),
    room: str = "ample",
    longest: int = 150,
    most_output: int = 40,
    tables: tuple[Table, ...] = (),
) -> Workload:
    """`sharing`: the share of requests whose prompt begins as another's. None: drawn."""
    block_size = rng.choice((4, 8, 16, 16, 16, 32))
    crowd = rng.random() < 0.03
    max_num_seqs = rng.choice((24, 64)) if crowd else rng.choice(seats)
    durations = _durations(rng)
    requests: list[Request] = []
    count = 60 if crowd else rng.choice((1, 2, *range(3, 25)))
    for at in _arrivals(rng, count, durations):
        output = 1 if rng.random() < 0.08 else rng.randint(1, most_output)
        one = Request(
            at=at,
            prompt=_prompt(rng, requests, block_size, longest=longest, sharing=sharing),
            output_tokens=output,
            max_tokens=output + (rng.randint(0, 20) if stops else 0),
            priority=rng.randrange(rng.choice((2, 3, 9))) if policy == "priority" else 0,
            samples=rng.randint(1, 5) if samples and rng.random() < 0.6 else 1,
        )
        requests.append(one)
    longest_tokens = max(one.prompt_tokens + one.max_tokens for one in requests)
    return Workload(
        policy=policy,
        async_scheduling=rng.random() < 0.5 if async_scheduling is None else async_scheduling,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=(budget := max(max_num_seqs, rng.choice(budgets))),
        long_prefill_token_threshold=rng.choice((1, 5, 16, 24, 40, 64)) if threshold else 0,
        max_model_len=rng.choice((longest_tokens, 4096)),
        block_size=block_size,
        num_gpu_blocks=1 + _blocks(rng, requests, block_size, room, tables, 2 * budget),
        enable_prefix_caching=rng.random() < 0.7 if caching is None else caching,
        durations=durations,
        requests=tuple(requests),
        tables=tables,
    )


def _durations(rng: Random) -> tuple[int, ...]:
    if rng.random() < 0.5:
        return (rng.choice((1, 8, 16, 25)),)
    return tuple(rng.randint(2, 40) for _ in range(rng.randint(2, 17)))


def _arrivals(rng: Random, count: int, durations: Sequence[int]) -> list[int]:
    """In bursts, on boundaries of steps and off them, after long pauses."""
    if rng.random() < 0.15:
        return [0] * count
    step = sum(durations) / len(durations)
    density = rng.choice((0.3, 1.0, 3.0))
    at, ticks = 0, []
    for _ in range(count):
        ticks.append(at)
        gap = rng.choice((0.0, 0.5, 1.0, 1.0, 1.5, 3.5, 7.5))
        if rng.random() < 0.5:
            gap *= rng.random() * 2
        at += round(gap * density * step)
        if rng.random() < 0.04:
            at += round(200 * step)
    return ticks


def _prompt(
    rng: Random, before: Sequence[Request], block_size: int, *, longest: int, sharing: float
) -> tuple[Piece, ...]:
    """A request's own tokens, often after those that others have, too."""
    number = len(before)
    own = rng.randint(1, longest)
    if rng.random() < 0.2:
        own = -(-own // block_size) * block_size
    tail: Piece = (OWN_STREAM + number, own)
    if rng.random() >= sharing:
        return (tail,)
    kind = rng.random()
    if before and kind < 0.15:  # the same prompt again
        return rng.choice(before).prompt
    if before and kind < 0.35:  # a conversation goes on
        turn = rng.randrange(number)
        last = before[turn]
        if last.samples == 1 and last.prompt_tokens + last.output_tokens <= 2 * longest:
            return (*last.prompt, (answer_stream(turn, 0), last.output_tokens), tail)
    shared = rng.choice((block_size, 3 * block_size, 20, 48, 100))
    return ((rng.randrange(3), shared), tail)


def _blocks(
    rng: Random,
    requests: Sequence[Request],
    block_size: int,
    room: str,
    tables: Sequence[Table],
    in_flight_tokens: int,
) -> int:
    """Usable blocks: never fewer than the request that needs most of them."""
    needs = [
        sum(
            number
            * min(
                -(-one.final_tokens // block_size),
                -(-(window + in_flight_tokens) // block_size) + 1 if window else 1 << 30,
                {"state": 1, "checkpoint": 3}.get(kind, 1 << 30),
            )
            for kind, window, number in tables or (("full", 0, 1),)
        )
        for one in requests
    ]
    most, total = (
        max(needs),
        sum(need * one.samples for need, one in zip(needs, requests, strict=True)),
    )
    share = {"ample": 1.5, "some": rng.uniform(0.2, 0.8), "little": rng.uniform(0.05, 0.3)}
    if room == "least":
        return most + rng.choice((0, 0, 1, 2))
    return max(most, round(share[room] * total))
