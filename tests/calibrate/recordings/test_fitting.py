"""Constants are found again where they are known, and what is left unsaid is left unsure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from calibrate.recordings.fitting import Constant, fit, fit_iterations
from calibrate.recordings.measurement import Measurement

RNG = np.random.default_rng(5)
COUNT = 60
PROMPT, OUTPUT = RNG.integers(10, 2000, COUNT), RNG.integers(2, 400, COUNT)
SLOW = Constant("slow", 1.0, 0.5, 0.0, 50.0)
FIRST = Constant("first", 10.0, 5.0, 0.0, 500.0)
IDLE = Constant("idle", 1.0, 1.0, 0.0, 10.0)


def served(values: Mapping[str, float], *, noise: float = 0.0) -> Measurement:
    """Requests whose times depend on the constants, in steps of a millisecond before the first."""
    arrival_s = np.arange(COUNT) * 0.05
    ttft_s = np.ceil(PROMPT * 1e-5 * 1e3 + values["first"]) / 1e3
    e2e_s = ttft_s + (OUTPUT - 1) * (5.0 + values["slow"]) / 1e3
    e2e_s = e2e_s * (1 + noise * RNG.standard_normal(COUNT))
    return Measurement(
        "made", False, arrival_s, arrival_s, arrival_s + ttft_s, arrival_s + e2e_s, ttft_s, e2e_s,
        PROMPT, OUTPUT, np.ones(COUNT, bool),
    )  # fmt: skip


def test_constants_are_found_again() -> None:
    measured = served({"slow": 3.2, "first": 40.0}, noise=0.005)
    found = fit(served, measured, [SLOW, FIRST], np.arange(COUNT))
    assert found.values["slow"] == pytest.approx(3.2, abs=3 * found.uncertainty["slow"] + 0.02)
    assert found.values["first"] == pytest.approx(40.0, abs=1.5)
    assert found.residual < 0.01
    assert found.determined("slow") and found.forecasts < 40


def test_what_the_recording_does_not_show_is_not_determined() -> None:
    measured = served({"slow": 3.2, "first": 40.0}, noise=0.005)

    found = fit(served, measured, [SLOW, FIRST, IDLE], np.arange(COUNT))
    assert found.values["slow"] == pytest.approx(3.2, abs=0.2)
    assert not found.determined("idle")


def test_only_the_rows_that_are_shown_count() -> None:
    measured = served({"slow": 3.2, "first": 40.0})
    measured.e2e_s[30:] *= 7.0
    found = fit(served, measured, [SLOW, FIRST], np.arange(30))
    assert found.values["slow"] == pytest.approx(3.2, abs=0.02)


def test_too_few_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="5 completed requests are too few for 2 constants"):
        fit(served, served({"slow": 1.0, "first": 9.0}), [SLOW, FIRST], np.arange(5))


def test_iterations_tell_their_constants_without_a_simulation_and_despite_pauses() -> None:
    kernels_s = RNG.uniform(2e-3, 9e-3, 400)
    prompts = RNG.random(400) < 0.3
    effects = {"decode": np.where(prompts, 0.0, 1e-3), "prompt": np.where(prompts, 1e-3, 0.0)}
    durations_s = kernels_s + 0.7 * effects["decode"] + 4.0 * effects["prompt"]
    durations_s *= 1 + 0.01 * RNG.standard_normal(400)
    durations_s[::40] += 0.5  # the machine did something else
    values, uncertainty = fit_iterations(kernels_s, durations_s, effects)
    assert values["decode"] == pytest.approx(0.7, abs=0.1)
    assert values["prompt"] == pytest.approx(4.0, abs=0.2)
    assert 0 < uncertainty["decode"] < 0.1
