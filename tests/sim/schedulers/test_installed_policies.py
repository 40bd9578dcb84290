"""Policies that other packages bring: found by name, checked, and run as any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "long_prompts_apart"
RUN = ("quickstart", "--set", "workload.num_requests=200", "--json")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder on the path of a new process, with the example's package as pip leaves it."""
    (tmp_path / "long_prompts_apart.py").write_text(
        (EXAMPLE / "long_prompts_apart.py").read_text(encoding="utf-8"), encoding="utf-8"
    )
    install(tmp_path, "long_prompts_apart", "long_prompts_apart:LongPromptsApart")
    return tmp_path


def install(site: Path, name: str, target: str) -> None:
    info = site / f"{name}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[orcast.schedulers]\n{name} = {target}\n")


def orcast(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(site), str(EXAMPLE.parents[2])])
    return subprocess.run(
        [sys.executable, "-m", "orcast.cli", "run", *arguments, "--out", str(site / "run")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        check=False,
    )


def test_the_documented_example_runs_by_its_name(site: Path) -> None:
    mixed = (
        "--set", "workload.lengths=null",
        "--set", "workload.classes={short: {share: 4, lengths: {prompt: {distribution: fixed, "
        "tokens: 100}, output: {distribution: fixed, tokens: 20}}}, long: {share: 1, lengths: "
        "{prompt: {distribution: fixed, tokens: 6000}, output: {distribution: fixed, tokens: 20}}"
        "}}",
        "--set", "workload.arrivals={process: all_at_once}",
        "--set", "engine.max_num_batched_tokens=1024",
    )  # fmt: skip
    found = []
    for scheduler in ("chunked", "long_prompts_apart"):
        done = orcast(site, *RUN, *mixed, "--set", f"engine.scheduler={scheduler}")
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    plain, apart = (each["classes"]["short"]["mean_ttft_ms"] for each in found)
    assert apart < 0.8 * plain, "short prompts pass by"
    assert found[0]["total_output_tokens"] == found[1]["total_output_tokens"]
    step = orcast(site, *RUN, *mixed, "--set", "engine.scheduler=long_prompts_apart", "--step")
    assert json.loads(step.stdout)["mean_ttft_ms"] == found[1]["mean_ttft_ms"], "leap equals step"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("long_prompts_apart:LONG", "is no scheduling policy: it has no add"),
        ("nowhere:Policy", "cannot be loaded: No module named 'nowhere'"),
    ],
)
def test_what_is_no_policy_is_refused_in_a_line(site: Path, target: str, words: str) -> None:
    install(site, "broken", target)
    done = orcast(site, *RUN, "--set", "engine.scheduler=broken")
    assert done.returncode == 2
    assert words in done.stderr and "engine.scheduler" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_name_that_nobody_brings_is_not_known(site: Path) -> None:
    done = orcast(site, *RUN, "--set", "engine.scheduler=long_prompts")
    assert done.returncode == 2 and "'long_prompts' is not known" in done.stderr
