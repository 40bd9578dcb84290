"""`orcast run` and `orcast report`: what is printed, what is written, and that they agree."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from tests import needs
from tests.orcast.command_line import AZURE_TRACE, orcast

ROOT = Path(__file__).parents[2]
SMALL = ("quickstart", "--set", "workload.num_requests=300")
FILES = {
    *("scenario.yaml", "summary.json", "details.json", "report.html"),
    *("requests.parquet", "iterations.parquet", "preemptions.parquet"),
}
STATISTICS = ("mean", "median", "std", "p50", "p90", "p95", "p99")
NAMES = {
    *(f"{statistic}_{metric}_ms" for statistic in STATISTICS for metric in ("ttft", "tpot", "itl")),
    *(f"{statistic}_{metric}_ms" for statistic in STATISTICS for metric in ("e2el", "queue")),
    *("request_throughput", "output_throughput", "total_token_throughput", "request_goodput"),
    *("completed", "duration", "total_input_tokens", "total_output_tokens"),
    *("rejected", "preemptions", "kv_utilization", "iterations", "simulated_requests_per_s"),
    *("wall_s", "warnings", "latency", "run_folder"),
}
OF_THE_MACHINE = {"wall_s", "simulated_requests_per_s", "run_folder"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def run_json(*arguments: str) -> dict[str, Any]:
    outcome = orcast("run", *arguments, "--json")
    assert outcome.status == 0, outcome.stderr
    assert outcome.stdout.count("\n") == 1, "one line, one object"
    summary: dict[str, Any] = strict_json(outcome.stdout)
    return summary


def table(folder: str, name: str) -> dict[str, np.ndarray]:
    read = pq.read_table(Path(folder) / f"{name}.parquet")
    return {column: np.array(read.column(column).to_pylist()) for column in read.column_names}


# -- what is printed ------------------------------------------------------------------------------


def test_json_is_one_object_with_vllms_names_and_ours() -> None:
    summary = run_json(*SMALL)
    assert summary.keys() >= NAMES
    assert summary["completed"] == 300
    assert (summary["latency"]["measured"], summary["latency"]["basis"]) == (True, "measured")
    assert all(isinstance(summary[name], int | float) for name in NAMES if name.endswith("_ms"))


def test_statistics_of_nothing_are_null() -> None:
    summary = run_json(*SMALL, "--set", "workload.lengths.output={distribution: fixed, tokens: 1}")
    assert summary["mean_tpot_ms"] is None, "one-token answers have no time per further token"
    assert summary["p99_itl_ms"] is None
    assert summary["mean_ttft_ms"] > 0
    assert run_json("static-vs-continuous")["request_goodput"] is None, "there is no SLO"


def test_the_table_reads_like_vllms() -> None:
    outcome = orcast("run", *SMALL)
    assert outcome.status == 0
    assert "Serving Benchmark Result" in outcome.stdout
    assert "Successful requests:" in outcome.stdout
    assert "P99 TTFT (ms):" in outcome.stdout
    assert "Latency source: measured kernels: vllm" in outcome.stdout
    assert outcome.stdout.endswith("Report: runs/quickstart/report.html\n")
    assert outcome.stderr == ""


def test_warnings_go_to_stderr_and_into_the_summary() -> None:
    outcome = orcast("run", *SMALL, "--json", "--set", "engine.reservation=oracle")
    warning = "engine.reservation has no effect under scheduler chunked"
    assert outcome.stderr.startswith(f"orcast: warning: {warning}")
    assert strict_json(outcome.stdout)["warnings"][0].startswith(warning)
    assert warning in orcast("run", *SMALL, "--set", "engine.reservation=oracle").stdout.replace(
        "\n", " "
    )


def test_help_names_every_command_and_option() -> None:
    assert {"run", "report"} <= set(orcast("--help").stdout.replace("│", " ").split())
    text = orcast("run", "--help").stdout
    for part in ("--set", "--out", "--json", "--step", "--check", "runs/NAME", "PATH=VALUE"):
        assert part in text


# -- what is written ------------------------------------------------------------------------------


def test_a_run_folder_is_whole_and_agrees_with_what_was_printed() -> None:
    printed = run_json(*SMALL, "--out", "out")
    assert {path.name for path in Path("out").iterdir()} == FILES
    assert sorted(path.name for path in Path().iterdir()) == ["out"], "nothing else was left"
    written = strict_json(Path("out/summary.json").read_text())
    assert written == {name: value for name, value in printed.items() if name != "run_folder"}
    assert printed["run_folder"] == "out"
    requests, iterations = table("out", "requests"), table("out", "iterations")
    assert requests["request"].tolist() == list(range(300))
    assert len(iterations["start_s"]) == printed["iterations"]
    assert iterations["emitted"].sum() == printed["total_output_tokens"]
    assert requests["finished_s"].max() - requests["arrival_s"].min() == printed["duration"]
    ttft_ms = (requests["first_token_s"] - requests["arrival_s"]) * 1e3
    assert np.percentile(ttft_ms, 99) == pytest.approx(printed["p99_ttft_ms"], rel=1e-12)


def test_the_tables_have_the_columns_that_readers_rely_on() -> None:
    run_json(*SMALL, "--out", "out")
    types = {
        name: dict(zip(schema.names, map(str, schema.types), strict=True))
        for name in ("requests", "iterations", "preemptions")
        for schema in [pq.read_schema(Path("out") / f"{name}.parquet")]
    }
    assert types["requests"] == {
        "request": "int64",
        **dict.fromkeys(["arrival_s", "scheduled_s", "first_token_s"], "double"),
        **dict.fromkeys(["last_token_s", "finished_s"], "double"),
        **dict.fromkeys(["prompt_tokens", "output_tokens", "cached_tokens"], "int64"),
        "preemptions": "int32",
        "rejected": "bool",
        "replica": "int32",
        # before the front end, where the times above are the clients'
        **dict.fromkeys(["engine_arrival_s", "engine_first_token_s"], "double"),
        **dict.fromkeys(["engine_last_token_s", "engine_finished_s"], "double"),
    }
    assert types["preemptions"] == {
        "request": "int64",
        "preempted_s": "double",
        "resumed_s": "double",
    }
    whole = {
        *("running", "waiting", "prefill_seqs", "prefill_tokens", "decode_seqs", "num_tokens"),
        *("context_tokens", "kv_used_tokens", "kv_reserved_tokens", "kv_fragmentation_tokens"),
        *("kv_free_tokens", "preempted", "finished", "replica"),
    }
    found = types["iterations"]
    assert {found[name] for name in whole} <= {"int32", "int64"}
    assert (found["start_s"], found["duration_s"], found["extrapolated"]) == (
        *("double", "double"),
        "bool",
    )


def test_kv_slots_by_kind_add_up_to_all_slots() -> None:
    summary = run_json(*SMALL, "--out", "out")
    iterations = table("out", "iterations")
    kinds = ("used", "reserved", "fragmentation", "free")
    slots = sum(iterations[f"kv_{kind}_tokens"] for kind in kinds)
    assert set(slots.tolist()) == {(summary["num_gpu_blocks"] - 1) * 16}, "but the null block's"
    assert sum(summary["kv_share"].values()) == pytest.approx(1)


def test_the_written_scenario_gives_the_very_same_run_again() -> None:
    run_json(*SMALL, "--set", "engine.max_num_seqs=9", "--out", "one")
    resolved = yaml.safe_load(Path("one/scenario.yaml").read_text())
    assert resolved["engine"]["max_num_seqs"] == 9
    run_json("one/scenario.yaml", "--out", "two")
    for name in ("requests.parquet", "iterations.parquet", "scenario.yaml"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_same_seed_same_bytes_whatever_the_hash_seed() -> None:
    arguments = ["quickstart", "--set", "workload.num_requests=300", "--set",
                 "engine.num_gpu_blocks_override=900"]  # fmt: skip
    for out, hash_seed in (("one", "1"), ("two", "77")):
        subprocess.run(
            [sys.executable, "-m", "orcast.cli", "run", *arguments, "--out", out],
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": hash_seed},
            check=True,
            stdout=subprocess.DEVNULL,
        )
    assert table("one", "requests")["preemptions"].sum() > 0, "a run worth comparing"
    for name in ("requests", "iterations", "preemptions"):
        one, two = (Path(out, f"{name}.parquet").read_bytes() for out in ("one", "two"))
        assert one == two
    run_json(*arguments, "--set", "workload.seed=2", "--out", "three")
    assert Path("one/requests.parquet").read_bytes() != Path("three/requests.parquet").read_bytes()


def test_a_second_run_replaces_the_first() -> None:
    run_json(*SMALL, "--out", "out")
    run_json(*SMALL, "--set", "workload.num_requests=20", "--out", "out")
    assert len(table("out", "requests")["request"]) == 20
    assert {path.name for path in Path("out").iterdir()} == FILES
    assert sorted(path.name for path in Path().iterdir()) == ["out"]


def test_an_empty_folder_is_filled_and_a_link_stays_a_link() -> None:
    Path("real").mkdir()
    Path("link").symlink_to("real")
    for _ in range(2):
        run_json("static-vs-continuous", "--out", "link")
        assert Path("link").is_symlink()
        assert {path.name for path in Path("real").iterdir()} == FILES


def test_a_refused_run_leaves_the_older_run_as_it_was() -> None:
    run_json("static-vs-continuous", "--out", "out")
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    outcome = orcast("run", "quickstart", "--set", "model=gpt-3-175b", "--out", "out")
    assert outcome.status == 2
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before
    assert sorted(path.name for path in Path().iterdir()) == ["out"]


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a b\nc", "..", "", "./."])
def test_the_default_folder_stays_under_runs_whatever_the_name(name: str) -> None:
    run_json("static-vs-continuous", "--set", f"name={json.dumps(name)}")
    (folder,) = Path("runs").iterdir()
    assert {path.name for path in folder.iterdir()} == FILES
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]


@pytest.mark.parametrize(
    ("end", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_run_that_is_ended_leaves_nothing_under_the_final_name(
    end: signal.Signals, status: int
) -> None:
    arguments = ["run", "million", "--step", "--out", "deep/out"]
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from orcast.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline_s = time.monotonic() + 30
        while not (Path("deep").is_dir() and any(Path("deep").iterdir())):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(end)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == status, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    if end == signal.SIGKILL:  # nobody can clean up then, but nothing pretends to be a run
        left = sorted(path.name for path in Path("deep").iterdir())
        assert all(name.startswith(".out.") for name in left)
        assert [Path(name).suffix for name in sorted(left)].count(".partial") == 1
        assert ".out.lock" in left
        assert len(left) == 2
        run_json("static-vs-continuous", "--out", "deep/out")
    else:
        assert not Path("deep").exists()


# -- two clocks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["static", "dynamic", "orca", "paged", "chunked"])
def test_step_gives_the_figures_and_the_bytes_of_leap(scheduler: str) -> None:
    settings = (
        *("--set", f"engine.scheduler={scheduler}", "--set", "engine.num_gpu_blocks_override=1200"),
        *("--set", "workload.lengths.output.max=300", "--set", "workload.lengths.prompt.max=2000"),
    )
    leapt = run_json(*SMALL, *settings, "--out", "leap")
    stepped = run_json(*SMALL, *settings, "--out", "step", "--step", "--check")
    assert (leapt.pop("mode"), stepped.pop("mode")) == ("leap", "step")
    for name in ("requests", "iterations", "preemptions"):
        one, other = (Path(out, f"{name}.parquet").read_bytes() for out in ("leap", "step"))
        assert one == other
    for name in leapt.keys() - OF_THE_MACHINE:
        # Leap keeps its inter-token gaps in another order: their sums may round otherwise.
        if "_itl_" in name:
            assert leapt[name] == pytest.approx(stepped[name], rel=1e-12)
        else:
            assert leapt[name] == stepped[name], name


def test_check_changes_nothing() -> None:
    settings = ("--set", "engine.num_gpu_blocks_override=900")
    plain = run_json(*SMALL, *settings, "--out", "plain")
    checked = run_json(*SMALL, *settings, "--out", "checked", "--check")
    assert plain["preemptions"] > 0
    for name in plain.keys() - OF_THE_MACHINE:
        assert plain[name] == checked[name], name


def test_check_finds_a_block_that_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    from sim.kv.cache import BlockAllocator

    free = BlockAllocator.free

    def forgetful(self: BlockAllocator, block_table: list[int], tokens: int | None = None) -> None:
        free(self, block_table[1:], tokens)
        block_table.clear()

    monkeypatch.setattr(BlockAllocator, "free", forgetful)
    with pytest.raises(AssertionError):
        orcast("run", *SMALL, "--check", "--out", "out")
    assert not Path("out").exists()


# -- the report -----------------------------------------------------------------------------------


def test_report_rebuilds_the_page_from_the_records() -> None:
    run_json(*SMALL, "--out", "out")
    page = Path("out/report.html").read_bytes()
    Path("out/report.html").unlink()
    outcome = orcast("report", "out")
    assert (outcome.status, outcome.stdout) == (0, "Report: out/report.html\n")
    assert Path("out/report.html").read_bytes() == page
    assert {path.name for path in Path("out").iterdir()} == FILES


def test_names_from_scenarios_and_traces_are_text_in_the_page() -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    rows = [
        {"request_id": f"{evil}{at}", "input_toks": 20, "output_toks": 4, "queued_ts": at / 10}
        for at in range(5)
    ]
    trace = Path("trace.jsonl")
    trace.write_text("\n".join(map(json.dumps, rows)))
    summary = run_json(
        *("azure-conversation", "--out", "out", "--set", f"workload.trace={trace}"),
        *("--set", f"name={json.dumps(evil)}", "--set", f"description={json.dumps(evil)}"),
    )
    assert summary["completed"] == 5
    assert table("out", "requests")["request_id"].tolist() == [f"{evil}{at}" for at in range(5)]
    page = Path("out/report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page, "the name is shown"
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    trace.write_text(trace.read_text().replace(json.dumps(evil)[1:-1], "plain"))
    run_json("azure-conversation", "--out", "tame", "--set", f"workload.trace={trace}")
    tame = Path("tame/report.html").read_text()
    assert page.count("<script") == tame.count("<script")


def test_a_request_id_that_is_no_text_is_still_written() -> None:
    row = '{"request_id": "\\ud800", "input_toks": 20, "output_toks": 4, "queued_ts": 0}\n'
    Path("trace.jsonl").write_text(row)
    run_json("azure-conversation", "--out", "out", "--set", "workload.trace=trace.jsonl")
    assert table("out", "requests")["request_id"].tolist() == ["?"]


# -- real input -----------------------------------------------------------------------------------


@needs.shared(f"azure/{AZURE_TRACE.name}")
def test_the_azure_hour_is_served_whole() -> None:
    summary = run_json(
        "azure-conversation", "--set", f"workload.trace={AZURE_TRACE}", "--out", "out"
    )
    assert summary["completed"] == 19_366
    assert (summary["rejected"], summary["preemptions"]) == (0, 0)
    assert summary["duration"] < 3600, "the load is stable: it ends with the trace"
    rows = [line.split(",") for line in AZURE_TRACE.read_text().splitlines()[1:] if line]
    assert summary["total_input_tokens"] == sum(int(row[1]) for row in rows)
    assert summary["total_output_tokens"] == sum(int(row[2]) for row in rows)
    assert Path("out/report.html").stat().st_size < 8e6
