"""The deployments a plan considers: every combination of GPU, layout, knobs, pools, speculation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from scenarios import library
from scenarios.errors import InputError, did_you_mean
from scenarios.plan.space import clusters, searched, speculations
from scenarios.schema.engine import Engine
from scenarios.schema.generations import given_knobs
from scenarios.schema.hardware import Hardware
from scenarios.schema.load import parse_scenario
from scenarios.schema.scenario import Scenario
from scenarios.schema.section import Section

MOST = 2000  # candidates; more is a slip
# Degrees whose product is the GPUs of a replica; data-parallel ranks have experts over their own.
PARALLEL = ("tensor_parallel", "pipeline_parallel", "expert_parallel", "data_parallel")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One deployment: its name, what distinguishes it, and its scenario or why there is none.

    A replica is an engine, or a unit of prefill and decode pools: `scenario` has one.
    """

    label: str
    gpu: str
    settings: tuple[tuple[str, Any], ...]  # engine knobs that differ between candidates
    gpus_per_replica: int
    layout: str
    price_usd_per_hour: float  # of one replica
    scenario: Scenario | None
    refused: str = ""


def candidates_of(scenario: Scenario, *, origin: Path | None = None) -> list[Candidate]:
    """All combinations, in the order of their lists. Raises InputError for a list that names
    something unknown; a combination that the schema refuses is a candidate with its reason."""
    assert scenario.plan is not None
    source = str(origin or "scenario")
    wanted, where = searched(scenario, source), f"{source}: plan.candidates"
    prices = gpu_prices(scenario.plan.prices, origin=origin)
    choices: Sequence[str | dict[str, Any]] = wanted.gpus or [scenario.hardware.gpu_given]
    beside = None if origin is None else origin.parent
    gpus: list[tuple[str, str | dict[str, Any]]] = []
    for given in choices:
        try:
            gpu = library.gpu(given, beside=beside)
        except InputError as error:
            raise InputError(f"{where}.gpus: {error}") from None
        prices.setdefault(gpu.name, gpu.price_usd_per_hour)
        gpus.append((gpu.name, given))
    layouts: list[dict[str, int]] = wanted.layouts or [{}]
    units, drafts = clusters(scenario, wanted, source), speculations(scenario, wanted, source)
    _check_keys(layouts, Hardware, f"{where}.layouts")
    _check_keys([wanted.engine], Engine, f"{where}.engine")
    knobs = list(wanted.engine)
    combinations = list(product(gpus, layouts, units, drafts, *wanted.engine.values()))
    if len(combinations) > MOST:
        raise InputError(f"{where}: {len(combinations)} combinations, at most {MOST} are compared")
    varied = [knob for knob in knobs if len(wanted.engine[knob]) > 1]
    found = []
    for (name, given), layout, (pools, unit), (drafting, speculation), *values in combinations:
        settings = dict(zip(knobs, values, strict=True))
        shown = {knob: settings[knob] for knob in varied}
        shown |= {"pools": pools or "none"} if len(units) > 1 else {}
        shown |= {"speculation": drafting or "none"} if len(drafts) > 1 else {}
        named = given if isinstance(given, dict) else _as_named(given, name)
        content = scenario.model_dump(mode="json") | {
            "plan": None,
            "cluster": unit,
            "speculation": None if speculation is None else speculation.model_dump(mode="json"),
            "engine": given_knobs(scenario.engine, settings),
        }
        content["hardware"] |= {"gpu": named, **layout}
        words = [pools, drafting if len(drafts) > 1 else ""]
        found.append(_candidate(content, name, shown, words, prices, beside))
    repeated = [one.label for one in found if [each.label for each in found].count(one.label) > 1]
    if repeated:
        raise InputError(f"{where}: {repeated[0]} comes out more than once; list each value once")
    return found


def gpu_prices(file: str | None, *, origin: Path | None = None) -> dict[str, float]:
    """USD per hour of one GPU: the library's, or those of a YAML file {gpu: price}.

    A file need not price every GPU; the library's prices stand for the rest.
    """
    prices = {name: library.gpu(name).price_usd_per_hour for name in library.gpus()}
    if file is None:
        return prices
    found = library.find_file(file, beside=None if origin is None else origin.parent)
    if found is None:
        raise InputError(f"{origin or 'scenario'}: plan.prices: {file}: no such file")
    given = library.read_yaml(found)
    if not isinstance(given, Mapping):
        raise InputError(f"{found}: expected lines such as h100-sxm: 2.50 (USD per GPU and hour)")
    for name, price in given.items():
        if (name := library.gpu_name(str(name))) not in prices:
            raise InputError(f"{found}: unknown GPU {name!r}; {did_you_mean(name, prices)}")
        number = isinstance(price, int | float) and not isinstance(price, bool)
        if not number or not 0 < price < 1e6:
            raise InputError(f"{found}: {name}: {price!r}, expected USD per hour above 0")
        prices[name] = float(price)
    return prices


def _as_named(given: str, name: str) -> str:
    """A library GPU by its own name, a file by its path."""
    return name if name in library.gpus() else given


def _check_keys(mappings: list[dict[str, Any]], section: type[Section], where: str) -> None:
    """InputError for a key that the section does not have, or that is another list's business."""
    allowed = [name for name in section.model_fields if name not in ("gpu", "link")]
    for mapping in mappings:
        for key in mapping:
            if key not in allowed:
                raise InputError(f"{where}: unknown key {key!r}; {did_you_mean(key, allowed)}")


def _candidate(
    content: dict[str, Any],
    gpu: str,
    shown: Mapping[str, Any],
    words: Sequence[str],
    prices: Mapping[str, float],
    beside: Path | None,
) -> Candidate:
    """The candidate whose scenario has this content; `words` end its name."""
    engines = [
        (group["replicas"], content["hardware"] | group.get("hardware", {}))
        for group in content["cluster"]["groups"]
    ] or [(1, content["hardware"])]
    count = sum(replicas * _gpus(hardware) for replicas, hardware in engines)
    price = 0.0
    for replicas, hardware in engines:
        name = library.gpu(hardware["gpu"], beside=beside).name
        each = prices[name] if name in prices else library.gpu(name).price_usd_per_hour
        price += replicas * _gpus(hardware) * each
    arrangement = "+".join(_arrangement(content["hardware"]))
    label = " ".join(
        [
            gpu if count == 1 else f"{count}x {gpu}",
            *([arrangement] if arrangement else []),
            *(word for word in words if word),
            *(
                str(value) if knob == "scheduler" else f"{knob}={value}"
                for knob, value in shown.items()
                if knob not in ("pools", "speculation")
            ),
        ]
    )
    scenario, refused = None, ""
    try:
        scenario = parse_scenario(content, origin=label)
    except InputError as error:
        refused = str(error).removeprefix(f"{label}: ")
    return Candidate(
        label=label,
        gpu=gpu,
        settings=tuple(shown.items()),
        gpus_per_replica=count,
        layout=arrangement or "1 GPU",
        price_usd_per_hour=price,
        scenario=scenario,
        refused=refused,
    )


def _gpus(hardware: Mapping[str, Any]) -> int:
    """GPUs of one engine; its data-parallel ranks have experts over their own."""
    degrees = {degree: hardware.get(degree, 1) for degree in PARALLEL}
    if degrees["data_parallel"] != 1:
        degrees["expert_parallel"] = 1
    return prod(degrees.values())


def _arrangement(hardware: Mapping[str, Any]) -> Iterator[str]:
    """``tp4``, ``pp2``, and other degrees of parallelism as they come."""
    for key, value in hardware.items():
        kind, _, rest = key.partition("_")
        if rest == "parallel" and isinstance(value, int) and value > 1:
            yield f"{kind[0]}p{value}"
