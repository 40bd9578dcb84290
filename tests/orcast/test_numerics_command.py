"""`orcast calibrate numerics`: the study of numeric deviation, its figures and its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import needs

pytest.importorskip("torch", reason=needs.KERNELS)

from calibrate.measure import numerics
from tests.orcast.command_line import orcast
from tests.reports.browser import Browser


@needs.browser
def test_one_command_makes_figures_and_a_quiet_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numerics, "LENGTHS", (32, 64))
    monkeypatch.setattr(numerics, "BLOCKS", (16, 32))
    folder = tmp_path / "study"
    outcome = orcast("calibrate", "numerics", "--steps", "2", "--out", folder)
    assert outcome.status == 0, outcome.stderr
    figures = json.loads((folder / "numerics.json").read_text())
    assert [row["tokens"] for row in figures["deviations"]] == [32, 32, 64, 64]
    assert {row["run"] for row in figures["drifts"] if row["step"] == 2} == {
        "flash", "flash_rounded", "low_precision", "another_seed",
    }  # fmt: skip
    low = {row["run"]: row["wasserstein"] for row in figures["drifts"] if row["step"] == 2}
    assert f"another initialisation to {low['another_seed'] / low['low_precision']:.3g}"[:30] in (
        " ".join(outcome.stdout.split())
    )
    with Browser(width=390) as browser:
        browser.open((folder / "report.html").as_uri())
        assert not browser.problems and browser.requests[1:] == []


def test_an_unknown_type_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    outcome = orcast("calibrate", "numerics", "--dtype", "bfloat", "--out", tmp_path / "study")
    assert outcome.status == 2 and "bfloat16" in outcome.stderr
    assert not (tmp_path / "study").exists()
