"""The requests of a scenario: read from its trace, or drawn with its seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from scenarios.forecast.sharing import answers_awaited, draw_conversations, draw_samples
from scenarios.forecast.trace_opening import read_scenario_trace
from scenarios.schema.engine import Engine
from scenarios.schema.workload import Arrivals, LengthPair, Lengths, RequestClass
from scenarios.schema.workload import Workload as WorkloadSection
from sim.workload import Workload, arrivals, lengths
from sim.workload.labels import drawn_labels
from sim.workload.sessions import shared_prefixes

LATEST_ARRIVAL_S = 1e9  # thirty years; float64 resolves 0.1 us there


def draw_workload(
    workload: WorkloadSection, engine: Engine, beside: Path | None = None
) -> Workload:
    """The requests of a scenario: read from its trace, or drawn with its seed.

    Arrivals, prompts and outputs have random streams of their own, so that changing one of them
    leaves the others as they were (common random numbers).
    """
    streams = np.random.SeedSequence(workload.seed).spawn(6)
    arrival_rng, prompt_rng, output_rng, prefix_rng, sample_rng, class_rng = map(
        np.random.default_rng, streams
    )
    labels = None
    if workload.trace is not None:
        drawn = read_scenario_trace(
            workload.trace,
            beside=beside,
            format=workload.format,
            columns=workload.columns,
            tokenizer=workload.tokenizer,
            content=engine.enable_prefix_caching,
            label=workload.class_column,
        )
        if workload.start or workload.stop is not None:
            drawn = drawn.slice(workload.start, workload.stop)
        columns = {"arrival_s": drawn.arrival_s}
        if workload.arrivals is not None:
            columns["arrival_s"] = _arrivals(workload.arrivals, len(drawn), arrival_rng)
        prompts, outputs, content = drawn.prompt_tokens, drawn.output_tokens, drawn.content
        labels = drawn.labels
        waits = None if drawn.follows is None else (drawn.follows, drawn.think_s)
    else:
        assert workload.arrivals and workload.num_requests
        count, pair = workload.num_requests, workload.lengths
        if pair is not None:
            prompts = _lengths("prompt", pair, count, prompt_rng)
            outputs = _lengths("output", pair, count, output_rng)
        else:
            assert workload.classes
            shares = {name: each.share for name, each in workload.classes.items()}
            labels = drawn_labels(class_rng, count, shares)
            prompts, outputs = _mixed_lengths(workload.classes, labels, prompt_rng, output_rng)
        content, drawn, waits = None, None, None
        given = workload.arrivals
        if workload.sessions is not None:
            turns = draw_conversations(
                workload, lambda n: _arrivals(given, n, arrival_rng), prompts, outputs, prefix_rng
            )
            columns = {"arrival_s": turns.arrival_s}
            prompts, outputs, content = turns.prompt_tokens, turns.output_tokens, turns.content
            waits = answers_awaited(workload.sessions, turns, turns.arrival_s)
        else:
            columns = {"arrival_s": _arrivals(given, count, arrival_rng)}
        if workload.shared_prefixes is not None and workload.sessions is None:
            content = shared_prefixes(
                prefix_rng,
                prompts,
                num_prefixes=workload.shared_prefixes.num_prefixes,
                shared_prefix_tokens=workload.shared_prefixes.tokens,
            )
    samples = draw_samples(
        workload, outputs, lambda n: _further_lengths(workload, outputs, n, sample_rng), sample_rng
    )
    if samples is None and drawn is not None:
        samples = drawn.samples
    if samples is not None:
        outputs = samples.longest
    limits = outputs if drawn is None else np.maximum(outputs, drawn.max_tokens)
    if workload.max_tokens is not None:
        limits = np.maximum(outputs, workload.max_tokens)
    with np.errstate(over="ignore"):
        arrival_s = columns["arrival_s"] * workload.time_scale
    if not arrival_s[-1] <= LATEST_ARRIVAL_S:
        raise ValueError(
            f"the last request arrives after {arrival_s[-1]:g} s, beyond {LATEST_ARRIVAL_S:g} s a "
            "clock cannot tell iterations apart; raise request_rate or lower time_scale"
        )
    return Workload(
        arrival_s=arrival_s,
        prompt_tokens=prompts,
        output_tokens=outputs,
        max_tokens=limits,
        content=content,
        max_concurrency=workload.max_concurrency
        or (drawn.max_concurrency if drawn is not None and workload.arrivals is None else None),
        request_ids=None if drawn is None else drawn.request_ids,
        labels=labels,
        name="synthetic" if drawn is None else drawn.name,
        notes=() if drawn is None else drawn.notes,
        samples=samples,
        follows=None if waits is None else waits[0],
        think_s=None if waits is None else waits[1],  # type: ignore[arg-type]
        leaves_s=None if drawn is None else _leaves_s(drawn, arrival_s),
    )


def _leaves_s(drawn: Workload, arrival_s: np.ndarray) -> np.ndarray | None:
    """When clients of a trace are gone that come at these times: as long after as they were."""
    if drawn.leaves_s is None or np.array_equal(arrival_s, drawn.arrival_s):
        return drawn.leaves_s
    return arrival_s + (drawn.leaves_s - drawn.arrival_s)


def _arrivals(given: Arrivals, count: int, rng: np.random.Generator) -> np.ndarray:
    found = _steady_arrivals(given, count, rng)
    if given.profile is None:
        return found
    times_s, multiples = zip(*given.profile, strict=True)
    return arrivals.along(found, times_s, multiples, repeat=given.repeat)


def _steady_arrivals(given: Arrivals, count: int, rng: np.random.Generator) -> np.ndarray:
    if given.process == "all_at_once":
        return arrivals.all_at_once(count)
    assert given.request_rate is not None
    if given.process == "constant":
        return arrivals.constant_rate(count, rate_per_s=given.request_rate)
    if given.process == "poisson":
        return arrivals.poisson(rng, count, rate_per_s=given.request_rate)
    assert given.burstiness is not None
    return arrivals.gamma(rng, count, rate_per_s=given.request_rate, burstiness=given.burstiness)


def _further_lengths(
    workload: WorkloadSection, outputs: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Lengths of further samples: of the outputs' distribution, or of the trace's outputs."""
    if workload.lengths is None or workload.lengths.in_order:
        return rng.choice(outputs, size=count)
    return _lengths("output", workload.lengths, count, rng)


def _lengths(which: str, pair: LengthPair, count: int, rng: np.random.Generator) -> np.ndarray:
    given: Lengths = getattr(pair, which)
    if given.distribution == "fixed":
        assert given.tokens
        return lengths.fixed(count, given.tokens)
    if given.distribution == "uniform":
        assert given.min and given.max
        return lengths.uniform(rng, count, min_tokens=given.min, max_tokens=given.max)
    if given.distribution == "lognormal":
        assert given.sigma is not None
        return lengths.lognormal(
            rng,
            count,
            sigma=given.sigma,
            mean_tokens=given.mean,
            median_tokens=given.median,
            min_tokens=given.min or 1,
            max_tokens=given.max,
        )
    assert given.values
    if pair.in_order:
        return np.resize(np.array(given.values, dtype=np.int64), count)
    return lengths.empirical(rng, count, given.values)


def _mixed_lengths(
    classes: Mapping[str, RequestClass],
    labels: list[str],
    prompt_rng: np.random.Generator,
    output_rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and output tokens of requests of several classes.

    Every class draws for all requests, from streams of its own: another share or another length
    leaves the requests of the other classes as they were.
    """
    count, of = len(labels), np.array(labels)
    prompts, outputs = np.zeros(count, np.int64), np.zeros(count, np.int64)
    prompt_rngs, output_rngs = (rng.spawn(len(classes)) for rng in (prompt_rng, output_rng))
    for (name, each), of_prompts, of_outputs in zip(
        classes.items(), prompt_rngs, output_rngs, strict=True
    ):
        mine = of == name
        prompts[mine] = _lengths("prompt", each.lengths, count, of_prompts)[mine]
        outputs[mine] = _lengths("output", each.lengths, count, of_outputs)[mine]
    return prompts, outputs
