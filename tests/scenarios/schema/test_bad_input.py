"""Bad input: one clear line, exit status 2, no traceback, nothing half-written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs
from tests.orcast.command_line import orcast, refusal

SMALL = "static-vs-continuous"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROW = "2023-11-16 18:15:46.6805900,374,44\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(*arguments: str) -> str:
    """The refusal of ``orcast run ARGUMENTS``, after which the folder is as it was before."""
    before = sorted(Path().rglob("*"))
    line = refusal("run", *arguments)
    assert sorted(Path().rglob("*")) == before, "something was half-written"
    return line


def with_settings(*settings: str, scenario: str = "quickstart") -> str:
    return refused(scenario, *(part for setting in settings for part in ("--set", setting)))


# -- values ---------------------------------------------------------------------------------------

VALUES = {
    "engine.shceduler=orca": r"unknown key; did you mean 'scheduler'\? allowed: generation, sched",
    "engine.scheduler=orka": r"'orka' is not known; did you mean 'orca'\? allowed: static, dyn",
    "engine.scheduler=5": r"5 is not known; allowed: static, dynamic, orca, paged, chunked",
    "engine.max_num_seqs=0": "0: expected greater than or equal to 1",
    "engine.max_num_seqs=many": "'many': expected a whole number",
    "engine.max_num_seqs=2.5": r"2\.5: expected a whole number",
    "engine.max_num_seqs=true": "True: expected a whole number",
    "engine.max_num_seqs=999999999": "999999999: expected less than or equal to 131072",
    "engine.max_num_seqs='64'": "'64': expected a whole number",
    "engine.enable_prefix_caching=1": "1: expected a boolean",
    "engine.gpu_memory_utilization=1.5": r"1\.5: expected less than or equal to 1",
    "engine.gpu_memory_utilization=.nan": "nan: expected a finite number",
    "engine.num_gpu_blocks_override=999999999999": "expected less than or equal to 16777216",
    "engine.swap_space_gib=1.0e308": "expected less than or equal to 1000000",
    "engine.kv_cache_dtype=fp4": r"'fp4' is not known; did you mean 'fp8'\?",
    "hardware.tensor_parallel=128": "128: expected less than or equal to 64",
    "hardware.pipeline_parallel=0": "0: expected greater than or equal to 1",
    "hardware.gpu=[h200-sxm]": "expected a string",
    "cluster.replicas=1000000": "expected less than or equal to 1024",
    "latency.source=guess": "'guess' is not known; ",
    "latency.gemm_efficiency=0": r"0: expected greater than or equal to 0\.001",
    "slo.ttft_ms=-5": "-5: expected greater than 0",
    "slo.percentile=0": "0: expected greater than 0",
    "workload.arrivals.request_rate=-1": "-1: expected greater than 0",
    "workload.arrivals.request_rate=0": "0: expected greater than 0",
    "workload.arrivals.request_rate=.nan": "nan: expected a finite number",
    "workload.arrivals.request_rate=fast": "'fast': expected a number",
    "workload.arrivals.request_rate=null": "",
    "workload.num_requests=1e3": r"1000\.0: expected a whole number",
    "workload.num_requests=-3": "-3: expected greater than or equal to 1",
    "workload.num_requests=99999999999999": "expected less than or equal to 100000000",
    "workload.seed=-1": "-1: expected greater than or equal to 0",
    "workload.max_tokens=99999999999999999999": "expected less than or equal to 2147483647",
    "workload.lengths.prompt.sigma=1e300": "expected less than or equal to 100",
    "name=5": "5: expected a string",
    "engine=5": "5: expected a section with keys",
    "engine=null": "None: expected a section with keys",
    "workload=[1, 2]": r"\[1, 2\]: expected a section with keys",
}


@pytest.mark.parametrize("setting", VALUES)
def test_a_bad_value_is_refused_and_blamed_on_its_setting(setting: str) -> None:
    line = with_settings(setting)
    path = setting.partition("=")[0]
    if setting == "workload.arrivals.request_rate=null":  # legal by itself, not for Poisson
        assert "workload.arrivals: request_rate is needed" in line
        assert "quickstart.yaml with --set workload.arrivals.request_rate: " in line
        return
    assert re.match(rf"--set: {path.split('.')[0]}.*: {VALUES[setting]}", line), line
    assert path.startswith(line.split(": ")[1])


def test_a_bad_value_in_a_section_given_whole_is_blamed_on_set() -> None:
    line = with_settings("workload.lengths.prompt={distribution: fixed, tokens: -2}")
    assert line == (
        "--set: workload.lengths.prompt.tokens: -2: expected greater than or equal to 1"
    )
    line = with_settings("engine.preferred_batch_sizes=[4, 0]")
    assert line.startswith("--set: engine.preferred_batch_sizes[1]: 0: expected")


COMBINATIONS = {
    "engine.max_num_batched_tokens=100": (
        "engine: max_num_batched_tokens 100 must be at least max_num_seqs 256"
    ),
    "engine.preferred_batch_sizes=[512]": "preferred_batch_sizes: 512 is above max_num_seqs 256",
    "workload.arrivals.process=gamma": "burstiness belongs to process gamma, which needs it",
    "workload.arrivals.process=all_at_once": "request_rate has no meaning when all requests",
    "workload={trace: some.csv, lengths: {prompt: {distribution: fixed, tokens: 1}, "
    "output: {distribution: fixed, tokens: 1}}}": "trace and lengths are both given: keep one",
    "workload.lengths=null": "no requests: name a trace file (--set workload.trace=FILE)",
    "workload.start=3": "start has no meaning without a trace",
    "workload.lengths.prompt={distribution: fixed}": "fixed needs tokens",
    "workload.lengths.prompt={distribution: empirical, values: []}": "at least 1 item",
    "workload.lengths.prompt={distribution: uniform, min: 5, max: 3}": (
        "min 5 must be at most max 3"
    ),
    "workload.lengths.output.median=7": "lognormal needs either mean or median",
    "engin.scheduler=orca": "--set engin.scheduler: engin: unknown key; did you mean 'engine'?",
    "latency.source=fixed": "source fixed needs iteration_ms",
    "latency.source=table": "source table needs table",
    "latency.iteration_ms=5": "iteration_ms belongs to source fixed",
}


@pytest.mark.parametrize("setting", COMBINATIONS)
def test_values_that_do_not_go_together_are_refused(setting: str) -> None:
    assert COMBINATIONS[setting] in with_settings(setting)


def test_blocks_beyond_what_records_can_count_are_refused() -> None:
    line = with_settings("engine.num_gpu_blocks_override=16777216", "engine.block_size=4096")
    assert "the KV cache may hold at most 2^31 - 1 tokens" in line


def test_arrivals_beyond_the_clocks_resolution_are_refused_without_a_warning() -> None:
    assert "after 2.5" in with_settings("workload.time_scale=1.0e12")
    assert "a clock cannot tell iterations apart" in with_settings("workload.time_scale=1.0e12")
    with_settings("workload.arrivals.request_rate=1.0e-300", "workload.time_scale=1.0e15")


@pytest.mark.parametrize(
    ("setting", "said"),
    {
        "engine.max_num_seqs": "expected PATH=VALUE, e.g. engine.max_num_seqs=64",
        "=5": "expected PATH=VALUE",
        "": "expected PATH=VALUE",
        "engine..block_size=3": "expected PATH=VALUE",
        "model.size=8": "model is 'llama-3.1-8b', not a section with keys",
        "hardware.gpu.memory=5": "hardware.gpu is 'h200-sxm', not a section with keys",
        "engine.max_num_seqs=[1": "the value is not valid YAML",
        "name=2024-13-01": "the value is not valid YAML",
        "engine.max_num_seqs=010": "010 is read in base 8 or 60: write a plain number",
        "workload.arrivals.request_rate=1:30": "1:30 is read in base 8 or 60",
        "name=!!python/object/apply:os.getcwd []": "the value is not valid YAML",
    }.items(),
)
def test_a_setting_that_cannot_be_read_is_refused(setting: str, said: str) -> None:
    line = with_settings(setting)
    assert line.startswith(f"--set {setting}: ")
    assert said in line


# -- names ----------------------------------------------------------------------------------------


def test_a_misspelt_gpu_gets_a_suggestion() -> None:
    line = with_settings("hardware.gpu=h100-sxn")
    assert (
        "hardware.gpu: unknown GPU 'h100-sxn'; did you mean 'h100-sxm'? allowed: a100-40gb" in line
    )


def test_a_misspelt_model_gets_a_suggestion() -> None:
    line = with_settings("model=lama-3.1-8b")
    assert "model: unknown model 'lama-3.1-8b', nor is it a file; did you mean 'llama-3.1-8b'?" in (
        line
    )


def test_a_misspelt_scenario_gets_a_suggestion() -> None:
    line = refused("quikstart")
    assert line.startswith("quikstart: no such scenario file; did you mean 'quickstart'? allowed:")


def test_a_missing_scenario_file_is_named() -> None:
    assert refused("nowhere/there.yaml").startswith("nowhere/there.yaml: no such scenario file")


def test_a_model_file_that_is_no_config_is_named() -> None:
    Path("config.json").write_text("[1]")
    assert "config.json: a JSON list, expected a model's config" in with_settings(
        "model=config.json"
    )
    for text in ("{", "[" * 100_000):
        Path("config.json").write_text(text)
        assert "config.json: not valid JSON" in with_settings("model=config.json")


# -- the scenario file ----------------------------------------------------------------------------

FILES = {
    "a key given twice": (
        b"name: a\nmodel: x\nname: b\n",
        r":1:1: .*the key 'name' is given twice",
    ),
    "a key of a section given twice": (
        b"name: a\nengine: {block_size: 4, block_size: 8}\n",
        r":2:9: .*the key 'block_size' is given twice",
    ),
    "not YAML": (b"name: [a\nmodel: {\n", r":\d+:\d+: not valid YAML"),
    "random bytes": (bytes(range(255, 0, -1)), ": not a text file in UTF-8"),
    "control characters": (b"name: \x00\x01", ": not valid YAML"),
    "nothing": (b"", ": expected a mapping of keys such as model"),
    "a list": (b"- name\n", ": expected a mapping"),
    "two documents": (b"name: a\n---\nname: b\n", ":2:1: not valid YAML"),
    "an impossible date": (b"name: 2024-13-01\n", ": not valid YAML: "),
    "an unhashable key": (b"? [a]\n: x\n", r":1:3: not valid YAML"),
    "a number as key": (b"5: x\nname: a\n", ": model: missing"),
    "no model": (b"name: a\n", r": model: missing \(and 2 more\)"),
    "itself": (
        b"name: &a [*a]\n",
        r": not valid YAML: its aliases stand for over 1,000,000 values",
    ),
    "deep brackets": (
        b"name: " + b"[" * 20_000 + b"]" * 20_000,
        r":1:106: not valid YAML: nested more than 100 levels deep: close open brackets, ",
    ),
    "brackets left open": (b"name: " + b"[" * 20_000, r":1:106: .* nested more than 100 "),
    "deep keys": (
        b"".join(b" " * level + b"a:\n" for level in range(2000)),
        r":101:101: not valid YAML: nested more than 100 levels deep: .*, or indent less$",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_scenario_is_refused(case: str) -> None:
    content, said = FILES[case]
    Path("some.yaml").write_bytes(content)
    assert re.match(rf"some\.yaml{said}", refused("some.yaml"))


def test_a_folder_is_no_scenario() -> None:
    Path("some").mkdir()
    assert refused("some") == "some: a folder, expected a scenario file"


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:os.system"])
def test_python_tags_are_refused_and_nothing_is_called(tag: str) -> None:
    Path("tag.yaml").write_text(f'name: {tag} ["touch called"]\nmodel: x\n')
    assert re.match(r"tag\.yaml:1:7: not valid YAML: ", refused("tag.yaml"))
    assert not Path("called").exists()


def test_a_small_file_that_unfolds_to_billions_is_refused_at_once() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for last, name in zip("abcdefghi", "bcdefghij", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]")
    Path("bomb.yaml").write_text("\n".join([*lines, "name: *j"]))
    assert len(refused("bomb.yaml")) < 1000


def test_an_error_in_a_file_is_blamed_on_the_file_even_when_something_else_was_set() -> None:
    Path("own.yaml").write_text(
        "name: own\nmodel: opt-13b\nhardware: {gpu: a100-40gb}\n"
        "engine: {scheduler: orka}\nworkload: {trace: a.csv}\n"
    )
    line = refused("own.yaml", "--set", "engine.max_num_seqs=4")
    assert line.startswith("own.yaml: engine.scheduler: 'orka' is not known")


# -- traces ---------------------------------------------------------------------------------------

TRACES = {
    "nothing": ("", ":1: the file is empty"),
    "a header alone": (HEADER, ":1: the header is all there is"),
    "text for tokens": (HEADER + ROW + ROW.replace("374", "many"), ":3: ContextTokens is 'many'"),
    "negative tokens": (HEADER + ROW.replace("374", "-1"), ":2: ContextTokens is '-1'"),
    "NaN": (HEADER + ROW + ROW.replace("44", "nan"), ":3: GeneratedTokens is 'nan'"),
    "a row too short": (HEADER + ROW + "2023-11-16 18:15:47.0\n", ":3: 1 columns in"),
    "no date": (HEADER + "yesterday,374,44\n", ":2: TIMESTAMP is 'yesterday'"),
    "another header": ("when,how,much\n1,2,3\n", ":1: unknown format"),
    "JSON cut off": ('{"timestamp": 0, "input_length": 5, "output', ":1: "),
}


@pytest.mark.parametrize("case", TRACES)
def test_a_malformed_trace_is_refused_with_the_line(case: str) -> None:
    text, said = TRACES[case]
    Path("trace.csv").write_text(text)
    line = with_settings("workload.trace=trace.csv", scenario="azure-conversation")
    assert f"workload: trace.csv{said}" in line


def test_a_missing_trace_is_named() -> None:
    line = with_settings("workload.trace=no.csv", scenario="azure-conversation")
    assert "workload: no.csv: no such file" in line
    line = with_settings("workload.trace=.", scenario="azure-conversation")
    assert "workload: .: cannot be read: Is a directory" in line


def test_a_slice_that_leaves_nothing_of_a_trace_is_refused() -> None:
    Path("trace.csv").write_text(HEADER + ROW)
    line = with_settings(
        "workload.trace=trace.csv", "workload.start=5", scenario="azure-conversation"
    )
    assert "workload: requests 5 to None of a workload of 1: that leaves none" in line


# -- memory ---------------------------------------------------------------------------------------


def test_requests_that_are_all_larger_than_the_kv_cache_are_an_error() -> None:
    line = with_settings("engine.num_gpu_blocks_override=2", "workload.num_requests=50")
    assert re.search(r"no request can be served: the smallest needs \d+ tokens, ", line)
    assert "the KV cache holds 16" in line


def test_a_cache_of_the_null_block_alone_is_refused() -> None:
    line = with_settings("engine.num_gpu_blocks_override=1")
    assert "num_gpu_blocks 1: the null block leaves none" in line and "null_block=false" in line


def test_what_a_policy_reserves_is_named_when_nothing_fits() -> None:
    line = with_settings("engine.num_gpu_blocks_override=5", scenario="kv-waste")
    assert "the smallest has 2048 tokens reserved, the KV cache holds 64" in line, "in one piece"
    anywhere = ("engine.num_gpu_blocks_override=5", "engine.placement=anywhere")
    assert "the KV cache holds 80" in with_settings(*anywhere, scenario="kv-waste")


@pytest.mark.parametrize("policy", ["static", "dynamic", "orca", "paged", "chunked"])
def test_some_requests_larger_than_the_kv_cache_are_counted_and_warned_of(policy: str) -> None:
    outcome = orcast(
        *("run", "quickstart", "--json", "--out", "out"),
        *("--set", "engine.num_gpu_blocks_override=60", "--set", "workload.num_requests=80"),
        *("--set", f"engine.scheduler={policy}"),
    )
    assert outcome.status == 0
    import json

    summary = json.loads(outcome.stdout)
    assert 0 < summary["rejected"] < 80
    assert summary["completed"] + summary["rejected"] == 80
    assert f"{summary['rejected']} requests were rejected: each is larger than the KV" in (
        outcome.stderr
    )


def test_a_model_too_large_is_refused_with_the_number_of_gpus_that_would_do() -> None:
    line = with_settings("model=gpt-3-175b", scenario=SMALL)
    assert "hardware: gpt-3-175b does not fit on 1 x a100-40gb" in line
    assert (
        "11 GPUs of that kind would do (pipeline_parallel 11), or 16 (tensor_parallel 16)" in line
    )


def test_heads_that_cannot_be_split_are_named() -> None:
    line = with_settings("hardware.tensor_parallel=3")
    assert line.endswith("llama-3.1-8b: tensor_parallel 3 does not divide its 32 attention heads")


# -- the run folder -------------------------------------------------------------------------------


def test_a_file_in_the_way_of_the_run_folder_is_kept() -> None:
    Path("out").write_text("mine")
    assert refused(SMALL, "--out", "out") == "--out out: a file is in the way; name a folder"
    assert Path("out").read_text() == "mine"


def test_a_folder_of_other_things_is_kept() -> None:
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")
    line = refused(SMALL, "--out", "out")
    assert line == "--out out: not empty and not a run folder; name another one"
    assert Path("out/notes.txt").read_text() == "mine"


def test_a_run_folder_that_holds_something_else_too_is_kept() -> None:
    assert orcast("run", SMALL, "--out", "out").status == 0
    Path("out/notes.txt").write_text("mine")
    assert "holds notes.txt, which is not" in refused(SMALL, "--out", "out")
    assert Path("out/notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named() -> None:
    Path("file").write_text("")
    line = refused(SMALL, "--out", "file/out")
    assert line == "--out file/out: cannot be written: Not a directory"


@needs.not_root
def test_an_unwritable_folder_is_named() -> None:
    Path("locked").mkdir(mode=0o500)
    line = refused(SMALL, "--out", "locked/out")
    assert line == "--out locked/out: cannot be written: Permission denied"


def test_folders_made_for_a_run_that_fails_are_taken_away_again() -> None:
    refused(SMALL, "--out", "some/where/out", "--set", "model=gpt-3-175b")
    Path("some").mkdir()
    refused(SMALL, "--out", "some/where/out", "--set", "model=gpt-3-175b")


# -- `report` -------------------------------------------------------------------------------------


def test_a_folder_that_is_no_run_has_no_report() -> None:
    assert refusal("report", "nowhere") == "nowhere is not a run folder: no such directory"
    Path("empty").mkdir()
    assert "empty is not a run folder: it lacks requests.parquet" in refusal("report", "empty")


def test_a_damaged_run_folder_is_refused() -> None:
    assert orcast("run", SMALL, "--out", "out").status == 0
    report = Path("out/report.html").read_bytes()
    Path("out/requests.parquet").write_bytes(b"PAR1 no more")
    assert refusal("report", "out").startswith("out/requests.parquet: not a Parquet file")
    assert Path("out/report.html").read_bytes() == report


def test_the_installed_command_refuses_in_one_line_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orcast.cli", "run", SMALL, "--set", "hardware.gpu=h100-sxn"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "unknown GPU 'h100-sxn'" in done.stderr
    assert not Path("runs").exists()
