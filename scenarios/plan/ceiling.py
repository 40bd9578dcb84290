"""What a deployment can never do better than, from its latency model alone: nothing is simulated.

Idle latencies: a request that is alone in the engine is prefilled in one iteration and decodes in
iterations of one sequence. Company, chunks and queues only add to that.

Ceiling: iterations of the largest batches cost least per token. Each request needs its prefill's
share of a full prefill batch, and its output's share of a full decode batch; a mixed iteration
takes no less time than either part of it alone. So requests per second are at most one over the
larger of the two shares, whatever the scheduler does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from scenarios.forecast.deployment import Deployment
from scenarios.plan.objectives import Objective
from sim.batch import Batch, PrefillChunk
from sim.request import Request
from sim.workload import Workload

# A midpoint stands for a run of decodes, and a table has steps: what misses by less is simulated.
SLACK = 0.05


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Bounds of one replica for one workload.

    `requests_per_s` is never exceeded. `idle_s` has the lowest latency that each objective's
    percentile can have at any load, in the order of the objectives; 0 where nothing is known,
    because prompts may be found in the prefix cache.
    """

    requests_per_s: float
    idle_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Engines:
    """Equal engines of one replica: all of it, or one of its pools."""

    deployment: Deployment
    number: int
    role: str  # both, prefill or decode


def ceiling(
    engines: Sequence[Engines], workload: Workload, objectives: tuple[Objective, ...]
) -> Ceiling:
    """The bounds of one replica for requests like those of `workload`.

    Pools work side by side: the slower one bounds both.
    """
    prompts = workload.prompt_tokens.astype(np.float64)
    outputs = workload.output_tokens.astype(np.float64)
    decodes = outputs - 1
    rates: dict[str, float] = {}
    for each in engines:
        one, config = each.deployment, each.deployment.config
        cached = config.enable_prefix_caching and workload.content is not None
        prefill_s = decode_s = 0.0
        if each.role != "decode" and not cached:
            prefill_s = _prefill_share_s(one, float(prompts.mean()))
        if each.role != "prefill" and decodes.sum() > 0:
            # Averaged over decode iterations, not requests: long answers take more of them.
            context = float(np.average(prompts + outputs / 2, weights=decodes))
            rows = config.max_num_seqs
            if not cached:  # cached prefixes are held once for many
                rows = int(min(rows, max(1, one.memory.most_sequences(context))))
            per_row_s = one.latency.iteration_s(_decodes(rows, round(rows * context))) / rows
            decode_s = float(decodes.mean()) * per_row_s / _most_tokens(one)
        slowest_s = max(prefill_s, decode_s)
        rate = each.number / slowest_s if slowest_s > 0 else inf
        rates[each.role] = rates.get(each.role, 0.0) + rate
    idle = tuple(_idle_s(engines, workload, one) for one in objectives)
    return Ceiling(min(rates.values()), idle)


def _most_tokens(deployment: Deployment) -> int:
    """That one iteration can bring a sequence: with every draft accepted."""
    speculation = deployment.config.speculation
    return 1 if speculation is None else 1 + speculation.shape.depth


def _prefill_share_s(deployment: Deployment, prompt_tokens: float) -> float:
    """Seconds per prompt in the fullest batch of mean prompts that an iteration may hold."""
    config = deployment.config
    tokens = max(1, round(prompt_tokens))
    # Policies without a token budget prefill whole batches: there the memory is the limit.
    budget = max(config.max_num_batched_tokens, deployment.memory.slots)
    if deployment.scenario.engine.scheduler in ("chunked", "paged"):
        budget = config.max_num_batched_tokens
    prompts = max(1, min(config.max_num_seqs, budget // tokens))
    return deployment.latency.iteration_s(_prefills(prompts, tokens, ahead=True)) / prompts


def _idle_s(engines: Sequence[Engines], workload: Workload, objective: Objective) -> float:
    """A bound on what the objective's percentile of requests can have at best, in seconds.

    The latencies grow with the lengths, so the request at the rank of the percentile stands for
    its latency. Of several groups the fastest one counts.
    """
    labels = None if workload.labels is None else np.array(workload.labels)
    chosen = objective.concerned(labels, len(workload))
    prompts, outputs = workload.prompt_tokens[chosen], workload.output_tokens[chosen]
    cached = workload.content is not None and any(
        one.deployment.config.enable_prefix_caching for one in engines
    )
    if not len(prompts) or (cached and objective.metric != "tpot"):
        return 0.0
    first = [one.deployment for one in engines if one.role != "decode"]
    next_ = [one.deployment for one in engines if one.role != "prefill"]
    if objective.metric == "ttft":
        prompt = int(objective.at_rank(prompts.astype(np.float64)))
        return min(one.latency.iteration_s(_prefills(1, prompt)) for one in first)
    if objective.metric == "tpot":
        contexts = np.where(outputs > 1, prompts + outputs / 2, 0.0)
        context = round(objective.at_rank(contexts))
        return min(_token_s(one, context) for one in next_) if context else 0.0
    return min(
        objective.at_rank(_alone_s(one, other, prompts, outputs))
        for one in first
        for other in next_
    )


def _token_s(deployment: Deployment, context: int) -> float:
    """Seconds a token of a sequence that decodes alone, at best."""
    return deployment.latency.iteration_s(_decodes(1, context)) / _most_tokens(deployment)


def _alone_s(
    first: Deployment, next_: Deployment, prompts: NDArray[np.int64], outputs: NDArray[np.int64]
) -> NDArray[np.float64]:
    """End-to-end seconds of requests that are alone, each decode at its middle context."""
    found: NDArray[np.float64] = np.empty(len(prompts))
    for at, (prompt, output) in enumerate(zip(prompts.tolist(), outputs.tolist(), strict=True)):
        each_s = _token_s(next_, prompt + output // 2) if output > 1 else 0.0
        found[at] = first.latency.iteration_s(_prefills(1, prompt)) + (output - 1) * each_s
    return found


def _prefills(count: int, tokens: int, *, ahead: bool = False) -> Batch:
    """An iteration that prefills `count` whole prompts of `tokens` tokens.

    `ahead`: an engine that can decides it while the one before is computed.
    """
    chunks = [
        PrefillChunk(Request(number, 0.0, tokens, 1, 1), tokens, 0) for number in range(count)
    ]
    return Batch(
        prefills=chunks,
        num_tokens=count * tokens,
        num_emitting=count,
        num_seqs=count,
        decided_ahead=ahead,
    )


def _decodes(rows: int, context_tokens: int) -> Batch:
    """One of many iterations of `rows` decodes that attend to so many tokens together."""
    return Batch(
        num_decodes=rows,
        context_tokens=context_tokens,
        longest_tokens=-(-context_tokens // rows),
        num_tokens=rows,
        num_emitting=rows,
        num_seqs=rows,
        decided_ahead=True,
    )
