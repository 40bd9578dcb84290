"""Running a sweep: each point once, whoever runs it; failures stay where they are."""

import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import orcast
from scenarios.errors import InputError
from scenarios.sweep import point_answer, point_workers
from scenarios.sweep.axes import axis_from_text
from scenarios.sweep.point_answer import Task, answer
from scenarios.sweep.point_store import PointStore
from scenarios.sweep.point_workers import Answers, local_workers
from scenarios.sweep.points import Study, load_study
from scenarios.sweep.sweep import SATURATED, SweepResult, resolved, run_sweep
from tests import needs

SMALL = ["workload.num_requests=40"]
AXES = ["engine.max_num_seqs=2,8", "engine.block_size=16,32"]


def small(*axes: str, settings: Sequence[str] = (), name: str = "quickstart") -> Study:
    return load_study(name, [*SMALL, *settings], [axis_from_text(axis) for axis in axes or AXES])


def here(study: Study, folder: Path | None = None) -> SweepResult:
    return run_sweep(study, local_workers(1), folder=folder)


def test_a_point_is_what_a_run_of_its_scenario_is() -> None:
    settings = ["engine.max_num_batched_tokens=512", "engine.enable_prefix_caching=false",
                "engine.scheduler=paged", "engine.watermark=0.2",
                "latency.source=roofline"]  # fmt: skip
    table = here(small(settings=[*settings, "sweep.seeds=2"])).table
    for row in range(table.num_runs):
        overrides = {
            "workload.num_requests": 40,
            "workload.seed": table.columns["seed"][row],
            "engine.max_num_batched_tokens": 512,
            "engine.enable_prefix_caching": False,
            "engine.scheduler": "paged",
            "engine.watermark": 0.2,
            "latency.source": "roofline",
            **{path: table.columns[path][row] for axis in table.axes for path in axis},
        }
        summary = orcast.simulate("quickstart", overrides).summary
        for name in ("p99_ttft_ms", "std_tpot_ms", "output_throughput", "iterations", "slo_met"):
            assert table.columns[name][row] == summary[name]
        assert table.columns["kv_share.used"][row] == summary["kv_share"]["used"]


def test_nothing_of_the_clock_on_the_wall_is_in_the_table() -> None:
    table = here(small()).table
    assert not {"wall_s", "simulated_requests_per_s", "mode"} & table.columns.keys()
    assert here(small()).table == table


def test_a_repeated_point_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = here(small(), tmp_path)
    assert (first.computed, first.reused) == (4, 0)

    def fails(_: Task) -> str:
        raise AssertionError("was run again")

    monkeypatch.setattr(point_workers, "answer", fails)
    again = here(small(), tmp_path)
    assert (again.computed, again.reused) == (0, 4)
    assert again.table == first.table
    monkeypatch.undo()
    wider = here(small("engine.max_num_seqs=2,4,8", AXES[1]), tmp_path)
    assert (wider.computed, wider.reused) == (2, 4), "what another sweep asked counts too"


def test_a_file_that_cannot_be_read_is_asked_again(tmp_path: Path) -> None:
    first = here(small(), tmp_path)
    stored = sorted((tmp_path / "points").iterdir())
    assert len(stored) == 4
    stored[0].write_text('{"metrics": {"completed"')
    stored[1].write_text("")
    again = here(small(), tmp_path)
    assert (again.computed, again.reused) == (2, 2)
    assert again.table == first.table


def test_a_failing_point_has_its_error_and_the_others_go_on(tmp_path: Path) -> None:
    study = small("model=qwen3-0.6b,llama-2-70b,no-such-model", "hardware.gpu=rtx-4090,l40s")
    result = here(study, tmp_path)
    errors = result.table.columns["error"]
    assert [error is None for error in errors] == [True, True, False, False, False, False]
    assert errors[2].startswith("hardware: llama-2-70b does not fit on 1 x rtx-4090: ")
    assert errors[4].startswith("model: unknown model 'no-such-model'")
    assert result.table.columns["completed"] == [40, 40, None, None, None, None]
    assert "4 of 6 runs failed and have no figures" in result.warnings[0]
    again = here(study, tmp_path)
    assert (again.computed, again.reused) == (0, 6), "that it fails is known"
    assert again.table == result.table


def test_a_bug_in_one_point_is_an_error_of_that_point(monkeypatch: pytest.MonkeyPatch) -> None:
    real = point_answer.forecast

    def forecast(scenario, **given):  # type: ignore[no-untyped-def]
        if scenario.engine.max_num_seqs == 2:
            raise RuntimeError("the scheduler is stuck")
        return real(scenario, **given)

    monkeypatch.setattr(point_answer, "forecast", forecast)
    errors = here(small()).table.columns["error"]
    assert errors == ["RuntimeError: the scheduler is stuck"] * 2 + [None] * 2


def test_what_may_go_better_next_time_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forecast(*_: object, **__: object) -> None:
        raise MemoryError("too much")

    monkeypatch.setattr(point_answer, "forecast", forecast)
    failed = here(small(), tmp_path)
    assert failed.table.errors == ["MemoryError: too much"] * 4
    monkeypatch.undo()
    assert here(small(), tmp_path).table.errors == []


@needs.linux  # what is patched here is not there elsewhere
def test_a_process_that_dies_takes_only_its_own_point_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = here(small()).table.columns["p99_ttft_ms"]

    real, parent = point_answer.forecast, os.getpid()

    def dies(scenario, **given):  # type: ignore[no-untyped-def]
        if scenario.engine.max_num_seqs == 2 and scenario.engine.block_size == 32:
            assert os.getpid() != parent
            os.kill(os.getpid(), signal.SIGKILL)
        return real(scenario, **given)

    monkeypatch.setattr(point_answer, "forecast", dies)  # the workers are forked: theirs too
    result = run_sweep(small(), local_workers(2), folder=tmp_path)
    assert result.table.errors == ["the process that simulated it was killed (out of memory?)"]
    figures = result.table.columns["p99_ttft_ms"]
    assert [figures[0], *figures[2:]] == [expected[0], *expected[2:]]
    assert len(list((tmp_path / "points").iterdir())) == 3
    monkeypatch.undo()
    assert here(small(), tmp_path).table.columns["p99_ttft_ms"] == expected


def test_the_order_of_answers_makes_no_difference() -> None:
    def backwards(tasks: Sequence[Task]) -> Answers:
        def answers() -> Iterator[tuple[Task, str]]:
            for task in reversed(tasks):
                yield task, answer(task)

        return answers()

    study = small("engine.scheduler=static,chunked", *AXES)
    assert run_sweep(study, backwards).table == here(study).table


def test_progress_counts_up_to_all() -> None:
    seen = []
    run_sweep(small(), local_workers(1), progress=lambda *counts: seen.append(counts))
    assert seen == [(done, 4, 0) for done in range(5)]


def test_a_metric_that_no_run_has_is_refused_before_anything_runs(tmp_path: Path) -> None:
    study = small(settings=["sweep.metrics=[p99_ttfft_ms]"])
    with pytest.raises(InputError, match=r"sweep\.metrics: 'p99_ttfft_ms' is no figure of a run; "
                                         r"did you mean 'p99_ttft_ms'\?"):  # fmt: skip
        here(study, tmp_path)
    assert not list(tmp_path.iterdir())
    asked = small(settings=["sweep.metrics=[kv_share.used, preemptions]"])
    assert here(asked).table.metrics == ("kv_share.used", "preemptions")


def test_warnings_of_the_runs_are_gathered() -> None:
    study = small("engine.scheduler=static,chunked", settings=["engine.preemption=swap"])
    told = ("not measured", "saturated: ")
    said = [text for text in here(study).warnings if not any(one in text for one in told)]
    assert len(said) == 2
    assert all(text.startswith("1 of 2 runs: engine.preemption has no effect") for text in said)


def test_times_that_nobody_measured_are_said_to_be_so_once() -> None:
    said = [text for text in here(small()).warnings if "not measured" in text]
    assert said == [
        "Iteration times are analytic, not measured: trust the differences between settings more "
        "than the absolute times."
    ]


def test_runs_that_are_overrun_are_counted_as_one_thing() -> None:
    said = here(
        small("workload.arrivals.request_rate=1,400,800", settings=["workload.num_requests=1500"])
    ).warnings
    assert [text for text in said if "aturated" in text] == [f"2 of 3 runs: {SATURATED}"]


def test_seeds_that_draw_nothing_are_said_to(tmp_path: Path) -> None:
    axes = [axis_from_text("engine.max_num_seqs=2,4")]
    study = load_study("static-vs-continuous", ["sweep.seeds=3"], axes)
    assert here(study).warnings[-1].endswith("the seeds make no difference")


def test_a_resolved_sweep_is_a_scenario_that_asks_the_same(tmp_path: Path) -> None:
    study = small(settings=["sweep.seeds=2"])
    first = here(study, tmp_path)
    path = tmp_path / "again.yaml"
    path.write_text(json.dumps(resolved(study, first.table.metrics)))
    again = here(load_study(str(path)), tmp_path)
    assert (again.computed, again.reused) == (0, 8)
    assert again.table == first.table


def test_half_written_answers_are_never_seen(tmp_path: Path) -> None:
    store = PointStore(tmp_path)
    store.write("a" * 32, '{"metrics": {}, "warnings": []}')
    assert [path.name for path in (tmp_path / "points").iterdir()] == [f"{'a' * 32}.json"]
    assert store.read("a" * 32) == {"metrics": {}, "warnings": []}
    assert store.read("b" * 32) is None


def test_an_answer_that_was_changed_on_disk_is_computed_again_and_counted(tmp_path: Path) -> None:
    first = here(small(), tmp_path)
    files = sorted((tmp_path / "points").iterdir())
    files[0].write_text(files[0].read_text().replace('"completed": ', '"completed": 1'))
    files[1].write_text(files[1].read_text()[:-20])
    files[2].write_text(files[3].read_text())  # another point's
    again = here(small(), tmp_path)
    assert again.computed == 3 and again.table.columns == first.table.columns
    assert again.warnings[-1] == "3 kept answers were damaged and have been computed again"
    assert here(small(), tmp_path).computed == 0
