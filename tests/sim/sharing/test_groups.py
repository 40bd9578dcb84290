"""Under `paged` a request for several answers is admitted, preempted and finished as a whole."""

import numpy as np
import pytest

from sim.cluster.cluster import simulate_cluster
from sim.cluster.plan import Failure, KvLink, ReplicaGroup
from sim.engine.simulation import simulate
from sim.kv.cache import BlockAllocator
from sim.latency.protocol import FixedLatency
from sim.request import BeamSearch, Emission, Request, SampleGroup
from sim.schedulers import SCHEDULERS
from sim.schedulers.engine_config import EngineConfig
from sim.sharing.schedulers import sampling
from sim.sharing.splitting import next_hypotheses, split
from sim.workload import Workload
from tests.sim.serving import LinearLatency, assert_same_records, run
from tests.sim.sharing.sampling import with_samples


def a_beam(width: int, *, survival: float, seed: int = 0, prompt_tokens: int = 10) -> SampleGroup:
    request = Request(0, 0.0, prompt_tokens, 50, 50)
    return SampleGroup(request, [50] * width, BeamSearch(survival, seed))


def test_a_request_ends_with_its_longest_sample() -> None:
    workload = with_samples(Workload(np.zeros(1), [8], [1]), [[3, 12, 1, 7]])
    records = simulate(workload, EngineConfig(), FixedLatency(1.0), scheduler="paged",
                       num_blocks=100)  # fmt: skip
    requests, iterations = records.requests, records.iterations
    assert requests["first_token_s"].tolist() == [1.0]
    assert requests["finished_s"].tolist() == requests["last_token_s"].tolist() == [12.0]
    assert (requests["samples"][0], requests["sampled_tokens"][0]) == (4, 23)
    assert iterations["emitted"].tolist() == [4, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1]
    assert iterations["num_emitting"].tolist()[0] == 1, "one row of logits gives all first tokens"


def test_all_samples_are_admitted_together_or_none() -> None:
    workload = with_samples(Workload(np.zeros(3), [8, 8, 8], [5, 5, 5]), [[5] * 3] * 3)
    config = EngineConfig(max_num_seqs=8)
    records = run(workload, config, scheduler="paged")
    # Two requests of three fill six of eight seats; the third has to wait for one to end.
    assert records.iterations["running"].max() == 2
    assert records.iterations["num_seqs"].max() == 6
    assert records.requests["scheduled_s"][2] >= records.requests["finished_s"][:2].min()
    too_many = EngineConfig(max_num_seqs=2)
    assert run(workload, too_many, scheduler="paged").requests["rejected"].all()


def test_the_prompt_is_computed_once_for_all_samples() -> None:
    workload = with_samples(Workload(np.zeros(5), np.full(5, 33), np.full(5, 9)), [[9] * 4] * 5)
    records = run(workload, EngineConfig(enable_prefix_caching=False), scheduler="paged")
    assert records.iterations["prefill_tokens"].sum() == 5 * 33
    assert records.iterations["copied_blocks"].sum() == 5 * 3


def test_samples_that_run_in_step_are_leapt_over() -> None:
    workload = with_samples(Workload(np.zeros(4), np.full(4, 20), np.full(4, 200)), [[200] * 3] * 4)

    class Counting(LinearLatency):
        calls = 0

        def iteration_s(self, batch):  # type: ignore[no-untyped-def]
            self.calls += 1
            return super().iteration_s(batch)

        def run_ends_s(self, batch, start_s, iterations, until_s):  # type: ignore[no-untyped-def]
            self.calls += 1
            return super().run_ends_s(batch, start_s, iterations, until_s)

    leaping, stepping = Counting(), Counting()
    leapt = run(workload, EngineConfig(), scheduler="paged", latency=leaping)
    stepped = run(workload, EngineConfig(), scheduler="paged", latency=stepping, leap=False)
    assert_same_records(leapt, stepped)
    assert leaping.calls < 6 and stepping.calls >= 200


def test_a_group_is_preempted_as_a_whole_and_recomputes_its_prompt_once() -> None:
    workload = with_samples(Workload(np.zeros(2), [16, 16], [30, 30]), [[30] * 3] * 2)
    # What is kept free keeps the later one out until the first has ended.
    config = EngineConfig(block_size=4, enable_prefix_caching=False, watermark=0.1)
    records = run(workload, config, scheduler="paged", num_blocks=32)
    assert records.requests["preemptions"].tolist() == [0, 1], "the later one, all its samples"
    start_s, preempted_s = records.iterations["start_s"], records.preemptions["preempted_s"][0]
    emitted_before = int(records.iterations["emitted"][start_s < preempted_s].sum()) // 2 // 3
    recomputed = records.iterations["prefill_tokens"].sum() - 2 * 16
    assert recomputed == 16 + 3 * emitted_before


def test_the_whole_group_crosses_the_host_link_with_each_block_once() -> None:
    workload = with_samples(Workload(np.zeros(2), [16, 16], [30, 30]), [[30] * 3] * 2)
    config = EngineConfig(block_size=4, preemption="swap", swap_blocks=40, watermark=0.0)
    records = run(workload, config, scheduler="paged", num_blocks=32)
    assert records.requests["preemptions"].sum() >= 1
    assert records.iterations["prefill_tokens"].sum() == 2 * 16, "nothing is computed twice"
    moved = records.iterations["swap_blocks"][records.iterations["swap_blocks"] > 0]
    assert moved[0] < 3 * -(-46 // 4), "fewer than three whole tables"
    assert moved[0] == moved[1], "what went out comes in"


def test_a_group_with_a_last_token_in_flight_is_computed_again_not_swapped() -> None:
    workload = with_samples(Workload(np.zeros(3), [4, 4, 4], [6, 6, 6]), [[6, 2]] * 3)
    config = EngineConfig(
        block_size=4, max_num_seqs=6, preemption="swap", swap_blocks=50, watermark=0.0,
        async_scheduling=True,
    )  # fmt: skip
    records = run(workload, config, scheduler="paged", num_blocks=6)
    assert records.requests["preemptions"].sum() > 0
    assert records.iterations["emitted"].sum() == 3 * (6 + 2)


def test_static_and_reserving_policies_cannot_share() -> None:
    for name in ("static", "dynamic", "orca"):
        with pytest.raises(ValueError, match="paged blocks"):
            sampling(SCHEDULERS[name])


# -- beam search ----------------------------------------------------------------------------------


def test_a_hypothesis_without_successor_takes_over_a_fork_and_its_blocks_come_back() -> None:
    allocator, group = BlockAllocator(40, 4), a_beam(4, survival=0.0, seed=3)
    allocator.allocate(group.request.block_table, 3)
    split(group, allocator, Emission(0.0))
    for sample in group.samples:  # private last blocks
        allocator.write(sample.block_table, 2)
    before = [list(sample.block_table) for sample in group.samples]
    assert next_hypotheses(group, allocator)
    after = [sample.block_table for sample in group.samples]
    assert all(table in before for table in after), "everyone is a fork of one that was there"
    survivors = {tuple(table) for table in after}
    assert allocator.num_used == 2 + len(survivors), "nobody's blocks are kept"
    allocator.check(after)


def test_hypotheses_that_all_survive_share_the_prompt_only() -> None:
    allocator, group = BlockAllocator(40, 4), a_beam(3, survival=1.0)
    allocator.allocate(group.request.block_table, 3)
    split(group, allocator, Emission(0.0))
    assert not any(next_hypotheses(group, allocator) for _ in range(50))


def test_beams_share_more_than_samples_and_the_more_the_less_they_survive() -> None:
    plain = Workload(np.zeros(8), np.full(8, 20), np.full(8, 120))

    def held(survival: float | None) -> float:
        beam = None if survival is None else BeamSearch(survival)
        workload = with_samples(plain, [[120] * 4] * 8, beam)
        iterations = run(workload, EngineConfig(block_size=4), scheduler="paged").iterations
        return float(iterations["kv_used_tokens"].mean())

    sampled = held(None)
    assert held(1.0) == pytest.approx(sampled, rel=0.01)
    assert sampled > 1.2 * held(0.98) > 1.2 * held(0.5)


def test_the_same_seed_gives_the_same_beams_and_another_gives_others() -> None:
    plain = Workload(np.zeros(6), np.full(6, 9), np.full(6, 40))

    def copies(seed: int) -> list[int]:
        workload = with_samples(plain, [[40] * 4] * 6, BeamSearch(0.8, seed))
        records = run(workload, EngineConfig(block_size=4), scheduler="paged")
        columns: list[int] = records.iterations["copied_blocks"].tolist()
        return columns

    assert copies(1) == copies(1) != copies(2)


# -- clusters -------------------------------------------------------------------------------------


def a_cluster(leap: bool, beam: BeamSearch | None = None):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(5)
    outputs = rng.integers(5, 60, 60)
    plain = Workload(np.cumsum(rng.exponential(0.05, 60)), rng.integers(5, 60, 60), outputs)
    workload = with_samples(plain, [[int(n)] * 3 for n in outputs], beam)
    config = EngineConfig(max_num_seqs=12, block_size=4)
    group = ReplicaGroup(3, config, LinearLatency(), "paged", 150)
    failures = [Failure(1, 0.9, 1.0), Failure(2, 2.0)]
    return simulate_cluster(
        workload, [group], router="least_kv", failures=failures, leap=leap, check=True
    )[0]


@pytest.mark.parametrize("beam", [None, BeamSearch(0.7)], ids=["samples", "beam"])
def test_samples_survive_the_failure_of_a_replica(beam: BeamSearch | None) -> None:
    leapt, stepped = a_cluster(True, beam), a_cluster(False, beam)
    assert_same_records(leapt, stepped)
    assert leapt.requests["retries"].sum() > 0
    assert not leapt.requests["rejected"].any() and len(leapt.requests["request"]) == 60


def test_samples_do_not_move_between_pools() -> None:
    workload = with_samples(Workload(np.zeros(1), [8], [5]), [[5, 5]])
    groups = [
        ReplicaGroup(1, EngineConfig(), LinearLatency(), "paged", 50, role="prefill"),
        ReplicaGroup(1, EngineConfig(), LinearLatency(), "paged", 50, role="decode"),
    ]
    with pytest.raises(ValueError, match="several samples"):
        simulate_cluster(workload, groups, kv_link=KvLink(1e9))
