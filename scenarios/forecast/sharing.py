"""What requests share, drawn: samples and beams of one prompt, turns of conversations."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import numpy as np
from numpy.typing import NDArray

from scenarios.schema.engine import Engine
from scenarios.schema.scenario import Scenario
from scenarios.schema.sharing import Sessions, ThinkTime
from scenarios.schema.workload import Workload
from sim.kv.memory import MemoryBudget
from sim.kv.tiers import TierSpec
from sim.latency.block_moves import BlockMoves
from sim.latency.protocol import LatencyModel
from sim.model.hardware import Gpu
from sim.request import BeamSearch
from sim.workload import PromptContent
from sim.workload import Workload as Recorded
from sim.workload.samples import Samples
from sim.workload.sessions import Conversations, conversations, laid_over, turns_of_sessions

GIB = 2**30
# The share of the peak bandwidth that plain copies reach (an H200's: 4.3 of 4.8 TB/s).
_COPY_EFFICIENCY = 0.9

Lengths = Callable[[int], NDArray[np.int64]]  # so many lengths of the workload's outputs


def draw_samples(
    workload: Workload,
    outputs: NDArray[np.int64],
    more: Lengths,
    rng: np.random.Generator,
) -> Samples | None:
    """Samples or beams of every request, the first as long as its output; None: it has neither.

    `more` draws the lengths of further samples that are independent.
    """
    n = len(outputs)
    if workload.beam_search is not None:
        counts = np.full(n, workload.beam_search.width)
        beam = BeamSearch(workload.beam_search.survival, workload.seed)
        return Samples(counts, np.repeat(outputs, counts), beam)
    if workload.samples is None:
        return None
    asked = workload.samples
    counts = np.full(n, asked.n) if isinstance(asked.n, int) else rng.choice(asked.n, size=n)
    counts = counts.astype(np.int64)
    tokens = np.repeat(outputs, counts)
    if asked.lengths == "independent":
        further = np.ones(len(tokens), bool)
        further[np.cumsum(counts) - counts] = False
        if further.any():  # by chance every request may have asked for one
            tokens[further] = more(int(further.sum()))
    return Samples(counts, tokens)


def draw_conversations(
    workload: Workload,
    session_arrivals: Callable[[int], NDArray[np.float64]],
    user_tokens: NDArray[np.int64],
    reply_tokens: NDArray[np.int64],
    rng: np.random.Generator,
) -> Conversations:
    """The turns of `workload.sessions`; arrivals are drawn for as many sessions as it takes."""
    sessions, shared = workload.sessions, workload.shared_prefixes
    assert sessions is not None
    count = len(user_tokens)
    turns = turns_of_sessions(
        rng, count, mean=sessions.turns, geometric=sessions.spread == "geometric"
    )
    prefixes = None
    if shared is not None:
        prefixes = rng.integers(shared.num_prefixes, size=len(turns))
    return conversations(
        session_arrival_s=session_arrivals(len(turns)),
        turns=turns,
        gaps_s=_gaps_s(sessions, count, rng),
        user_tokens=user_tokens,
        reply_tokens=reply_tokens,
        max_context_tokens=sessions.max_context_tokens,
        prefixes=prefixes,
        prefix_tokens=0 if shared is None else shared.tokens,
    )


def lay_conversations(
    sessions: Sessions, requests: Recorded, rng: np.random.Generator
) -> tuple[PromptContent, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """`workload.sessions` over requests that are there already: what prompts hold, whose answer
    each waits for, and how long."""
    n = len(requests)
    turns = turns_of_sessions(rng, n, mean=sessions.turns, geometric=sessions.spread == "geometric")
    turns = np.concatenate([turns, np.ones(n, np.int64)])  # as many as may begin
    found = laid_over(
        arrival_s=requests.arrival_s,
        prompt_tokens=requests.prompt_tokens,
        output_tokens=requests.output_tokens,
        turns=turns,
        gaps_s=_gaps_s(sessions, n, rng),
    )
    thinks = sessions.think_time_s is not None
    return found.content, (found.follows, found.gaps_s if thinks else np.zeros(n))


def _gaps_s(sessions: Sessions, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Between a turn, or its answer, and the next turn."""
    thought = sessions.think_time_s
    if thought is None:
        return rng.exponential(sessions.turn_gap_s or 0.0, size=count)
    return think_times_s(thought, count, rng)


def think_times_s(thought: ThinkTime, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How long users think, drawn."""
    if thought.distribution == "exponential":
        return rng.exponential(thought.mean_s or 0.0, size=count)
    if thought.distribution == "uniform":
        assert thought.min_s is not None and thought.max_s is not None
        return rng.uniform(thought.min_s, thought.max_s, size=count)
    if thought.distribution == "lognormal":
        assert thought.median_s is not None and thought.sigma is not None
        return rng.lognormal(0.0, thought.sigma, size=count) * thought.median_s
    return np.full(count, thought.seconds or 0.0)


def answers_awaited(
    sessions: Sessions, turns: Conversations, arrival_s: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    """Whose answer each turn waits for, and how long after it comes; None: for nobody's.

    `arrival_s`: when it comes at the earliest.
    """
    if sessions.by_the_clock:
        return None
    think_s = np.zeros(len(arrival_s))
    if sessions.think_time_s is not None:  # the earliest arrival is that much after the one before
        later = turns.follows >= 0
        think_s[later] = arrival_s[later] - arrival_s[turns.follows[later]]
    return turns.follows, think_s


def swap_blocks(engine: Engine, bytes_per_block: int) -> int:
    """Blocks of host memory for swapping. ValueError where not one fits."""
    blocks = _blocks(engine.swap_space_gib, bytes_per_block)
    if engine.scheduler == "paged" and engine.preemption == "swap":
        _refuse_none("swap_space_gib", engine.swap_space_gib, blocks, bytes_per_block)
    return blocks


def kv_tiers(engine: Engine, bytes_per_block: int, *, gpus: int) -> tuple[TierSpec, ...]:
    """The engine's tiers of memory; all its GPUs read and write their parts of a block at once.

    ValueError where one does not hold a block.
    """
    specs = []
    for tier in engine.tiers:
        each_bytes = bytes_per_block * (gpus if tier.kind == "shared" else 1)
        blocks = _blocks(tier.size_gib, each_bytes)
        name = engine.says_tiers if engine.kv_offloading_size_gib else f"kv_tiers {tier.kind}"
        _refuse_none(name, tier.size_gib, blocks, each_bytes)
        read, write = tier.read_rate, tier.write_rate
        specs.append(
            TierSpec(
                tier.kind,
                blocks,
                read_s=0.0 if read is None else bytes_per_block / (read * 1e9),
                write_s=0.0 if write is None else bytes_per_block / (write * 1e9),
                latency_s=tier.latency_s,
                ttl_s=tier.ttl_s or inf,
            )
        )
    return tuple(specs)


def _blocks(space_gib: float, bytes_each: int) -> int:
    return int(space_gib * GIB) // bytes_each


def _refuse_none(name: str, space_gib: float, blocks: int, bytes_each: int) -> None:
    if not blocks:
        raise ValueError(
            f"{name} {space_gib:g} does not hold even one block of {bytes_each / GIB:.3g} GiB"
        )


def with_block_moves(
    latency: LatencyModel, scenario: Scenario, memory: MemoryBudget, gpu: Gpu
) -> LatencyModel:
    """`latency` with what copying and swapping blocks costs, where the scenario can do either."""
    workload, given = scenario.workload, scenario.latency
    swapped_us = given.swapped_block_us or 0.0
    # Under chunked, samples share full blocks only, which nobody writes to.
    shares = scenario.engine.scheduler == "paged" and (
        workload.samples is not None or workload.beam_search is not None
    )
    if given.source == "fixed" or not (shares or swapped_us or scenario.engine.kv_tiers):
        return latency
    copied_bytes = 2 * memory.bytes_per_block  # read and written
    return BlockMoves(
        latency,
        copied_block_s=copied_bytes / (gpu.memory_bytes_per_s * _COPY_EFFICIENCY),
        swapped_block_s=swapped_us / 1e6,
    )
