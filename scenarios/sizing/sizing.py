"""What a training budget buys, and what it will cost to serve: from FLOPs or $ to deployments.

budget -> optimal N and D (scaling law) -> a concrete shape -> memory, time and money of training
-> deployments and dollars a million tokens -> over the model's life, the cheapest of all models
that reach the same loss: over-training a smaller one costs more training and less serving
(Sardana et al. 2024, "Beyond Chinchilla-Optimal").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scenarios import library
from scenarios.errors import InputError
from scenarios.forecast.basis import CANDIDATES, cautions
from scenarios.forecast.latency_source import Composer
from scenarios.schema.engine import Engine
from scenarios.schema.sizing import Law, Sizing
from scenarios.sizing.candidates import Candidate, Maker, counted_by
from scenarios.sizing.curves import all_laws, iso_flop_curves, optimum_figures
from scenarios.sizing.scaling_fit import FittedLaw, fit_law, read_runs
from scenarios.sizing.scaling_law import (
    FLOPS_PER_PARAMETER_AND_TOKEN,
    JOINT_MIXTURE,
    LAWS,
    AdditiveLaw,
    KaplanLaw,
    RosenfeldLaw,
    ScalingLaw,
    kaplan_frontier,
    lifetime_optimum,
)
from scenarios.sizing.serving_plan import ready_plan, service_figures, with_lifetime
from scenarios.sizing.serving_price import ServingCost
from scenarios.sizing.sized_model import (
    inference_memory_figures,
    model_figures,
    training_memory_figures,
)
from scenarios.sizing.training import flops_of_usd
from scenarios.sweep.processes import Processes, TaskWorkers
from sim.model.hardware import Gpu

FEW_TOKENS_PER_PARAMETER = 200  # beyond, laws are extrapolated: Sardana et al. 2024, section 4


@dataclass(frozen=True, slots=True)
class Sized:
    """A finished sizing: its figures as plain data, the candidates as tidy rows."""

    sizing: Sizing
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    config: dict[str, Any]  # of the model it settles on, as a Hugging Face config.json


def size(
    sizing: Sizing,
    *,
    origin: Path | None = None,
    compose: Composer | None = None,
    jobs: int = 1,
    workers: TaskWorkers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sized:
    """Answer `sizing` with so many processes; the same to the byte whatever `jobs` is.

    `workers` do the work in the place of those processes, a cluster's for instance.
    `progress` is told (done, total) of the models whose serving is searched for.

    `compose` makes latency tables for serving with source ``aiconfigurator``. Raises InputError
    for names that do not exist, runs that determine no law, and a budget too small for any model.
    """
    where = str(origin or "sizing")
    try:
        gpu = library.gpu(sizing.training.gpu)
    except InputError as error:
        raise InputError(f"{where}: training.gpu: {error}") from None
    for name in () if sizing.serving is None else sizing.serving.gpus:
        try:
            library.gpu(name)
        except InputError as error:
            raise InputError(f"{where}: serving.gpus: {error}") from None
    if sizing.serving is not None:
        serving = with_lifetime(sizing.serving, origin=origin)
        sizing = sizing.model_copy(update={"serving": serving})
    law, fitted = _law(sizing.law, origin, experts=_experts_for_each(sizing, origin))
    maker = Maker(sizing, law, gpu, origin, compose)
    flops = _budget(sizing, gpu)
    summary: dict[str, Any] = {
        "name": sizing.name,
        "description": sizing.description,
        "law": _law_figures(law, fitted, flops),
    }
    if sizing.model is not None:
        candidates = [_known_model(maker, sizing, flops, where)]
    else:
        assert flops is not None
        reference = maker.compute_optimal(flops)
        candidates = [reference, *maker.smaller(reference, flops)]
        summary |= _budget_figures(sizing, law, reference, flops, gpu)
    with Processes(jobs) if workers is None else workers as those:
        candidates = maker.served(candidates, those, progress)
    return _sized(maker, summary, candidates, _answer(candidates), flops)


def _experts_for_each(sizing: Sizing, origin: Path | None) -> float:
    """Experts for each that a token activates; 1 for a dense model."""
    if sizing.model is None:
        shape = sizing.shape
        return shape.num_experts / shape.experts_per_token if shape.num_experts else 1.0
    try:
        model = library.model(sizing.model, beside=None if origin is None else origin.parent)
    except InputError as error:
        raise InputError(f"{origin or 'sizing'}: model: {error}") from None
    return 1.0 if model.moe is None else model.moe.num_experts / model.moe.experts_per_token


def _law(given: Law, origin: Path | None, *, experts: float) -> tuple[ScalingLaw, FittedLaw | None]:
    where = f"{origin or 'sizing'}: law"
    if given.runs is not None:
        path = library.find_file(given.runs, beside=None if origin is None else origin.parent)
        if path is None:
            raise InputError(f"{where}.runs: {given.runs}: no such file")
        runs = read_runs(path)
        try:
            fitted = fit_law(
                runs,
                form=given.form,
                initial_loss=given.initial_loss,
                bootstrap=given.bootstrap,
                confidence=given.confidence,
                seed=given.seed,
            )
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        return fitted.law, fitted
    if given.coefficients is not None:
        makers = {"chinchilla": AdditiveLaw, "rosenfeld": RosenfeldLaw, "kaplan": KaplanLaw}
        law: ScalingLaw = makers[given.form](  # type: ignore[assignment]
            "own", f"coefficients given (form {given.form})", **given.coefficients
        )
        return law, None
    if given.form == JOINT_MIXTURE.name:
        return JOINT_MIXTURE.of(experts), None
    return LAWS[given.form], None


def _budget(sizing: Sizing, gpu: Gpu) -> float | None:
    """Training FLOPs, where a budget is given."""
    if sizing.budget is None:
        return None
    if sizing.budget.flops is not None:
        return sizing.budget.flops
    assert sizing.budget.usd is not None
    return flops_of_usd(sizing.budget.usd, gpu, mfu=sizing.training.mfu)


def _known_model(maker: Maker, sizing: Sizing, flops: float | None, where: str) -> Candidate:
    assert sizing.model is not None
    beside = None if maker.origin is None else maker.origin.parent
    try:
        path = library.model_path(sizing.model, beside=beside)
        model = library.model(sizing.model, beside=beside)
    except InputError as error:
        raise InputError(f"{where}: model: {error}") from None
    tokens = sizing.tokens
    if flops is not None:
        tokens = flops / (FLOPS_PER_PARAMETER_AND_TOKEN * counted_by(maker.law)(model))
    config = library.model_config(path)
    return maker.of(model, config, tokens=tokens, size=None, budget=None)


def _answer(candidates: list[Candidate]) -> Candidate:
    """The size that is the cheapest over its life at the same loss; without lifetime tokens the
    compute-optimal one."""
    known = [one for one in candidates if one.lifetime_usd is not None and not one.reason]
    return min(known, key=lambda one: one.lifetime_usd or 0.0) if known else candidates[0]


def _law_figures(law: ScalingLaw, fitted: FittedLaw | None, flops: float | None) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "name": law.name,
        "source": law.source,
        "coefficients": law.coefficients(),
    }
    if fitted is not None:
        figures |= {
            "num_runs": fitted.num_runs,
            "mean_error": fitted.mean_error,
            "confidence": fitted.confidence,
            "intervals": fitted.intervals(),
        }
        if flops is not None:
            figures["optimum_intervals"] = fitted.optimum_intervals(flops)
    return figures


def _budget_figures(
    sizing: Sizing, law: ScalingLaw, reference: Candidate, flops: float, gpu: Gpu
) -> dict[str, Any]:
    assert reference.training is not None and reference.loss is not None
    parameters, tokens = kaplan_frontier(flops)
    figures: dict[str, Any] = {
        "budget": {
            "flops": flops,
            "usd": reference.training.usd,
            "given": "flops" if sizing.budget is None or sizing.budget.usd is None else "usd",
        },
        "optimum": optimum_figures(law.optimum(flops)),
        "laws": all_laws(law, flops),
        "kaplan_frontier": {"parameters": parameters, "tokens": tokens},
        "iso_flops": iso_flop_curves(law, flops),
    }
    lifetime = None if sizing.serving is None else sizing.serving.lifetime_tokens
    if lifetime is not None:
        best = lifetime_optimum(law, loss=reference.loss, served_tokens=lifetime)
        n = counted_by(law)(reference.model)
        figures["lifetime_optimum"] = {
            **optimum_figures(best),
            "served_tokens": lifetime,
            "total_flops": best.flops + 2 * best.parameters * lifetime,
            "compute_optimal_total_flops": flops + 2 * n * lifetime,
        }
    return figures


def _beyond_budget(candidates: list[Candidate], chosen: Candidate) -> dict[str, Any] | None:
    """What it takes to train the answer's model on to the loss of the compute-optimal one.

    None where the answer is that one: the budget buys it.
    """
    reference = candidates[0]
    if chosen is reference or chosen.training is None or reference.training is None:
        return None
    over_usd = chosen.training.usd - reference.training.usd
    return {
        "model": chosen.model.name,
        "tokens": chosen.tokens,
        "loss": chosen.loss,
        "training_usd": chosen.training.usd,
        "over_usd": over_usd,
        "share": over_usd / reference.training.usd,
        "lifetime_usd": chosen.lifetime_usd,
    }


def _sized(
    maker: Maker,
    summary: dict[str, Any],
    candidates: list[Candidate],
    chosen: Candidate,
    flops: float | None,
) -> Sized:
    sizing, training = maker.sizing, maker.sizing.training
    engine = Engine() if sizing.serving is None else sizing.serving.engine
    every = [name for name in library.gpus() if name != "cpu"]
    gpus = every if sizing.serving is None else sizing.serving.gpus
    # The size is chosen at equal loss; what is answered is what the budget buys of it.
    bought = chosen if flops is None or sizing.model is not None else maker.within(chosen, flops)
    cost = bought.training
    memory = training_memory_figures(chosen.model, training, maker.gpu)
    rows = [one.row() for one in candidates]
    summary |= {
        "model": model_figures(chosen.model, training),
        "training": {
            "gpu": training.gpu,
            "gpus": training.gpus,
            "mfu": training.mfu,
            "settings": training.model_dump(),
            "tokens": bought.tokens,
            "loss": bought.loss,
            "cost": None if cost is None else asdict(cost),
            "memory": memory,
        },
        "inference": inference_memory_figures(chosen.model, gpus, engine),
        "candidates": rows,
        **_serving_figures(maker, chosen),
        "electricity": _electricity(sizing, bought),
        "answer": bought.row() | {"compute_optimal": chosen is candidates[0]},
        "beyond_budget": None if flops is None else _beyond_budget(candidates, chosen),
        "config": dict(chosen.config),
    }
    summary["notes"] = _notes(maker, candidates, bought, memory)
    return Sized(sizing, summary, rows, dict(chosen.config))


def _electricity(sizing: Sizing, chosen: Candidate) -> dict[str, Any]:
    """What the answer's training and serving draw, estimated; prices of GPUs leave it out."""
    price, cost, best = sizing.electricity, chosen.training, chosen.best_serving
    trained = None if cost is None else cost.joules
    each = None if best is None else best.joules_per_token
    return {
        "estimated": True,
        **price.model_dump(),
        "training_joules": trained,
        "training_usd": None if trained is None else price.usd(trained),
        "serving_joules_per_token": each,
        "serving_usd_per_million_tokens": None if each is None else 1e6 * price.usd(each),
    }


def _serving_figures(maker: Maker, chosen: Candidate) -> dict[str, Any]:
    """What is asked of serving, every deployment tried, and the plan that asks for the cheapest."""
    serving, best = maker.sizing.serving, chosen.best_serving
    if serving is None:
        return {"service": None, "serving": [], "plan": None}
    service = service_figures(serving, origin=maker.origin)
    plan = None
    if best is not None:
        plan = ready_plan(
            serving,
            best,
            name=chosen.model.name,
            request_rate=service["request_rate"],
            origin=maker.origin,
        )
    tried = [one.figures() for one in chosen.serving]
    return {"service": service, "serving": tried, "plan": plan}


def _notes(
    maker: Maker, candidates: list[Candidate], chosen: Candidate, memory: dict[str, Any]
) -> list[str]:
    """What a reader has to know before believing the figures."""
    training, notes = maker.sizing.training, []
    if not memory["fits"]:
        gib, least = 2**30, memory["least_gpus"]
        remedy = (
            f"{least:,} such GPUs would do at ZeRO stage {training.zero_stage}"
            if least is not None
            else "no number of them does: lower training.micro_batch, or checkpoint layers, or "
            "raise training.zero_stage"
        )
        notes.append(
            f"training does not fit on {training.gpus:,} x {training.gpu}: each needs "
            f"{memory['per_gpu']['total_bytes'] / gib:.1f} GiB and has "
            f"{memory['gpu_memory_bytes'] / gib:.1f}; {remedy}"
        )
    if (
        chosen.model.moe is not None
        and chosen.tokens is not None
        and maker.law.name != JOINT_MIXTURE.name
    ):
        notes.append(
            "the law was fitted to dense models: N is taken as the activated parameters, which "
            f"understates what the experts add (--set law={JOINT_MIXTURE.name} was fitted to both)"
        )
    ratio = chosen.row()["tokens_per_parameter"]
    if ratio is not None and ratio > FEW_TOKENS_PER_PARAMETER:
        notes.append(
            f"{ratio:,.0f} tokens a parameter are far beyond the runs behind the law, which "
            "overstates what more tokens bring there (Sardana et al. 2024, section 4)"
        )
    if any(one.reason for one in candidates) and chosen.reason:
        notes.append(f"{chosen.model.name}: {chosen.reason}")
    served = [one for one in chosen.serving if isinstance(one, ServingCost)]
    kinds = Counter(one.basis for one in served)
    named = [(f"{number} of {len(served)} deployments", kind) for kind, number in kinds.items()]
    notes += cautions(named, trust=CANDIDATES)
    for one in served[:1]:
        notes += [warning for warning in one.warnings if warning not in notes]
    return notes
