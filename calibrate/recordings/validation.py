"""Forecast against a real run of the same scenario: by request, and iteration by iteration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calibrate.engine.engine import PHASES, Served
from calibrate.recordings.comparison import Comparison
from calibrate.recordings.measurement import Measurement, simulated
from calibrate.recordings.replay import Replay
from calibrate.recordings.verdict import verdict
from sim.metrics import Slo, summarize
from sim.records import Records
from sim.speculation.acceptance import ObservedAcceptance
from sim.speculation.summary import speculation_figures

_PHASE_WORDS = {
    "schedule_s": "scheduling",
    "prepare_s": "preparing inputs",
    "forward_s": "the forward pass",
    "sample_s": "logits and sampling",
    "rest_s": "bookkeeping, or a pause of the machine",
}
WORST = 12


@dataclass(frozen=True, slots=True)
class EngineRun:
    """A run of the engine in the form of a forecast: records, resolved scenario, summary."""

    records: Records
    scenario: Mapping[str, Any]
    summary: Mapping[str, Any]

    @classmethod
    def of(cls, served: Served, *, slo: Slo, scenario: Mapping[str, Any], label: str) -> EngineRun:
        """Summarise what was served; `label` says where."""
        records = served.records
        requests = records.requests
        requests["error"] = np.array(
            [served.errors.get(number, "") for number in requests["request"].tolist()], dtype="U"
        )
        parts_s = {name: records.iterations[name] for name in PHASES}
        known_s = np.sum(list(parts_s.values()), axis=0)
        parts_s["rest_s"] = records.iterations["duration_s"] - known_s
        summary = summarize(records, slo)
        warnings = []
        if served.errors:
            warnings.append(
                f"{len(served.errors)} requests got no whole answer, the first of them because: "
                f"{next(iter(served.errors.values()))}"
            )
        if served.speculation is not None:
            observed = served.speculation.acceptance
            assert isinstance(observed, ObservedAcceptance)
            figures = speculation_figures(records.iterations, served.speculation)
            depth = served.speculation.shape.depth
            summary["speculation"] = figures | observed.figures(depth)
        summary |= {
            "mode": "engine",
            "latency": {"source": "engine", "measured": True, "basis": "measured", "label": label},
            "time_parts_s": {
                name.removesuffix("_s"): float(part_s.sum()) for name, part_s in parts_s.items()
            },
            "warnings": warnings,
        }
        return cls(records, scenario, summary)

    def measurement(self) -> Measurement:
        """Its requests as something to compare with."""
        label = str(self.summary["latency"]["label"])
        run = simulated(label, self.records.requests, self.records.preemptions)
        return replace(run, recorded=True)


@dataclass(frozen=True, slots=True)
class WorstIteration:
    """An iteration that was predicted badly; times in seconds."""

    number: int
    start_s: float
    measured_s: float
    predicted_s: float
    prefill_tokens: int
    decode_seqs: int
    context_tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class Validation:
    """A forecast held against a run of the engine.

    comparison: request by request; a is the forecast, b the engine.
    replay: the engine's durations through the simulator; None where requests failed.
    engine, forecast: records of both runs.
    errors: why a request got no whole answer, by number.
    slowdown: how long a fixed piece of work took the device around the run, over what it took when
        the table was measured; None where the table does not say.
    contention: time by the clock over the processor's own for that work; None on a GPU.
    doubts: what the latency table says against itself.
    """

    comparison: Comparison
    replay: Replay | None
    engine: Records
    forecast: Records
    errors: Mapping[int, str]
    slowdown: float | None = None
    contention: float | None = None
    doubts: tuple[str, ...] = ()

    def iteration_errors_pct(self) -> np.ndarray:
        """Predicted less measured duration of each of the engine's iterations, in per cent."""
        if self.replay is None or self.replay.predicted_s is None:
            return np.zeros(0)
        measured_s = self.engine.iterations["duration_s"]
        predicted_s = self.replay.predicted_s[: len(measured_s)]
        errors: np.ndarray = (predicted_s / measured_s[: len(predicted_s)] - 1.0) * 100.0
        return errors

    def worst(self) -> list[WorstIteration]:
        """The iterations whose prediction missed the most time, and what took it."""
        errors_pct = self.iteration_errors_pct()
        if not errors_pct.size:
            return []
        assert self.replay is not None and self.replay.predicted_s is not None
        iterations = self.engine.iterations
        measured_s = iterations["duration_s"]
        predicted_s = self.replay.predicted_s[: len(measured_s)]
        missed_s = measured_s - predicted_s
        reasons = _Reasons(iterations, self.replay.extrapolated)
        return [
            WorstIteration(
                number=number,
                start_s=float(iterations["start_s"][number]),
                measured_s=float(measured_s[number]),
                predicted_s=float(predicted_s[number]),
                prefill_tokens=int(iterations["prefill_tokens"][number]),
                decode_seqs=int(iterations["decode_seqs"][number]),
                context_tokens=int(iterations["context_tokens"][number]),
                reason=reasons.of(number, float(missed_s[number])),
            )
            for number in np.argsort(-np.abs(missed_s), kind="stable")[:WORST].tolist()
        ]

    def phase_shares(self) -> dict[str, float]:
        """Which share of the engine's time each phase took; they add up to 1."""
        iterations = self.engine.iterations
        total_s = float(iterations["duration_s"].sum())
        parts = {name: iterations[name] for name in PHASES if name in iterations}
        shares = {name: float(values.sum()) / total_s for name, values in parts.items()}
        return shares | {"rest_s": 1.0 - sum(shares.values())}

    def as_dict(self) -> dict[str, Any]:
        """What `orcast validate --json` prints: a comparison, and what only an engine can tell."""
        errors_pct = self.iteration_errors_pct()
        found = self.comparison.as_dict()
        found["schedule_identity"] = {
            "checked": self.replay is not None,
            "differences": [] if self.replay is None else self.replay.differences,
        }
        found["iterations"] = {
            "engine": len(self.engine.iterations["duration_s"]),
            "forecast": len(self.forecast.iterations["duration_s"]),
            "median_error_pct": _percentile(np.abs(errors_pct), 50),
            "p95_error_pct": _percentile(np.abs(errors_pct), 95),
            "bias_pct": self._bias_pct(),
            "phase_shares": {
                name.removesuffix("_s"): share for name, share in self.phase_shares().items()
            },
            "worst": [
                {name: getattr(worst, name) for name in WorstIteration.__dataclass_fields__}
                for worst in self.worst()
            ],
        }
        found["slowdown"], found["contention"] = self.slowdown, self.contention
        found["request_errors"] = {str(request): why for request, why in self.errors.items()}
        found["verdict"] = verdict(found, doubts=self.doubts).as_dict()
        return found

    def _bias_pct(self) -> float | None:
        """Predicted less measured time over all iterations, in per cent of the measured."""
        if self.replay is None or self.replay.predicted_s is None:
            return None
        measured_s = float(self.engine.iterations["duration_s"].sum())
        return (float(self.replay.predicted_s.sum()) / measured_s - 1.0) * 100.0


class _Reasons:
    """Says which phase of an iteration took unusually long, or short."""

    def __init__(self, iterations: Mapping[str, np.ndarray], extrapolated: np.ndarray) -> None:
        self._extrapolated = extrapolated
        self._phases_s = {name: iterations[name] for name in PHASES if name in iterations}
        if self._phases_s:
            known_s = np.sum(list(self._phases_s.values()), axis=0)
            self._phases_s["rest_s"] = iterations["duration_s"] - known_s
        prefill, decodes = iterations["prefill_tokens"], iterations["decode_seqs"]
        size = prefill + decodes
        # Alike: both with or without prompts, and of similar size.
        self._kind = 64 * (prefill > 0) + np.log2(np.maximum(size, 1)).astype(np.int64)

    def of(self, number: int, missed_s: float) -> str:
        if number < len(self._extrapolated) and self._extrapolated[number]:
            return "outside the measured range"
        alike = self._kind == self._kind[number]
        if alike.sum() < 5:
            return "one of few iterations of its kind"
        excess_s = {
            name: float(values[number] - np.median(values[alike]))
            for name, values in self._phases_s.items()
        }
        if not excess_s:
            return "its phases were not recorded"
        name = max(excess_s, key=lambda phase: excess_s[phase] * np.sign(missed_s))
        if abs(excess_s[name]) < 0.3 * abs(missed_s):
            return "like others of its kind: the table is off there"
        word = "longer" if excess_s[name] > 0 else "shorter"
        return (
            f"{_PHASE_WORDS[name]} took {abs(excess_s[name]) * 1e3:.2f} ms {word} than in the "
            "median of its kind"
        )


def _percentile(values: np.ndarray, q: float) -> float | None:
    return float(np.percentile(values, q)) if values.size else None
