"""What measuring does when clocks throttle, memory or disk is short, and repeats disagree."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests import needs

torch = pytest.importorskip("torch", reason=needs.KERNELS)
pytest.importorskip("triton", reason=needs.KERNELS)

from calibrate.device.clocks import ClockLog  # noqa: E402
from calibrate.device.environment import CalibrationError, require_device  # noqa: E402
from calibrate.device.timer import Call, Timer  # noqa: E402
from calibrate.measure.grids import refinement  # noqa: E402
from calibrate.measure.journal import Journal, Take  # noqa: E402
from calibrate.measure.measuring import Measuring  # noqa: E402
from calibrate.measure.parts import Bench, Point  # noqa: E402
from sim.latency.table_data import Part  # noqa: E402
from sim.latency.table_folder import table_of  # noqa: E402

FULL_DISK = Path("/dev/full")


def fake_nvidia_smi(folder: Path, reasons: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver that answers every query with these clock event reasons; counts its calls."""
    tool = folder / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        f'echo call >> "{folder}/calls"\n'
        'case "$1" in *name,driver*) echo "NVIDIA H200, 550.54";;\n'
        f'*) echo "1200, 1980, 3201, 84, 690.5, {reasons}";; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "calls"


def bench(times_us: dict[Point, list[float]], axis: tuple[int, ...] = (1, 2, 4, 8)) -> Bench:
    """A part whose calls say themselves how long they took: the next of a point's times."""

    def calls(point: Point) -> list[list[Call]]:
        left = times_us.get(point, [100.0])
        time_us = left.pop(0) if len(left) > 1 else left[0]
        if time_us < 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [[lambda: time_us / 1e6]]

    return Bench("logits", (axis,), lambda point: True, calls)


def measuring(folder: Path, *, clocks: ClockLog | None = None) -> Measuring:
    journal = Journal(folder / "journal.jsonl", {"whose": "test"}, fastest=True)
    log = clocks or ClockLog(wanted=False)
    return Measuring(journal, Timer("cpu"), log, cool=lambda seconds: None)


def test_a_throttled_clock_is_noticed_measured_again_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_nvidia_smi(tmp_path, "0x0000000000000040", monkeypatch)
    clocks = ClockLog(interval_s=0.0)
    assert clocks.watching
    told = measuring(tmp_path, clocks=clocks)
    told.run(bench({}, (1,)), until_s=0.0)
    (warning,) = told.journal.records["throttled"]
    assert "thermal limit (hardware)" in warning["text"]
    assert "1200 of 1980 MHz" in warning["text"]
    assert len(calls.read_text().splitlines()) >= 3 + 2, "sampled after every attempt"
    summary = clocks.summary()
    assert summary is not None and summary["throttled"] == summary["samples"]


def test_a_gpu_that_stays_hot_is_waited_for_no_longer_than_agreed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvidia_smi(tmp_path, "0x0000000000000040", monkeypatch)
    told = measuring(tmp_path, clocks=ClockLog(interval_s=0.0))
    waited: list[float] = []
    told.cool, told.cooling_s = waited.append, 10.0
    told.run(bench({}, (1, 2, 4, 8)), until_s=float("inf"))
    assert sum(waited) == 9.0
    assert len(told.journal.records["throttled"]) == 1
    assert len(told.journal.of("logits").takes) == 4


def test_the_power_cap_is_recorded_and_is_no_throttling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvidia_smi(tmp_path, "0x0000000000000004", monkeypatch)
    clocks = ClockLog(interval_s=0.0)
    told = measuring(tmp_path, clocks=clocks)
    told.run(bench({}, (1,)), until_s=0.0)
    assert "throttled" not in told.journal.records
    summary = clocks.summary()
    assert summary is not None and summary["at_power_cap"] == summary["samples"] > 0
    assert summary["sm_mhz"]["limit"] == 1980


def test_without_nvidia_smi_no_clocks_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    clocks = ClockLog()
    assert clocks.sample(now=True) is None and clocks.summary() is None


def test_a_driver_too_old_for_torch_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvidia_smi(tmp_path, "0x0", monkeypatch)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CalibrationError, match=r"NVIDIA H200 with driver 550.54.*CUDA 13.0"):
        require_device("cuda")


def test_points_that_do_not_fit_are_skipped_with_all_larger_ones(tmp_path: Path) -> None:
    told = measuring(tmp_path)
    part = bench({(4,): [-1.0]})
    told.run(part, until_s=float("inf"))
    points = told.journal.of("logits")
    assert set(points.takes) == {(1,), (2,), (8,)}, "8 came first: ends of the axis do"
    assert points.skipped == {(4,)}
    again = Journal(tmp_path / "journal.jsonl", {"whose": "test"})
    assert again.of("logits").skipped == {(4,)}


def test_nothing_larger_is_tried_after_memory_ran_out(tmp_path: Path) -> None:
    told = measuring(tmp_path)
    told.run(bench({(8,): [-1.0]}, (1, 2, 4, 8, 16)), until_s=float("inf"))
    points = told.journal.of("logits")
    assert (8,) in points.skipped and set(points.takes) >= {(1,), (2,), (4,), (16,)}


@needs.linux  # /dev/full
def test_a_full_disk_is_told_in_clear_words() -> None:
    with pytest.raises(CalibrationError, match=r"the disk is full; what was measured .* is kept"):
        Journal(FULL_DISK, {"whose": "test"})


def test_a_journal_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CalibrationError, match="cannot be written"):
        Journal(tmp_path / "file" / "journal.jsonl", {})


def test_repeats_that_disagree_are_measured_again(tmp_path: Path) -> None:
    told = measuring(tmp_path)
    part = bench({(2,): [100.0, 180.0, 102.0, 101.0, 100.0, 100.0]})
    told.run(part, until_s=float("inf"))
    points = told.journal.of("logits")
    assert len(points.takes[2,]) > len(points.takes[1,]) == 3
    assert points.time_us((2,)) == pytest.approx(100.0), "the fastest counts"


def test_a_time_that_falls_with_more_work_is_looked_at_again(tmp_path: Path) -> None:
    told = measuring(tmp_path)
    disturbed = {(1,): [100.0], (2,): [160.0] * 4 + [110.0], (4,): [120.0], (8,): [140.0]}
    told.run(bench(disturbed), until_s=float("inf"))
    assert told.journal.of("logits").time_us((2,)) == pytest.approx(110.0)


def test_new_points_go_beside_the_value_that_is_missed_most() -> None:
    values, times_us = np.array([1, 4, 16, 64, 256]), np.array([10.0, 10.0, 10.0, 1000.0, 4000.0])
    part = Part({"sequences": values}, times_us / 1e6)
    table = table_of({"source": "", "tensor_parallel": 1}, {})
    found = refinement(table, "logits", part, target=0.02, tried={})
    assert found == ("sequences", [8, 32])
    tried = {"sequences": {8, 32}}
    assert refinement(table, "logits", part, target=0.02, tried=tried) != found
    even = Part({"sequences": values}, values / 1e6)
    assert refinement(table, "logits", even, target=0.02, tried={}) is None


def test_the_median_of_takes_counts_where_nobody_disturbs(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", {})
    for time_us in (10.0, 30.0, 20.0):
        journal.add("linear", (1,), Take((time_us,), 0.01, 5), spent_s=0.1)
    points = journal.of("linear")
    assert points.time_us((1,)) == 20.0
    assert points.spread((1,)) == pytest.approx(1.0)
    assert Journal(tmp_path / "journal.jsonl", {}).of("linear").takes == points.takes


def test_a_call_may_time_itself() -> None:
    timing = Timer("cpu").measure([lambda: 0.5])
    assert timing.time_us == pytest.approx(5e5)
    assert timing.spread == 0.0 and timing.repeats >= 2
