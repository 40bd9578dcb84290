"""A scenario's tiers of KV memory: sizes, rates, where the time goes, what the summary says."""

import pytest

from scenarios.errors import InputError
from scenarios.forecast.deployment import deploy
from scenarios.forecast.forecast import forecast
from scenarios.forecast.run_details import operator_seconds
from scenarios.schema.load import load_scenario
from sim.kv.tiers import TierSpec

SMALL = ("workload.num_requests=150", "engine.num_gpu_blocks_override=1000")
NONE = "engine.kv_offloading_size_gib=0"
HOST, NVME = "{kind: host, size_gib: 1}", "{kind: nvme, size_gib: 50}"


def figures(*settings, **how):
    scenario, origin = load_scenario("kv-offload", [*SMALL, *settings])
    return forecast(scenario, origin=origin, check=True, **how)


def specs(*settings):
    scenario, origin = load_scenario("kv-offload", settings)
    return deploy(scenario, origin=origin).config.kv_tiers


def test_the_host_tier_is_the_first_case_of_tiers() -> None:
    one = figures("engine.kv_offloading_size_gib=1")
    other = figures(NONE, f"engine.kv_tiers=[{HOST}]", "engine.kv_tier_reads=always")
    assert one.summary["kv_tiers"] == other.summary["kv_tiers"]
    for name, column in one.records.requests.items():
        assert (column == other.records.requests[name]).all(), name


def test_a_tier_is_as_large_and_as_fast_as_is_said_for_each_gpu() -> None:
    block = 2**21  # bytes of 16 tokens of Llama-3.1-8B
    (nvme,) = specs(NONE, "engine.kv_tiers=[{kind: nvme, size_gib: 2, read_gb_per_s: 7}]")
    assert nvme == TierSpec("nvme", 1024, block / 7e9, block / 3.5e9, 80e-6)
    halves = specs(
        NONE, "hardware.tensor_parallel=2",
        "engine.kv_tiers=[{kind: host, size_gib: 2, ttl_s: 9}, {kind: shared, size_gib: 2}]",
    )  # fmt: skip
    assert halves[0] == TierSpec("host", 2048, ttl_s=9)
    assert halves[1] == TierSpec("shared", 1024, block / 2 / 21.75e9, block / 2 / 21.75e9, 300e-6)


def test_a_row_for_each_tier_and_the_time_of_reading() -> None:
    ran = figures(NONE, f"engine.kv_tiers=[{HOST}, {NVME}]")
    rows = {row["kind"]: row for row in ran.summary["kv_tiers"]}
    assert list(rows) == ["device", "host", "nvme"]
    found = sum(row["found_blocks"] for row in rows.values())
    assert 16 * found == ran.summary["cached_prompt_tokens"]
    assert rows["nvme"]["read_bytes"] == 2**21 * rows["nvme"]["found_blocks"] > 0
    assert 0 < rows["host"]["held_blocks"] <= rows["host"]["blocks"] == 512
    assert sum(row["hit_rate"] for row in rows.values()) < 1
    reading_s = ran.records.iterations["tier_s"].sum()
    assert 0 < reading_s < ran.summary["time_parts_s"]["swap"]
    through = figures(
        NONE, f"engine.kv_tiers=[{HOST}, {NVME}]", "engine.kv_tier_writes=through"
    ).summary["kv_tiers"]
    assert through[1]["stored_blocks"] > rows["host"]["stored_blocks"]


@pytest.mark.parametrize("ahead", ["true", "false"])
def test_the_parts_of_the_time_add_up_with_tiers(ahead: str) -> None:
    ran = figures(
        NONE, f"engine.kv_tiers=[{HOST}, {NVME}]", f"engine.async_scheduling={ahead}",
        "engine.scheduler=chunked", "latency.swapped_block_us=2",
    )  # fmt: skip
    duration_s = ran.records.iterations["duration_s"]
    assert sum(ran.summary["time_parts_s"].values()) == pytest.approx(duration_s.sum())
    by_class = operator_seconds(ran.deployment, ran.records.iterations)
    assert sum(by_class.values()) == pytest.approx(duration_s, rel=1e-5)
    assert (by_class["swap"] >= 0.999 * ran.records.iterations["tier_s"]).all()


def test_what_is_slower_to_fetch_than_to_compute_is_computed() -> None:
    slow = "engine.kv_tiers=[{kind: nvme, size_gib: 50, read_gb_per_s: 0.05}]"
    weighed, always = (
        figures(NONE, slow, f"engine.kv_tier_reads={how}").summary for how in ("faster", "always")
    )
    assert weighed["mean_ttft_ms"] < always["mean_ttft_ms"]
    assert weighed["kv_tiers"][1]["passed_over_blocks"] > 0 == weighed["loaded_blocks"]
    assert always["kv_tiers"][1]["passed_over_blocks"] == 0 < always["loaded_blocks"]


def test_replicas_share_a_store_and_leap_as_they_step() -> None:
    two = (
        NONE, "cluster.replicas=2", f"engine.kv_tiers=[{HOST}, {{kind: shared, size_gib: 50}}]",
        "engine.kv_tier_writes=through",
    )  # fmt: skip
    leapt, stepped = figures(*two), figures(*two, leap=False)
    assert leapt.summary["kv_tiers"] == stepped.summary["kv_tiers"]
    own = figures(NONE, "cluster.replicas=2", f"engine.kv_tiers=[{HOST}, {NVME}]").summary
    shared = leapt.summary
    assert shared["kv_tiers"][2]["blocks"] == 25600
    assert shared["prefix_cache_hit_rate"] > own["prefix_cache_hit_rate"]


def test_policies_without_tiers_are_said_to_do_nothing() -> None:
    scenario, origin = load_scenario("quickstart", ["engine.kv_tier_writes=through"])
    notes = deploy(scenario, origin=origin).notes
    assert any("kv_tier_writes has no effect without engine.kv_tiers" in note for note in notes)


def test_a_tier_that_holds_no_block_is_refused() -> None:
    with pytest.raises(InputError, match="kv_tiers nvme 1e-05 does not hold even one block"):
        specs(NONE, "engine.kv_tiers=[{kind: nvme, size_gib: 0.00001}]")
