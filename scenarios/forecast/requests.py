"""The requests of a scenario: read from its trace, or drawn with its seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from scenarios.forecast.sharing import (
    answers_awaited,
    draw_conversations,
    draw_samples,
    lay_conversations,
    think_times_s,
)
from scenarios.forecast.trace_opening import read_scenario_trace
from scenarios.schema.engine import Engine
from scenarios.schema.workload import (
    Arrivals,
    Images,
    LengthPair,
    Lengths,
    RequestClass,
    SharedPrefixes,
)
from scenarios.schema.workload import Workload as WorkloadSection
from sim.workload import PromptContent, Workload, arrivals, lengths
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
    streams = np.random.SeedSequence(workload.seed).spawn(8)
    arrival_rng, prompt_rng, output_rng, prefix_rng, sample_rng, class_rng, image_rng, think_rng = (
        map(np.random.default_rng, streams)
    )
    labels = None
    notes: tuple[str, ...] = ()
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
        drawn = _changed(drawn, columns["arrival_s"], workload, image_rng)
        prompts, outputs, content = drawn.prompt_tokens, drawn.output_tokens, drawn.content
        labels, notes = drawn.labels, drawn.notes
        waits = None if drawn.follows is None else (drawn.follows, drawn.think_s)
        if workload.sessions is not None:
            _check_bare(drawn, "sessions")
            content, waits = lay_conversations(workload.sessions, drawn, prefix_rng)
        elif workload.shared_prefixes is not None:
            _check_bare(drawn, "shared_prefixes")
            content = _prefixes(workload.shared_prefixes, prompts, prefix_rng)
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
        prompts = prompts + _image_tokens(workload.images, count, image_rng)
        outputs = _cut(outputs, workload.max_tokens)
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
            content = _prefixes(workload.shared_prefixes, prompts, prefix_rng)
    samples = draw_samples(
        workload, outputs, lambda n: _further_lengths(workload, outputs, n, sample_rng), sample_rng
    )
    if samples is None and drawn is not None:
        samples = drawn.samples
    if samples is not None:
        outputs = samples.longest
    limits = outputs if drawn is None else np.maximum(outputs, drawn.max_tokens)
    if workload.max_tokens is not None:
        limits = np.full(len(outputs), workload.max_tokens)
    client_think_s = None
    if workload.think_time_s is not None:
        client_think_s = think_times_s(workload.think_time_s, len(outputs), think_rng)
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
        notes=notes,
        samples=samples,
        follows=None if waits is None else waits[0],
        think_s=None if waits is None else waits[1],  # type: ignore[arg-type]
        client_think_s=client_think_s,
        leaves_s=None if drawn is None else _leaves_s(drawn, arrival_s),
    )


def _changed(
    drawn: Workload, arrival_s: np.ndarray, workload: WorkloadSection, rng: np.random.Generator
) -> Workload:
    """A trace's requests as they come here: at these times, with images, cut at max_tokens."""
    outputs = _cut(drawn.output_tokens, workload.max_tokens)
    cut = int((outputs < drawn.output_tokens).sum())
    content = drawn.content
    if workload.images is not None and content is not None:  # what follows them has other places
        known = np.minimum(content.known_tokens, drawn.prompt_tokens)
        content = replace(content, known_tokens=known)
    said = (f"max_tokens {workload.max_tokens} cuts {cut} of {len(drawn)} answers",) if cut else ()
    return replace(
        drawn,
        arrival_s=arrival_s,
        prompt_tokens=drawn.prompt_tokens + _image_tokens(workload.images, len(drawn), rng),
        output_tokens=outputs,
        max_tokens=np.maximum(outputs, drawn.max_tokens),
        leaves_s=_leaves_s(drawn, arrival_s),
        content=content,
        notes=(*drawn.notes, *said),
    )


def _check_bare(drawn: Workload, name: str) -> None:
    """ValueError where a trace says itself what `name` would be laid over it for."""
    if drawn.content is not None or (name == "sessions" and drawn.follows is not None):
        raise ValueError(
            f"{name}: the trace {drawn.name} says itself what its prompts share; leave it out"
        )


def _prefixes(
    given: SharedPrefixes, prompts: np.ndarray, rng: np.random.Generator
) -> PromptContent:
    return shared_prefixes(
        rng, prompts, num_prefixes=given.num_prefixes, shared_prefix_tokens=given.tokens
    )


def _image_tokens(images: Images | None, count: int, rng: np.random.Generator) -> np.ndarray:
    """Tokens of each request's images."""
    if images is None:
        return np.zeros(count, np.int64)
    have = rng.random(count) < images.share
    return np.where(have, images.tokens * images.per_request, 0).astype(np.int64)


def _cut(lengths: np.ndarray, max_tokens: int | None) -> np.ndarray:
    """Answers as long as clients let them become."""
    return lengths if max_tokens is None else np.minimum(lengths, max_tokens)


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
    rate_per_s = given.request_rate
    if given.process == "poisson":
        found = arrivals.poisson(rng, count, rate_per_s=rate_per_s)
    else:
        assert given.burstiness is not None
        found = arrivals.gamma(rng, count, rate_per_s=rate_per_s, burstiness=given.burstiness)
    return arrivals.rescaled(found, rate_per_s=rate_per_s) if given.rescale else found


def _further_lengths(
    workload: WorkloadSection, outputs: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Lengths of further samples: of the outputs' distribution, or of the trace's outputs."""
    if workload.lengths is None or workload.lengths.in_order:
        return rng.choice(outputs, size=count)
    return _cut(_lengths("output", workload.lengths, count, rng), workload.max_tokens)


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
