"""What a profile cannot hold, found in the first seconds of a recording and told of the rest.

The unknowns are constants of `sim.latency.refinement`, and for what a client recorded the time on
the way to the engine. The simulator is the forward model: the recording's arrivals and lengths
through the same scheduler. An engine's log of iterations needs no simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calibrate.recordings.fitting import Constant, Fit, fit, fit_iterations
from calibrate.recordings.iteration_log import IterationLog
from calibrate.recordings.measurement import Measurement
from sim.engine.front_end import FrontEnd
from sim.latency.refinement import CONSTANTS, Refinement
from sim.latency.table import TableLatency

# Of the way from a client to the engine and back, names of `sim.engine.front_end.FrontEnd` behind
# the prefix; `front_end` in a table's meta.yaml has them without.
FRONT_END = ("front_end_latency_us", "front_end_per_output_token_us")

# Two runs of the same requests on the same engine do not agree much better: what is forecast so
# well already is left as it is.
ALIKE = 0.01
_EACH = "E2E, each request"
UNSURE = 0.3  # of a pace: known no better, attention is taken to keep that of other kernels
ASSUMED = "assumed"  # how such a host's source begins

Values = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Refined:
    """Constants with one standard deviation each, and relative errors before and after.

    `shown` are those of what was fitted, `rest` of what was not: name -> (before, after). `count`:
    of how many requests (or iterations) the fitted ones were, and how many are left.
    """

    values: Values
    uncertainty: Values
    fitted_on: str
    until_s: float | None
    unit: str  # requests or iterations
    count: tuple[int, int]
    shown: Mapping[str, tuple[float, float]]
    rest: Mapping[str, tuple[float, float]]

    def meta(self) -> dict[str, Any]:
        """For a table's meta.yaml."""
        constants = {
            name: {
                "value": float(f"{self.values[name]:.6g}"),
                "uncertainty": float(f"{self.uncertainty[name]:.3g}"),
            }
            for name in self.values
        }
        front = {
            name.removeprefix("front_end_"): constants.pop(name)
            for name in FRONT_END
            if name in constants
        }
        found: dict[str, Any] = {"constants": constants}
        if front:
            found["front_end"] = front
        errors = {"fitted": self.shown, "rest": self.rest}
        return found | {
            "fitted_on": self.fitted_on,
            "until_s": self.until_s,
            f"{self.unit}_fitted": self.count[0],
            f"{self.unit}_left": self.count[1],
            "residual": float(f"{self.shown[next(iter(self.shown))][1]:.4g}"),
            "errors": {
                part: {
                    name: {"before": float(f"{was:.4g}"), "after": float(f"{now:.4g}")}
                    for name, (was, now) in of.items()
                }
                for part, of in errors.items()
            },
        }

    def lines(self) -> Iterator[str]:
        """What was found, and how well the rest is forecast."""
        until = "the whole of" if self.until_s is None else f"the first {self.until_s:g} s of"
        if not self.values:
            yield (
                f"{self.count[0]} {self.unit} of {until} {self.fitted_on} are forecast within "
                f"{ALIKE:.0%} already: nothing is changed."
            )
        else:
            yield f"Fitted to {self.count[0]} {self.unit} of {until} {self.fitted_on}:"
        for name, value in self.values.items():
            spread = self.uncertainty[name]
            unsure = "  (not told from nothing)" if abs(value) <= 2 * spread else ""
            yield f"  {name:30} {value:10.3f} ± {spread:.3f}{unsure}"
        for title, errors in ((f"fitted {self.unit}", self.shown), ("the rest", self.rest)):
            if not errors:
                yield f"Nothing is left to forecast: lower --until to see how well {title} fares."
                continue
            number = self.count[0] if errors is self.shown else self.count[1]
            yield f"Error of {title} ({number}), before and after:"
            for name, (was, now) in errors.items():
                yield f"  {name:30} {was:+10.2%} {now:+10.2%}"


def constants_for(
    latency: TableLatency, measured: Measurement, *, layers: int, hidden: bool
) -> list[Constant]:
    """The unknowns of a deployment; scales are shares of the typical time between two tokens.

    Kernels' pace is among them where nobody measured them, the link's α and β where ranks sum over
    one that nobody measured, the way to the engine where the client kept the times. What iterations
    that only decode take besides is the host's where it is neither `hidden` behind the device nor
    known, else a gap of each layer: a recording cannot tell the two apart.
    """
    between = measured.tpot_s[measured.completed & (measured.output_tokens > 1)]
    if not len(between):
        raise ValueError("no answer of more than one token: there is nothing to fit to")
    tpot_us = float(np.median(between)) * 1e6
    each_us = tpot_us / layers
    most = 20 * each_us
    found = [
        _host(latency, tpot_us)
        if host_is_unknown(latency, hidden=hidden)
        else Constant("decode_gap_us_per_layer", 0.02 * each_us, 0.02 * each_us, 0.0, most),
        Constant("prompt_gap_us_per_layer", 0.1 * each_us, 0.1 * each_us, 0.0, most),
    ]
    if latency.table.basis == "analytic":  # a part of it at least
        found.append(Constant("kernel_scale", 1.0, 0.1, 0.02, 50.0))
        found.append(Constant("host_us_per_sequence", 0.0, 0.005 * tpot_us, 0.0, tpot_us))
    if latency.parallel and "communication" not in latency.table.parts:
        link = latency.interconnect
        gb = link.bytes_per_s / 1e9
        found.append(Constant("link_gb_per_s", 0.7 * gb, 0.1 * gb, 0.02 * gb, gb))
        found.append(Constant("link_us", link.latency_s * 1e6, 2.0, 0.1, 200.0))
    if measured.by_client:
        found.append(Constant("front_end_latency_us", 2_000.0, 500.0, 0.0, 200_000.0))
        found.append(Constant("front_end_per_output_token_us", 30.0, 15.0, 0.0, 2_000.0))
    return found


def beyond_the_log(constants: Sequence[Constant]) -> list[Constant]:
    """What an engine's own log does not show: the time between iterations, and the way to them."""
    return [one for one in constants if one.name in ("host_us_per_iteration", *FRONT_END)]


def host_is_unknown(latency: TableLatency, *, hidden: bool) -> bool:
    """Whether an engine's iterations show what its host takes, and nobody measured or gave it."""
    return not hidden and latency.host.source.startswith(ASSUMED)


def _host(latency: TableLatency, tpot_us: float) -> Constant:
    start_us = min(latency.host.per_iteration_s * 1e6, tpot_us)
    return Constant("host_us_per_iteration", start_us, 0.02 * tpot_us, 0.0, tpot_us)


def refinement_of(values: Values) -> Refinement:
    """The constants that a latency model takes."""
    given = {name: value for name, value in values.items() if name in CONSTANTS}
    return Refinement.of({"refined": {"constants": given}})


def by_requests(
    measured: Measurement,
    simulate: Callable[[FrontEnd | None], Measurement],
    latency: TableLatency,
    constants: Sequence[Constant],
    *,
    until_s: float | None,
    front_end: FrontEnd | None = None,
    known: Refined | None = None,
) -> Refined:
    """Fit to the requests that came before `until_s`, and forecast those that came after.

    `simulate` serves the recording's requests, behind a front end, with `latency` as it is then;
    `latency` is left refined. `front_end` is the one before it is fitted; where the engine itself
    kept the times there is none. What is `known` from the engine's log is taken from there, but
    for the constants that are fitted here. Raises ValueError where there are too few requests, or
    the runs are not of the same.
    """
    fixed = {} if known is None else dict(known.values)

    def forecast(values: Values) -> Measurement:
        latency.refine(refinement_of(fixed | dict(values)))
        return simulate(front_end_of(values, front_end) if measured.by_client else None)

    before = forecast({})
    if len(before) != len(measured) or (before.prompt_tokens != measured.prompt_tokens).any():
        raise ValueError(
            f"the recording has {len(measured)} requests, the workload {len(before)}: they must be "
            "the same, in order of arrival"
        )
    shown = measured.arrival_s < (np.inf if until_s is None else until_s)
    if _errors(before, before, measured, shown & measured.completed).get(_EACH, (1.0,))[0] < ALIKE:
        constants = ()
    found: Fit = fit(forecast, measured, constants, np.flatnonzero(shown))
    after = forecast(found.values)
    done = measured.completed & before.completed & after.completed
    sure = {} if known is None else dict(known.uncertainty)
    return Refined(
        fixed | dict(found.values),
        sure | dict(found.uncertainty),
        measured.label,
        until_s,
        "requests",
        (int((shown & done).sum()), int((~shown & done).sum())),
        _errors(before, after, measured, shown & done),
        _errors(before, after, measured, ~shown & done),
    )


def by_iterations(
    log: IterationLog,
    latency: TableLatency,
    *,
    layers: int,
    until_s: float | None,
    hidden: bool = True,
) -> Refined:
    """Fit to the iterations that began before `until_s`, and forecast the durations of the rest."""
    latency.refine(Refinement())
    batches = [log.batch(row) for row in range(len(log))]
    before_s = np.array([latency.iteration_s(batch) for batch in batches])
    prompts, each = log.prefill_seqs > 0, 1e-6 * layers
    sequences = log.prefill_seqs + log.decode_seqs
    effects = {
        "decode_gap_us_per_layer": np.where(prompts, 0.0, each),
        "prompt_gap_us_per_layer": np.where(prompts, each, 0.0),
        "host_us_per_sequence": sequences * 1e-6,
    }
    known_s = before_s.copy()
    if host_is_unknown(latency, hidden=hidden):  # what is assumed of it is no part of the kernels
        known_s -= latency.host.per_iteration_s + sequences * latency.host.per_sequence_s
        effects["host_us_per_iteration"] = np.full(len(log), 1e-6)
        del effects["decode_gap_us_per_layer"]
    if latency.table.basis == "analytic":  # a part of it at least: kernels' pace is unknown too
        latency.refine(Refinement(attention_scale=2.0))
        attention_s = np.array([latency.iteration_s(batch) for batch in batches]) - before_s
        effects["kernel_scale"], effects["attention_scale"] = known_s - attention_s, attention_s
        known_s = np.zeros(len(log))
    shown = log.start_s < (np.inf if until_s is None else until_s)
    if shown.sum() < 10 * len(effects):
        raise ValueError(f"{shown.sum()} iterations are too few; record for longer")
    fitted = {name: effect[shown] for name, effect in effects.items()}
    values, uncertainty = fit_iterations(known_s[shown], log.duration_s[shown], fitted)
    if "attention_scale" in values:  # found as a pace of its own, kept as one beside the others'
        if uncertainty["attention_scale"] > UNSURE * values["attention_scale"]:
            fitted["kernel_scale"] = fitted["kernel_scale"] + fitted.pop("attention_scale")
            values, uncertainty = fit_iterations(known_s[shown], log.duration_s[shown], fitted)
        else:
            pace = max(values["kernel_scale"], 1e-9)
            for found in (values, uncertainty):
                found["attention_scale"] /= pace
    latency.refine(refinement_of(values))
    after_s = np.array([latency.iteration_s(batch) for batch in batches])

    def errors(rows: np.ndarray) -> dict[str, tuple[float, float]]:
        if not rows.any():
            return {}
        real_s = log.duration_s[rows]
        pairs = [(own[rows], real_s) for own in (before_s, after_s)]
        each = [float(np.mean(np.abs(own - real) / real)) for own, real in pairs]
        total = [float(own.sum() / real.sum() - 1) for own, real in pairs]
        return {"each iteration": (each[0], each[1]), "all together": (total[0], total[1])}

    left = ~shown
    return Refined(
        values, uncertainty, log.label, until_s, "iterations",
        (int(shown.sum()), int(left.sum())), errors(shown), errors(left),
    )  # fmt: skip


def front_end_of(values: Values, otherwise: FrontEnd | None) -> FrontEnd | None:
    """A front end with the fitted times, and those of another for what was not fitted."""
    if not any(name in values for name in FRONT_END):
        return otherwise
    before = otherwise or FrontEnd()
    latency, per_token = (values.get(name) for name in FRONT_END)
    return replace(
        before,
        latency_s=before.latency_s if latency is None else latency * 1e-6,
        per_output_token_s=before.per_output_token_s if per_token is None else per_token * 1e-6,
    )


def _errors(
    before: Measurement, after: Measurement, measured: Measurement, rows: np.ndarray
) -> dict[str, tuple[float, float]]:
    """Relative errors, before and after, of these requests."""
    if not rows.any():
        return {}

    def each(own: Measurement) -> float:
        return float(np.mean(np.abs(own.e2e_s[rows] / measured.e2e_s[rows] - 1)))

    def mean(own: Measurement, metric: str) -> float:
        ours, real = (getattr(side, metric)[rows] for side in (own, measured))
        told = np.isfinite(ours) & np.isfinite(real)
        return float(ours[told].mean() / real[told].mean() - 1) if told.any() else 0.0

    found = {_EACH: (each(before), each(after))}
    for metric, name in (("e2e_s", "mean E2E"), ("ttft_s", "mean TTFT"), ("tpot_s", "mean TPOT")):
        found[name] = (mean(before, metric), mean(after, metric))
    return found
