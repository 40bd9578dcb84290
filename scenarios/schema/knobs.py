"""The knobs of a scenario that are worth turning, and the positions each of them has.

Every knob is a list of choices: a page can show it as a slider or a menu, and nothing but these
values can ever be asked for from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from scenarios import library
from scenarios.schema.engine import Engine
from scenarios.schema.hardware import Hardware
from scenarios.schema.latency import Latency
from scenarios.schema.scenario import Scenario

LOAD, ENGINE, HARDWARE, SLO = "Load", "Engine", "Model and hardware", "Service levels"

_FACTORS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6)
_BATCHES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_BUDGETS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_BLOCKS = (1, 8, 16, 32, 64, 128, 256)
_LENGTHS = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
_TTFT_MS = (50, 100, 150, 200, 300, 500, 1000, 2000, 5000)
_TPOT_MS = (5, 10, 15, 20, 25, 30, 40, 50, 75, 100, 200)


@dataclass(frozen=True, slots=True)
class Knob:
    """One value of a scenario: its YAML path, its possible values, and the one it has."""

    path: str
    label: str
    group: str
    choices: tuple[Any, ...]
    value: Any
    ordered: bool  # numbers along a line, as opposed to names
    unit: str = ""

    def text(self, value: Any) -> str:
        """A value as ``--set`` takes it."""
        if value is None:
            return "null"
        return str(value).lower() if isinstance(value, bool) else str(value)


def knobs(scenario: Scenario, *, beside: Path | None = None) -> list[Knob]:
    """The knobs of `scenario`; each has the scenario's own value among its choices.

    A relative path of a model is looked up in the current folder, then in `beside`.
    """
    experts = library.model(scenario.model, beside=beside).moe is not None
    hardware = _hardware(scenario, experts=experts)
    return [*_load(scenario), *hardware, *_engine(scenario), *_slo(scenario)]


def as_overrides(known: Iterable[Knob], values: Mapping[str, Any]) -> list[str]:
    """``PATH=VALUE`` for every knob that `values` turns away from the scenario's own value.

    Raises ValueError for a value that is not among a knob's choices: it came from elsewhere.
    """
    overrides = []
    for knob in known:
        value = values.get(knob.path, knob.value)
        if not any(value == choice and type(value) is type(choice) for choice in knob.choices):
            raise ValueError(f"{knob.path}: {value!r:.40} is not one of its choices")
        if value != knob.value:
            overrides.append(f"{knob.path}={knob.text(value)}")
    return overrides


def nearest(
    known: Iterable[Knob], values: Mapping[str, Any], works: Callable[[Mapping[str, Any]], bool]
) -> Iterator[dict[str, Any]]:
    """What one more knob of hardware or engine, turned as little as it takes, makes `values` work.

    Never the model: it is what somebody wants to serve.
    """
    for knob in known:
        if knob.group not in (HARDWARE, ENGINE) or knob.path == "model":
            continue
        at = knob.choices.index(values[knob.path])
        others = [choice for place, choice in enumerate(knob.choices) if place != at]
        if knob.ordered:
            others.sort(key=lambda choice: abs(knob.choices.index(choice) - at))
        for choice in others:
            turned = {**values, knob.path: choice}
            if works(turned):
                yield turned
                break


def _ordered(
    path: str, label: str, group: str, value: float, choices: Iterable[float], unit: str = ""
) -> Knob:
    return Knob(path, label, group, tuple(sorted({*choices, value})), value, True, unit)


def _named(path: str, label: str, group: str, value: Any, choices: Iterable[Any]) -> Knob:
    listed = tuple(choices)
    if value not in listed:  # a path, a model of one's own
        listed = (value, *listed)
    return Knob(path, label, group, listed, value, False)


def _load(scenario: Scenario) -> Iterable[Knob]:
    workload = scenario.workload
    arrivals = workload.arrivals
    if arrivals is not None and arrivals.request_rate is not None:
        rate = arrivals.request_rate
        rates = (float(f"{rate * factor:.3g}") for factor in _FACTORS)
        yield _ordered(
            "workload.arrivals.request_rate", "Request rate", LOAD, rate, rates, "requests/s"
        )
    elif workload.trace is not None:
        scale = workload.time_scale
        scales = (float(f"{scale / factor:.3g}") for factor in _FACTORS)
        yield _ordered(
            "workload.time_scale", "Time scale (0.5: twice the load)", LOAD, scale, scales
        )
    if workload.lengths is not None:
        for side in ("prompt", "output"):
            lengths = getattr(workload.lengths, side)
            for key in ("mean", "median", "tokens"):
                value = getattr(lengths, key)
                if value is not None:
                    choices = (type(value)(tokens) for tokens in _LENGTHS)
                    label = f"{side.capitalize()} length" + (f", {key}" if key != "tokens" else "")
                    path = f"workload.lengths.{side}.{key}"
                    yield _ordered(path, label, LOAD, value, choices, "tokens")


def _degrees(hardware: Hardware, *, experts: bool) -> Iterable[Knob]:
    degrees = (1, 2, 4, 8)
    yield _ordered(
        "hardware.tensor_parallel", "Tensor parallel", HARDWARE, hardware.tensor_parallel, degrees,
        "GPUs",
    )  # fmt: skip
    # The other way to spread a model: its experts over ranks, or its layers over stages.
    key = "expert_parallel" if experts else "pipeline_parallel"
    yield _ordered(
        f"hardware.{key}", key.replace("_", " ").capitalize(), HARDWARE, getattr(hardware, key),
        degrees, "ranks" if experts else "stages",
    )  # fmt: skip


def _hardware(scenario: Scenario, *, experts: bool) -> Iterable[Knob]:
    hardware = scenario.hardware
    yield _named("model", "Model", HARDWARE, scenario.model, library.model_names())
    if scenario.latency.source in ("auto", "roofline") and isinstance(hardware.gpu, str):
        yield _named("hardware.gpu", "GPU", HARDWARE, hardware.gpu, library.gpus())
    if not experts or hardware.data_parallel == 1:  # else one degree decides the other
        yield from _degrees(hardware, experts=experts)
    yield from _replicas(scenario)
    yield from _precision(scenario)
    yield from _latency(scenario)


def _replicas(scenario: Scenario) -> Iterable[Knob]:
    """Of each pool or group, or of all."""
    counts, cluster = (1, 2, 3, 4, 6, 8, 12, 16), scenario.cluster
    for number, group in enumerate(cluster.groups):
        name = group.name or (group.role if group.role != "both" else f"group {number}")
        path, label = f"cluster.groups[{number}].replicas", f"Replicas of {name}"
        yield _ordered(path, label, HARDWARE, group.replicas, counts)
    if not cluster.groups and scenario.workload.max_concurrency is None:
        yield _ordered("cluster.replicas", "Replicas", HARDWARE, cluster.replicas, counts)


def _precision(scenario: Scenario) -> Iterable[Knob]:
    """The types of weights and cache, where times follow them: not those of a table as it is."""
    if scenario.latency.source not in ("auto", "roofline", "aiconfigurator"):
        return
    for key, label in (("weight_dtype", "Weights in"), ("kv_cache_dtype", "KV cache in")):
        types = get_args(Engine.model_fields[key].annotation)
        yield _named(f"engine.{key}", label, HARDWARE, getattr(scenario.engine, key), types)


def _latency(scenario: Scenario) -> Iterable[Knob]:
    """Measured or analytic times, where what else the section says leaves the choice."""
    sources, own = ("auto", "roofline"), scenario.latency
    said = own.model_dump(exclude_unset=True, exclude_none=True)
    if own.source in sources and all(_is_valid({**said, "source": each}) for each in sources):
        yield _named("latency.source", "Iteration times", HARDWARE, own.source, sources)


def _is_valid(latency: Mapping[str, Any]) -> bool:
    try:
        Latency.model_validate(latency)
    except ValueError:
        return False
    return True


def _engine(scenario: Scenario) -> Iterable[Knob]:
    engine = scenario.engine
    schedulers = get_args(Engine.model_fields["scheduler"].annotation)
    yield _named("engine.scheduler", "Policy", ENGINE, engine.scheduler, schedulers)
    yield _ordered(
        "engine.max_num_seqs", "Batch limit", ENGINE, engine.max_num_seqs, _BATCHES, "sequences"
    )
    yield _ordered(
        "engine.max_num_batched_tokens", "Token budget", ENGINE, engine.max_num_batched_tokens,
        _BUDGETS, "tokens",
    )  # fmt: skip
    yield _ordered("engine.block_size", "Block size", ENGINE, engine.block_size, _BLOCKS, "tokens")
    yield _named(
        "engine.enable_prefix_caching", "Prefix cache", ENGINE, engine.enable_prefix_caching,
        (True, False),
    )  # fmt: skip
    if scenario.speculation is not None:
        method = scenario.speculation.method
        yield _named("speculation", "Speculation", ENGINE, method, (method, None))


def _slo(scenario: Scenario) -> Iterable[Knob]:
    slo = scenario.slo
    for key, label, choices in (("ttft_ms", "TTFT", _TTFT_MS), ("tpot_ms", "TPOT", _TPOT_MS)):
        value = getattr(slo, key)
        if value is not None:
            limits = (float(choice) for choice in choices)
            yield _ordered(f"slo.{key}", f"{label} within", SLO, float(value), limits, "ms")
