"""The same requests at any rate."""

from pathlib import Path

import numpy as np
import pytest

from scenarios.errors import InputError
from scenarios.plan.replications import Replications
from tests.scenarios.plan.planning import small

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def trace(folder: Path, count: int, gap_s: float = 0.5) -> Path:
    rows = []
    for at in range(count):
        minute, second = divmod(at * gap_s, 60)
        rows.append(f"2023-11-16 18:{minute:02.0f}:{second:09.6f},{100 + at},{5 + at % 7}")
    path = folder / "trace.csv"
    path.write_text(HEADER + "\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("process", ["poisson", "constant", "{process: gamma, burstiness: 0.5}"])
def test_a_run_has_one_request_a_second_in_the_mean_whatever_rate_was_written(process: str) -> None:
    arrivals = process if process.startswith("{") else f"{{process: {process}}}"
    scenario = small(
        f"workload.arrivals={arrivals[:-1]}, request_rate: 17}}", "workload.time_scale=3.0"
    )
    runs = Replications(scenario.workload, scenario.engine, None, 3)
    for seed in range(3):
        drawn = runs.at_unit_rate(seed, 4000)
        assert len(drawn) == 4000
        assert drawn.arrival_s[-1] / 4000 == pytest.approx(1.0, rel=0.06)


def test_runs_differ_and_longer_runs_begin_the_same_way() -> None:
    scenario = small()
    runs = Replications(scenario.workload, scenario.engine, None, 3)
    first, again, other = (runs.at_unit_rate(seed, 200) for seed in (0, 0, 1))
    assert (first.arrival_s == again.arrival_s).all()
    assert (first.arrival_s != other.arrival_s).all()
    longer = runs.at_unit_rate(0, 500)
    for name in ("arrival_s", "prompt_tokens", "output_tokens"):
        assert (getattr(longer, name)[:200] == getattr(first, name)).all(), name


def test_a_trace_is_cut_into_as_many_pieces_as_there_are_runs(tmp_path: Path) -> None:
    settings = ["workload={}", f"workload.trace={trace(tmp_path, 1000)}"]
    scenario = small(*settings)
    runs = Replications(scenario.workload, scenario.engine, None, 4)
    assert runs.most_requests() == 250
    parts = [runs.at_unit_rate(seed, 1000) for seed in range(4)]
    assert [int(part.prompt_tokens[0]) for part in parts] == [100, 350, 600, 850]
    for part in parts:
        assert len(part) == 250
        assert part.arrival_s[-1] == pytest.approx(249.0)
    drawn = small(*settings, "workload.arrivals={process: poisson, request_rate: 5}")
    fresh = Replications(drawn.workload, drawn.engine, None, 4).at_unit_rate(1, 1000)
    assert (fresh.prompt_tokens == parts[1].prompt_tokens).all()
    assert np.diff(fresh.arrival_s).std() > 0.5, "Poisson arrivals in place of the recorded ones"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("workload.max_concurrency=5", "a closed loop has no arrival rate to plan for"),
        ("workload.arrivals={process: all_at_once}", "all_at_once has no rate to plan for"),
    ],
)
def test_a_workload_without_a_rate_cannot_be_planned_for(setting: str, words: str) -> None:
    scenario = small(setting)
    with pytest.raises(InputError, match=words):
        Replications(scenario.workload, scenario.engine, None, 3).check()


def test_a_trace_too_short_for_its_runs_is_refused(tmp_path: Path) -> None:
    scenario = small("workload={}", f"workload.trace={trace(tmp_path, 250)}")
    with pytest.raises(InputError, match="250 requests give 3 runs fewer than 100 requests each"):
        Replications(scenario.workload, scenario.engine, None, 3).check()
    Replications(scenario.workload, scenario.engine, None, 2).check()
