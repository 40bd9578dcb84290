"""A tiny model calibrated on this machine's processor: the whole loop, and what can go wrong."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import needs

torch = pytest.importorskip("torch", reason=needs.KERNELS)
pytest.importorskip("triton", reason=needs.KERNELS)

from calibrate.device.environment import CalibrationError  # noqa: E402
from calibrate.device.timer import Timer  # noqa: E402
from calibrate.device.yardstick import measure_yardstick  # noqa: E402
from calibrate.measure import setting  # noqa: E402
from calibrate.measure.budget import budget_seconds  # noqa: E402
from calibrate.measure.calibration import Progress, calibrate  # noqa: E402
from calibrate.measure.end_to_end import end_to_end  # noqa: E402
from calibrate.measure.journal import Journal  # noqa: E402
from calibrate.measure.parts import benches  # noqa: E402
from calibrate.measure.repeatability import differences  # noqa: E402
from calibrate.measure.rig import Limits, Rig  # noqa: E402
from calibrate.measure.service import Iteration  # noqa: E402
from calibrate.measure.setting import Setting  # noqa: E402
from calibrate.measure.shared_parts import take_over  # noqa: E402
from calibrate.measure.target import partial_folder  # noqa: E402
from calibrate.measure.whole_iterations import latency_of, parts_us  # noqa: E402
from calibrate.tables.check import PROCESSOR, check_table  # noqa: E402
from kernels.model_config import ModelConfig  # noqa: E402
from reports.calibration.report import calibration_report  # noqa: E402
from scenarios import library  # noqa: E402
from sim.latency.table_data import LatencyTable  # noqa: E402
from sim.latency.table_folder import TableError, read_table  # noqa: E402
from sim.latency.table_lines import one_line  # noqa: E402
from sim.model.config import read_config  # noqa: E402
from tests.orcast.command_line import orcast, refusal  # noqa: E402

ROOT = Path(__file__).parents[3]
NAME, CONFIG = "tiny", library.model_config(library.model_path("tiny"))
SPEC = read_config(CONFIG, name=NAME)
LIMITS = Limits(max_tokens=128, max_seqs=8, max_context=256, cache_tokens=4096)


def quick(
    out: Path,
    budget_s: float = 3.0,
    progress: Callable[[Progress], None] | None = None,
    **options: object,
) -> Path:
    given: dict[str, object] = {"device": "cpu", "limits": LIMITS, **options}
    setting = Setting(CONFIG, NAME, out, budget_s=budget_s, **given)  # type: ignore[arg-type]
    return calibrate(setting, progress=progress)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One calibration for the tests of its outcome."""
    return quick(tmp_path_factory.mktemp("tables") / "tiny", budget_s=12.0)


@pytest.fixture(scope="module")
def table(folder: Path) -> LatencyTable:
    return read_table(folder)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """The same attention in fewer layers."""
    config = replace(ModelConfig.from_hugging_face(CONFIG), num_layers=2)
    yield Rig(config, timer=Timer("cpu"), limits=LIMITS)


def test_the_table_passes_its_check(table: LatencyTable) -> None:
    assert check_table(table).errors == ()
    parts = {"linear", "logits", "prefill_attention", "decode_attention", "host", "swap", "copy"}
    assert set(table.parts) == parts


def test_a_simulation_runs_on_the_table_and_on_its_host_times(folder: Path, tmp_path: Path) -> None:
    settings = {
        "model": "tiny",
        "latency.table": folder,
        "workload.num_requests": 20,
        "workload.arrivals.request_rate": 2,
        "engine.max_num_seqs": 8,
        "engine.max_num_batched_tokens": 128,
        "engine.num_gpu_blocks_override": 256,
        "workload.lengths.prompt": "{distribution: uniform, min: 8, max: 100}",
        "workload.lengths.output": "{distribution: uniform, min: 2, max: 40}",
    }
    given = [f"--set={path}={value}" for path, value in settings.items()]
    outcome = orcast("run", "quickstart", *given, "--out", tmp_path / "run", "--json")
    assert outcome.status == 0, outcome
    summary = json.loads(outcome.stdout)
    assert summary["completed"] == 20
    assert summary["latency"]["measured"] is True
    assert "tiny on CPU" in summary["latency"]["label"]


def test_meta_says_what_was_measured_on_what(table: LatencyTable) -> None:
    meta = table.meta
    assert meta["measured_by"] == "orcast calibrate"
    assert meta["launch"] == "eager" and meta["prefills"] in ("one_by_one", "together")
    assert "GPU" not in meta["source"] and meta["gpu"].startswith(PROCESSOR)
    assert meta["environment"]["threads"] == "1"
    assert meta["ceilings"]["copy_tb_per_s"] > 0 and meta["ceilings"]["matrix_tflop_per_s"] > 0
    for name in ("linear", "logits", "prefill_attention", "decode_attention"):
        assert meta["parts"][name]["held_out"]["count"] >= 1
    for kind in ("fitted", "held_out"):
        assert meta["whole_iterations"][kind]["count"] >= 1
    classes = meta["operator_classes"]
    for kind in ("unfused", "fused"):
        assert sum(classes[kind]["share_of_flops"].values()) == pytest.approx(1, abs=1e-3)
        assert sum(classes[kind]["share_of_time"].values()) == pytest.approx(1, abs=1e-3)
    assert classes["unfused"]["share_of_flops"]["contractions"] > 0.9
    assert [row["block_size"] for row in meta["block_sizes"]] == [8, 16, 32, 64, 128]
    assert meta["flash_against_standard"][0]["tokens"] == 128


def test_the_sum_of_parts_is_what_whole_csv_predicts(folder: Path, table: LatencyTable) -> None:
    with (folder / "whole.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["prefills"] == "0")
    count, context = int(row["decodes"]), int(row["context_tokens"])
    batch = Iteration(count, context, 0, (), 0.0).features()
    parts = parts_us(latency_of(table, SPEC, LIMITS), batch)
    host_us = one_line(table.parts["host"], "sequences")(count) * 1e6
    assert host_us == pytest.approx(float(row["host_us"]), rel=1e-3)
    predicted_us = sum(parts.values()) + host_us
    assert predicted_us == pytest.approx(float(row["predicted_us"]), rel=1e-3)


def test_the_engine_in_service_is_what_tables_are_fitted_to(
    folder: Path, table: LatencyTable
) -> None:
    with (folder / "whole.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["held_out"] for row in rows} == {"0", "1"}
    assert any(int(row["prefills"]) and int(row["decodes"]) for row in rows), (
        "chunks beside decodes"
    )
    # How near it comes depends on who else uses the processor; that it is told does not.
    for kind, held_out in (("fitted", "0"), ("held_out", "1")):
        errors = [
            float(row["predicted_us"]) / float(row["measured_us"]) - 1
            for row in rows
            if row["held_out"] == held_out
        ]
        told = table.meta["whole_iterations"][kind]
        assert told["count"] == len(errors)
        assert told["bias"] == pytest.approx(np.mean(errors), abs=1e-4)


def test_end_to_end_runs_batches_of_another_seed(table: LatencyTable) -> None:
    checked, errors = end_to_end(table, CONFIG, name=NAME, device=torch.device("cpu"), iterations=3)
    assert errors.count == 3 and np.isfinite(errors.median)
    assert all(one.measured_us > 0 and one.predicted_us > 0 for one in checked)


def test_a_table_differs_from_itself_by_nothing(table: LatencyTable) -> None:
    found = differences(table, table, SPEC, LIMITS)
    assert found["iterations"]["median"] == found["linear"]["p95"] == 0.0


def test_the_report_tells_all_of_it(folder: Path) -> None:
    page = calibration_report(folder)
    for text in ("Whole iterations", "Prefill attention", "Roofline", "What fusion buys"):
        assert text in page
    assert "Block size" in page and "plotly" in page


def test_a_host_that_the_device_hides_is_compared_and_reported(
    folder: Path, table: LatencyTable, tmp_path: Path
) -> None:
    """Between the two clocks that tell it nothing may be left: times that nothing divides by."""
    hidden = Path(shutil.copytree(folder, tmp_path / "hidden"))
    with (hidden / "host.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (hidden / "host.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | dict.fromkeys(("time_us", "isolated_us"), 0) for row in rows)
    found = differences(read_table(hidden), table, SPEC, LIMITS)
    assert found["host"] is None and found["iterations"]["median"] == 0.0
    page = calibration_report(hidden)
    assert '"part-linear"' in page and '"part-host"' not in page


def test_an_imported_table_has_no_report(tmp_path: Path) -> None:
    from tests.sim.latency.tables import small_table_folder

    with pytest.raises(TableError, match="not measured by orcast calibrate"):
        calibration_report(small_table_folder(tmp_path / "table"))
    assert "not measured" in refusal("calibrate", "report", tmp_path / "table")


def test_a_stopped_calibration_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "tiny"

    def stop(state: Progress) -> None:
        if state.points >= 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(out, progress=stop)
    journal = partial_folder(out) / "journal.jsonl"
    kept = journal.read_text().splitlines()
    assert not out.exists() and sum('"part"' in line for line in kept) >= 9
    with journal.open("a") as file:
        file.write('{"part": "linear", "point": [')  # what a killed process leaves

    seen: list[list[str]] = []

    def look(state: Progress) -> None:
        if journal.is_file():
            seen.append(journal.read_text().splitlines()[: len(kept)])

    quick(out, budget_s=1.0, progress=look)
    assert seen[-1] == kept, "nothing of it was measured again"
    assert read_table(out).meta["resumed"] is True
    assert not partial_folder(out).exists()


def test_an_interrupted_calibration_of_another_setting_is_left_alone(tmp_path: Path) -> None:
    def stop(state: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "tiny", progress=stop)
    with pytest.raises(CalibrationError, match=r"another setting .*block_size was 16, now 32"):
        quick(tmp_path / "tiny", block_size=32)


def test_parts_of_equal_shape_are_taken_over_scaled_by_layers(
    folder: Path, table: LatencyTable, rig: Rig, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal.jsonl", {})
    setting = {"dtype": "bfloat16", "block_size": 16}
    environment = table.meta["environment"]
    told = take_over(journal, benches(rig), folder.parent, environment=environment, setting=setting)
    names = {text.partition(":")[0] for text in told}
    assert names == {"prefill_attention", "decode_attention", "logits", "host"}
    with (folder / "decode_attention.csv").open() as file:
        first = next(csv.DictReader(file))
    point = (int(first["sequences"]), int(first["context_tokens"]))
    layer_us = float(first["isolated_us"]) / SPEC.num_layers
    assert journal.of("decode_attention").time_us(point) == pytest.approx(layer_us, rel=1e-4)
    other = Journal(tmp_path / "other.jsonl", {})
    elsewhere = {**environment, "device": "another"}
    assert not take_over(other, benches(rig), folder.parent, environment=elsewhere, setting=setting)


def test_it_runs_where_the_simulators_dependencies_are_missing(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('simpy', 'pydantic', 'plotly'): sys.modules[name] = None\n"
        "from calibrate.measure.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    config = ROOT / "scenarios" / "models" / "tiny.json"
    arguments = ["--model-config", config, "--out", tmp_path / "tiny", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments), "--budget", "1s"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "written to" in done.stdout
    assert set(read_table(tmp_path / "tiny").parts) >= {"linear", "decode_attention"}


def test_the_command_measures_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setting, "CPU_LIMITS", LIMITS)
    out = tmp_path / "tiny"
    outcome = orcast(
        "calibrate", "run", "--model", "tiny", "--device", "cpu", "--budget", "1s", "--out", out
    )
    assert outcome.status == 0, outcome
    assert "Table of tiny on CPU" in outcome.stdout
    assert (out / "report.html").is_file()
    assert orcast("calibrate", "check", out).status == 0


def test_bad_input_is_refused_in_a_line(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "t"), "--device", "cpu"]
    assert "llama" in refusal("calibrate", "run", "--model", "lama-3.1-8b", *out)
    assert "--budget '8x'" in refusal("calibrate", "run", "--model", "tiny", "--budget", "8x", *out)
    assert "bfloat16, float16" in refusal(
        "calibrate", "run", "--model", "tiny", "--dtype", "float32", *out
    )
    assert "the kernels cannot run it" in refusal("calibrate", "run", "--model", "opt-13b", *out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    text = refusal(
        "calibrate", "run", "--model", "tiny", "--device", "cpu", "--out", tmp_path / "mine"
    )
    assert "not empty and not a latency table" in text
    assert not partial_folder(tmp_path / "t").exists()


@needs.no_cuda
def test_without_a_gpu_it_says_so_and_what_to_do(tmp_path: Path) -> None:
    text = refusal("calibrate", "run", "--model", "tiny", "--out", tmp_path / "t")
    assert "no CUDA GPU" in text and "--device cpu" in text
    assert list(tmp_path.iterdir()) == []


def test_times_are_read_with_their_units() -> None:
    assert [budget_seconds(text) for text in ("8m", "90s", "480", "1.5h")] == [480, 90, 480, 5400]
    for text in ("", "-3", "8 minutes", "0s"):
        with pytest.raises(ValueError, match="expected a time such as"):
            budget_seconds(text)


def test_a_table_says_how_fast_its_device_was(table: LatencyTable) -> None:
    now = measure_yardstick("cpu")
    assert table.meta["yardstick_us"] == pytest.approx(now.us, rel=5.0)
    assert table.meta["contention"] > 0.9 and now.contention is not None and now.contention > 0.9
