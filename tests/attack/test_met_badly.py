"""What an attack once met badly, kind by kind, and the right answer."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scenarios.errors import InputError, one_line, reading
from scenarios.yaml_file import find_file
from tests.attack.kinds import BASE, write_yaml
from tests.orcast.command_line import orcast, refusal
from tests.sim.latency.tables import small_table_folder
from tests.sim.workload.test_trace_formats import SERVING_SIM, TIMED


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_refused(**changed: Any) -> str:
    write_yaml(Path("small.yaml"), BASE | changed)
    return refusal("run", "small.yaml", "-q", "--out", "out")


def test_a_wrong_name_in_a_list_of_names_is_told_with_those_that_are_allowed() -> None:
    line = run_refused(plan={"search": ["tensor_paralel", "no", 5]})
    assert line.startswith(
        "small.yaml: plan.search[0]: 'tensor_paralel' is not known; did you mean"
    )
    assert "'tensor_parallel'? allowed: " in line


def test_a_key_that_is_a_number_is_unknown_in_every_section() -> None:
    assert run_refused(latency={1: 2}) == "small.yaml: latency[1]: 1: Keys should be strings"


@pytest.mark.parametrize("name", ["n" * 300, "é" * 200])
def test_a_name_of_any_length_has_its_folder(name: str) -> None:
    write_yaml(Path("small.yaml"), BASE | {"name": name})
    assert orcast("run", "small.yaml", "-q").status == 0
    axis = ("--axis", "workload.num_requests=2,3", "--jobs", "1")
    assert orcast("sweep", "small.yaml", *axis).status == 0
    for made in ("runs", "sweeps"):
        (inside,) = Path(made).iterdir()
        assert name.startswith(inside.name) and len(inside.name.encode()) <= 120


@pytest.mark.parametrize("name", ["t" * 300, "t/" * 3000])
def test_a_file_whose_name_is_too_long_for_any_is_not_there(name: str) -> None:
    assert find_file(name, beside=Path()) is None
    line = run_refused(workload={"trace": name})
    assert line.startswith("small.yaml: workload: t")
    assert line.endswith(": cannot be read: File name too long")


def test_a_recording_too_short_to_refine_by_is_named() -> None:
    small_table_folder(Path("table"))
    Path("rows.jsonl").write_text(TIMED["aiperf"].splitlines()[0] + "\n")
    asked = ("--set", "model=llama-3.1-8b", "--set", "hardware.gpu=h100-sxm", "--out", "out")
    line = refusal("calibrate", "refine", "table", "rows.jsonl", *asked)
    assert line.startswith("rows.jsonl: ") and "too few" in line


def test_a_replay_without_a_scenario_blames_its_recording() -> None:
    row = {"input_toks": 10, "output_toks": 5}
    rows = [{"arrival_time_ns": 0} | row, {"arrival_time_ns": 2**63 - 1} | row]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    line = refusal("replay", "rows.jsonl", "-q", "--set", "latency.source=roofline")
    assert line.startswith("rows.jsonl: workload: the last request arrives after 9.22337e+09 s")


def test_a_packed_recording_takes_no_more_memory_than_it_holds() -> None:
    Path("rows.jsonl.gz").write_bytes(gzip.compress(SERVING_SIM.encode()))
    read = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)); "
        "from sim.workload.trace_file import TraceFile; "
        "print(TraceFile.read('rows.jsonl.gz').text, end='')"
    )
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True)
    assert done.stdout == SERVING_SIM


def test_a_number_of_thousands_of_digits_is_not_said_to_be_deep() -> None:
    Path("rows.jsonl").write_text('{"timestamp": ' + "9" * 5000 + ', "input_length": 1}')
    line = refusal("trace", "rows.jsonl")
    assert "not JSON (a number of thousands of digits)" in line


def test_what_numpy_only_warns_of_is_damage_too() -> None:
    import numpy as np

    with pytest.raises(InputError) as caught, reading("made"):
        np.array([1e300]).astype(np.int64)
    assert str(caught.value) == "made: damaged: invalid value encountered in cast"


def test_a_long_path_in_quotes_stays_whole_and_leaves_room_for_the_rest(folder: Path) -> None:
    path = folder / ("o" * 250)
    path.touch()
    line = one_line(f"unknown GPU '{path}', nor is it a file; name another one")
    assert line == f"unknown GPU '{path}', nor is it a file; name another one"
