"""What the tests of serving share: a small latency model, workloads, and a comparison."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from hypothesis import strategies as st

from sim.batch import Batch
from sim.engine.simulation import simulate
from sim.records import Records
from sim.schedulers.engine_config import EngineConfig
from sim.workload import PromptContent, Workload

POLICIES = ("static", "dynamic", "orca", "paged", "chunked")


class LinearLatency:
    """Seconds linear in tokens and context, with awkward coefficients."""

    label = "linear (test)"
    measured = False
    uses_longest = False

    def __init__(self, base_s: float = 0.0137, per_token_s: float = 1.7e-4) -> None:
        self.base_s = base_s
        self.per_token_s = per_token_s

    def iteration_s(self, batch: Batch) -> float:
        prefill = sum(
            chunk.new_tokens * (chunk.cached_tokens + chunk.new_tokens) for chunk in batch.prefills
        )
        swapped = batch.swap_in_blocks + batch.swap_out_blocks
        fixed_s = self.base_s + batch.num_tokens * self.per_token_s
        fixed_s += prefill * 1.3e-6 + swapped * 1.1e-3
        return fixed_s + batch.context_tokens * 3.1e-6

    def run_ends_s(
        self, batch: Batch, start_s: float, iterations: int, until_s: float
    ) -> list[float]:
        fixed_s = self.base_s + batch.num_tokens * self.per_token_s
        ends_s: list[float] = []
        for j in range(iterations):
            start_s += fixed_s + (batch.context_tokens + j * batch.num_decodes) * 3.1e-6
            ends_s.append(start_s)
            if start_s >= until_s:
                break
        return ends_s

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"all": iterations["duration_s"]}


def assert_same_records(one: Records, other: Records) -> None:
    """Every column equal to the last bit."""
    for table in ("requests", "iterations", "preemptions"):
        columns, others = getattr(one, table), getattr(other, table)
        assert columns.keys() == others.keys()
        for name, column in columns.items():
            np.testing.assert_array_equal(column, others[name], err_msg=f"{table}.{name}")
    order, other_order = np.argsort(one.gaps_s), np.argsort(other.gaps_s)
    np.testing.assert_array_equal(one.gaps_s[order], other.gaps_s[other_order])
    assert one.gap_weights.sum() == other.gap_weights.sum()


def assert_gaps_add_up(records: Records) -> None:
    """A request's gaps are the time from its first token to its last, whatever came between."""
    waited_s = float(np.dot(records.gaps_s, records.gap_weights))
    requests = records.requests
    lasted_s = float(np.nansum(requests["last_token_s"] - requests["first_token_s"]))
    np.testing.assert_allclose(waited_s, lasted_s, rtol=1e-9, atol=1e-9)


@st.composite
def workloads(draw: st.DrawFn, *, longest: int = 70) -> Workload:
    """A few requests: bursts, equal arrivals, one-token outputs, sometimes shared prefixes."""
    count = draw(st.integers(1, 24))
    gaps = draw(
        st.lists(
            st.one_of(st.just(0.0), st.sampled_from([0.0137, 0.5]), st.floats(0.0, 2.0)),
            min_size=count,
            max_size=count,
        )
    )
    prompts = draw(st.lists(st.integers(1, longest), min_size=count, max_size=count))
    outputs = draw(
        st.lists(st.one_of(st.just(1), st.integers(1, 40)), min_size=count, max_size=count)
    )
    extra = draw(st.integers(0, 20))
    content = None
    if draw(st.booleans()):
        ids = [[draw(st.integers(0, 1))] * (longest // 2 + 1) for _ in range(count)]
        content = PromptContent.from_lists(
            [row[: -(-prompt // 2)] for row, prompt in zip(ids, prompts, strict=True)],
            unit_tokens=2,
            known_tokens=prompts,
        )
    return Workload(
        arrival_s=np.cumsum(gaps),
        prompt_tokens=np.array(prompts),
        output_tokens=np.array(outputs),
        max_tokens=np.array(outputs) + extra,
        content=content,
        max_concurrency=draw(st.one_of(st.none(), st.integers(1, 6))),
    )


@st.composite
def engines(draw: st.DrawFn) -> tuple[EngineConfig, int]:
    """An engine's limits and its KV blocks, tight ones too."""
    max_num_seqs = draw(st.integers(1, 8))
    config = EngineConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=draw(st.integers(max_num_seqs, 40)),
        block_size=draw(st.sampled_from([1, 3, 4, 16])),
        enable_prefix_caching=draw(st.booleans()),
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 5])),
        preemption=draw(st.sampled_from(["recompute", "swap"])),
        swap_blocks=draw(st.integers(0, 30)),
        watermark=draw(st.sampled_from([0.0, 0.01, 0.1])),
        reservation=draw(st.sampled_from(["max_tokens", "pow2", "oracle"])),
        preferred_batch_sizes=draw(st.sampled_from([(), (1,), (1, max_num_seqs)])),
        max_queue_delay_s=draw(st.sampled_from([0.0, 0.3])),
    )
    return config, draw(st.integers(1, 60))


def run(
    workload: Workload,
    config: EngineConfig,
    *,
    scheduler: str,
    num_blocks: int = 1000,
    latency: LinearLatency | None = None,
    leap: bool = True,
) -> Records:
    """Simulate with every invariant checked."""
    return simulate(
        workload,
        config,
        latency or LinearLatency(),
        scheduler=scheduler,
        num_blocks=num_blocks,
        leap=leap,
        check=True,
    )
