"""Whatever a scenario asks for: leaping gives what stepping gives, and every request ends once.

``ORCAST_DRAWN_SCENARIOS=5000`` draws that many, in two minutes or so, and prints with ``-s`` how
often what is hard in itself was served together with what is hard too; all pairs have to be.
"""

from __future__ import annotations

import os
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from scenarios.errors import InputError
from scenarios.forecast.forecast import forecast
from scenarios.forecast.served import serve
from scenarios.schema.load import parse_scenario
from sim.records import Records
from tests.scenarios.forecast.drawn_scenarios import Section, drawn_scenarios
from tests.scenarios.forecast.refused import PAGE, is_listed
from tests.sim.serving import assert_gaps_add_up, assert_same_records

EXAMPLES = int(os.environ.get("ORCAST_DRAWN_SCENARIOS", "200"))


def served(content: Section) -> bool:
    """Serve a scenario in both modes and look at its records; False where it is refused."""
    try:
        found = forecast(parse_scenario(content, origin="drawn"), check=True)
    except InputError as error:
        assert "\n" not in str(error)
        assert is_listed(str(error)), f"not in {PAGE.name}: {error}"
        return False
    stepped, _ = serve(found.deployment, leap=False, check=True)
    for name in found.records.requests.keys() - stepped.requests.keys():
        del found.records.requests[name]  # what a forecast adds
    assert_same_records(found.records, stepped)
    workload = found.deployment.workload
    assert_every_request_ends_once(stepped, len(workload))
    assert_time_goes_on(stepped, pipeline=found.deployment.parallelism.pipeline_parallel > 1)
    if workload.samples is None:
        assert_gaps_add_up(stepped)
    return True


MIXTURES = ("mixtral-8x7b", "granite-4-h-small")
HYBRIDS = ("gemma-3-12b", "mistral-7b-v0.1", "granite-4-h-small")


def hard(content: Section) -> list[str]:
    """Which of the things that went wrong together before a scenario has."""
    cluster, engine = content["cluster"], content["engine"]
    groups = cluster.get("groups", ())
    found = {
        "closed loop": "max_concurrency" in content["workload"],
        "experts": content["model"] in MIXTURES,
        "failures": bool(cluster.get("failures")),
        "hybrid": content["model"] in HYBRIDS,
        "pools": any(group["role"] != "both" for group in groups),
        "tiers": "kv_tiers" in engine,
    }
    return [name for name, has in found.items() if has]


def assert_every_request_ends_once(records: Records, count: int) -> None:
    requests = records.requests
    assert sorted(requests["request"].tolist()) == list(range(count))
    assert (np.isnan(requests["finished_s"]) == requests["rejected"]).all()
    assert records.iterations["finished"].sum() >= (~requests["rejected"]).sum()


def assert_time_goes_on(records: Records, *, pipeline: bool) -> None:
    requests, iterations = records.requests, records.iterations
    answered = ~requests["rejected"]
    names = ("arrival", "scheduled", "first_token", "last_token", "finished")
    for earlier_s, later_s in pairwise(requests[f"{name}_s"][answered] for name in names):
        assert (earlier_s <= later_s).all()
    assert (iterations["duration_s"] > 0).all()
    assert (iterations["waiting"] >= 0).all()
    if pipeline:
        return
    for replica in np.unique(iterations["replica"]):
        mine = iterations["replica"] == replica
        start_s, ends_s = (
            iterations["start_s"][mine],
            iterations["start_s"] + iterations["duration_s"],
        )
        assert (start_s[1:] - ends_s[mine][:-1] > -1e-9).all(), "one iteration after the other"


def test_leaping_gives_what_stepping_gives_and_every_request_ends_once() -> None:
    counted: Counter[bool] = Counter()
    together: Counter[tuple[str, ...]] = Counter()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(drawn_scenarios())
    def each(content: Section) -> None:
        ended = served(content)
        counted[ended] += 1
        if ended:
            together.update(combinations(hard(content), 2))
            together.update(combinations(hard(content), 3))

    each()
    assert counted[True] >= counted[False], "most of what is drawn is refused"
    if EXAMPLES >= 2000:
        print(f"\n{counted[True]} served, {counted[False]} refused")
        for names in sorted(together):
            print(f"  {' x '.join(names)}: {together[names]}")
        drawn = {pair for pair in together if len(pair) == 2}
        assert drawn == set(combinations(sorted({name for pair in drawn for name in pair}), 2))
        assert len(drawn) == 15


def fixed(prompt: int, output: int) -> Section:
    return {
        "prompt": {"distribution": "fixed", "tokens": prompt},
        "output": {"distribution": "fixed", "tokens": output},
    }


LLAMA = {"name": "drawn", "model": "llama-3.1-8b", "hardware": {"gpu": "h200-sxm"}}
POISSON = {"process": "poisson", "request_rate": 5.0}
HAVE_FAILED: dict[str, Section] = {
    "ranks in lockstep without graphs ask what an empty iteration takes": {
        "name": "drawn",
        "model": "mixtral-8x7b",
        "hardware": {"gpu": "h200-sxm", "data_parallel": 4, "expert_parallel": 4},
        "engine": {
            "scheduler": "paged", "block_size": 16, "num_gpu_blocks_override": 125,
            "kv_tiers": [{"kind": "host", "size_gib": 0.05}],
        },
        "workload": {"arrivals": POISSON, "lengths": fixed(64, 4), "num_requests": 3},
        "cluster": {"replicas": 1},
    },
    "samples of which nobody asked for a second": LLAMA
    | {
        "engine": {"scheduler": "chunked"},
        "workload": {
            "arrivals": {"process": "all_at_once"}, "lengths": fixed(20, 6), "num_requests": 1,
            "samples": {"n": [1, 4], "lengths": "independent"},
        },
        "cluster": {"replicas": 1},
    },
    "a failure amid a static batch that clients wait for": LLAMA
    | {
        "engine": {"scheduler": "static", "max_num_seqs": 1},
        "latency": {"host_overhead": {"per_iteration_us": 100}},
        "workload": {
            "arrivals": {"process": "all_at_once"}, "lengths": fixed(200, 60), "num_requests": 20,
            "max_concurrency": 1,
        },
        "cluster": {"router": "least_kv", "failures": [{"replica": 0, "at_s": 0.5}]},
    },
    "an autoscaler that looks every nanosecond": LLAMA
    | {
        "workload": {"arrivals": POISSON, "lengths": fixed(64, 4), "num_requests": 8},
        "cluster": {
            "replicas": 4, "autoscaling": {"target_outstanding": 1.0, "check_every_s": 1e-9},
        },
    },
    "a mixture of experts that is gone before it has computed anything": {
        "name": "drawn",
        "model": "mixtral-8x7b",
        "hardware": {"gpu": "h200-sxm", "tensor_parallel": 2},
        "workload": {"arrivals": POISSON, "lengths": fixed(64, 4), "num_requests": 5},
        "cluster": {"failures": [{"replica": 0, "at_s": 0.0}]},
    },
    "a prefill pool that waits for the link": LLAMA
    | {
        "latency": {"source": "fixed", "iteration_ms": 10.0},
        "workload": {
            "arrivals": {"process": "constant", "request_rate": 0.1}, "lengths": fixed(8000, 41),
            "num_requests": 10,
        },
        "cluster": {
            "groups": [{"replicas": 1, "role": role} for role in ("prefill", "decode")],
            "kv_link": {"bandwidth_gb_per_s": 1.0},
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HAVE_FAILED)
def test_what_has_failed_before(name: str) -> None:
    content = HAVE_FAILED[name]
    assert served(content)
    assert served(content | {"workload": content["workload"] | {"num_requests": 5}})
