"""Requests for an engine that serves for real, and its limits, as plain data.

Bursts, a steady stream and pauses in turn: queues build up and preempt, and the engine falls idle.
Prompts share prefixes, a few are long, conversations go on when an answer is there, and answers
may end before their limit, which nobody knows beforehand.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from tests.vllm.workloads import OWN_STREAM, Piece, answer_stream

BLOCK_SIZE = 32  # vLLM's processor backend wants a multiple of it
SHARED_STREAMS = 6
MAX_MODEL_LEN = 2048


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client sends, and when.

    at_s: from the start of the run; where it answers request `after`: from that one's last token.
    prompt: its own pieces; where it answers one they follow that one's prompt and answer.
    stops: whether the answer ends with the first of some token ids, if that comes before the limit.
    """

    at_s: float
    after: int | None
    prompt: tuple[Piece, ...]
    max_tokens: int
    stops: bool


@dataclass(frozen=True, slots=True)
class Traffic:
    """An engine's limits, under vLLM's names, and what its clients send.

    num_gpu_blocks: as vLLM counts them: one of them, the null block, holds nothing.
    """

    async_scheduling: bool
    max_num_seqs: int
    max_num_batched_tokens: int
    long_prefill_token_threshold: int
    num_gpu_blocks: int
    enable_prefix_caching: bool
    requests: tuple[Asked, ...]
    max_model_len: int = MAX_MODEL_LEN
    block_size: int = BLOCK_SIZE

    def for_vllm(self) -> dict[str, Any]:
        """Plain data for `serve.py`, with the numbers of the streams that answers become."""
        return asdict(self) | {"answer_streams": [answer_stream(n, 0) for n in (0, 1)]}

    def limits(self) -> dict[str, Any]:
        """The engine's, by name."""
        limits = asdict(self)
        del limits["requests"]
        return limits


def draw(rng: Random, *, async_scheduling: bool, count: int) -> Traffic:
    """So many requests."""
    requests: list[Asked] = []
    at_s = 0.2
    while len(requests) < count:
        for gap_s in _gaps_s(rng):
            at_s += gap_s
            requests.append(_asked(rng, len(requests), at_s))
            while rng.random() < 0.25:
                requests.append(_turn(rng, len(requests)))
        at_s += rng.choice((0.0, 0.5, 1.0, 2.5))
    return Traffic(
        async_scheduling=async_scheduling,
        max_num_seqs=rng.choice((12, 16, 24)),
        max_num_batched_tokens=rng.choice((128, 256, 384)),
        long_prefill_token_threshold=rng.choice((0, 0, 0, 96)),
        num_gpu_blocks=1 + rng.choice((64, 72, 80, 96)),
        enable_prefix_caching=rng.random() < 0.9,
        requests=tuple(requests[:count]),
    )


def _gaps_s(rng: Random) -> list[float]:
    """Between the arrivals of a burst, or of a steady stream."""
    if rng.random() < 0.5:
        return [rng.expovariate(800.0) for _ in range(rng.randint(1, 30))]
    return [rng.expovariate(60.0) for _ in range(rng.randint(1, 60))]


def _asked(rng: Random, number: int, at_s: float) -> Asked:
    own = rng.randint(400, 1200) if rng.random() < 0.04 else rng.randint(1, 200)
    prompt: tuple[Piece, ...] = ((OWN_STREAM + number, own),)
    if rng.random() < 0.5:
        prompt = ((rng.randrange(SHARED_STREAMS), rng.choice((32, 64, 96, 160, 100))), *prompt)
    return Asked(at_s, None, prompt, rng.randint(1, 90), rng.random() < 0.5)


def _turn(rng: Random, number: int) -> Asked:
    """The request before goes on."""
    prompt = ((OWN_STREAM + number, rng.randint(1, 60)),)
    return Asked(rng.expovariate(4.0), number - 1, prompt, rng.randint(1, 90), rng.random() < 0.5)
