"""Models of several sizes that reach the same loss, each with what training and serving cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scenarios.errors import InputError
from scenarios.forecast.latency_source import Composer
from scenarios.schema.sizing import Serving, Sizing
from scenarios.sizing.model_anatomy import parameter_split
from scenarios.sizing.model_shape import (
    TOO_LARGE,
    Count,
    ShapeRules,
    activated,
    config_of,
    nearest_shape,
    smallest_shape,
)
from scenarios.sizing.scaling_law import FLOPS_PER_PARAMETER_AND_TOKEN, KaplanLaw, ScalingLaw
from scenarios.sizing.serving_cost import serving_cost
from scenarios.sizing.serving_price import RuledOut, ServingCost, cheapest, nearest_miss
from scenarios.sizing.training import TrainingCost, cost_of_flops
from scenarios.sweep.processes import TaskWorkers
from sim.model.config import read_config
from sim.model.hardware import Gpu
from sim.model.spec import ModelSpec


def without_embedding(model: ModelSpec) -> int:
    """What Kaplan et al. 2020 call N, of the parameters a token activates."""
    return model.num_activated_parameters - parameter_split(model).embedding


def counted_by(law: ScalingLaw) -> Count:
    """Which parameters the law means by N."""
    return without_embedding if isinstance(law, KaplanLaw) else activated


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model, what it is trained on, and what that and its serving cost.

    ``size``: its share of the optimal parameters; ``tokens_at_budget`` is what the training budget
    pays for, where there is one, and ``loss_at_budget`` what that reaches. ``reason`` says why it
    is no answer, where it is none.
    """

    model: ModelSpec
    config: Mapping[str, Any]
    size: float | None
    tokens: float | None
    loss: float | None
    tokens_at_budget: float | None
    loss_at_budget: float | None
    budget_usd: float | None
    training: TrainingCost | None
    serving: tuple[ServingCost | RuledOut, ...]
    lifetime_tokens: float | None
    reason: str = ""

    @property
    def best_serving(self) -> ServingCost | None:
        return cheapest(self.serving)

    @property
    def serving_usd(self) -> float | None:
        best = self.best_serving
        if best is None or self.lifetime_tokens is None:
            return None
        return best.usd_per_million_tokens * self.lifetime_tokens / 1e6

    @property
    def lifetime_usd(self) -> float | None:
        """Training and serving together; None where either is unknown."""
        serving_usd = self.serving_usd
        if self.training is None or serving_usd is None:
            return None
        return self.training.usd + serving_usd

    @property
    def lifetime_usd_at_budget(self) -> float | None:
        """The same with training for the budget and no more."""
        serving_usd = self.serving_usd
        if self.budget_usd is None or serving_usd is None:
            return None
        return self.budget_usd + serving_usd

    def row(self) -> dict[str, Any]:
        """One row of a tidy table."""
        best, cost, model = self.best_serving, self.training, self.model
        served = None if best is None else asdict(best)
        kept = (
            *("gpu", "tensor_parallel", "replicas", "requests_per_s", "tokens_per_s"),
            *("output_tokens_per_s", "median_tpot_ms", "load_share"),
        )
        return {
            "model": model.name,
            "size": self.size,
            "parameters": model.num_parameters,
            "activated_parameters": model.num_activated_parameters,
            "layers": model.num_layers,
            "hidden_size": model.hidden_size,
            "attention_heads": model.num_attention_heads,
            "kv_heads": model.num_kv_heads,
            "intermediate_size": model.intermediate_size,
            "experts": 0 if model.moe is None else model.moe.num_experts,
            "tokens": self.tokens,
            "tokens_per_parameter": (
                None if self.tokens is None else self.tokens / model.num_activated_parameters
            ),
            "loss": self.loss,
            "tokens_at_budget": self.tokens_at_budget,
            "loss_at_budget": self.loss_at_budget,
            "lifetime_usd_at_budget": self.lifetime_usd_at_budget,
            "training_flops": None if cost is None else cost.flops,
            "training_gpu_hours": None if cost is None else cost.gpu_hours,
            "training_days": None if cost is None else cost.wall_s / 86400,
            "training_usd": None if cost is None else cost.usd,
            **{key: None if served is None else served[key] for key in kept},
            "usd_per_million_tokens": None if best is None else best.usd_per_million_tokens,
            "usd_per_million_output_tokens": (
                None if best is None else best.usd_per_million_output_tokens
            ),
            "serving_usd": self.serving_usd,
            "lifetime_usd": self.lifetime_usd,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes the candidates of one sizing."""

    sizing: Sizing
    law: ScalingLaw
    gpu: Gpu
    origin: Path | None
    compose: Composer | None

    def compute_optimal(self, flops: float) -> Candidate:
        """The model whose size is the law's optimum, trained on what the budget leaves.

        Raises InputError where the budget is too small for any model.
        """
        wanted = self.law.optimum(flops).parameters
        try:
            model = self._shape(wanted)
        except ValueError:
            raise InputError(self._too_small(flops, wanted)) from None
        tokens = flops / (FLOPS_PER_PARAMETER_AND_TOKEN * counted_by(self.law)(model))
        return self.of(model, config_of(model, self._rules), tokens=tokens, size=1.0, budget=flops)

    def smaller(self, reference: Candidate, flops: float) -> Iterator[Candidate]:
        """Smaller models, each trained until it reaches the loss of `reference`."""
        assert reference.loss is not None
        count = counted_by(self.law)
        wanted = self.law.optimum(flops).parameters
        seen = {count(reference.model)}
        for size in sorted(self.sizing.over_training.sizes, reverse=True):
            try:
                model = self._shape(size * wanted)
            except ValueError:
                continue  # no model is so small
            if count(model) in seen:
                continue
            seen.add(count(model))
            config = config_of(model, self._rules)
            tokens = self.law.tokens_for_loss(count(model), reference.loss)
            reason, most = "", self.sizing.over_training.max_tokens
            if tokens is None:
                reason = f"no number of tokens brings it to a loss of {reference.loss:.4f}"
            elif tokens > most:
                reason = f"needs {tokens:.2g} tokens, over_training.max_tokens is {most:.2g}"
                tokens = None
            yield self.of(model, config, tokens=tokens, size=size, budget=flops, reason=reason)

    def within(self, candidate: Candidate, flops: float) -> Candidate:
        """The same model, served the same, trained for the budget and no more."""
        made = self.of(
            candidate.model,
            candidate.config,
            tokens=candidate.tokens_at_budget,
            size=candidate.size,
            budget=flops,
            reason=candidate.reason,
        )
        return replace(made, serving=candidate.serving)

    def of(
        self,
        model: ModelSpec,
        config: Mapping[str, Any],
        *,
        tokens: float | None,
        size: float | None,
        budget: float | None,
        reason: str = "",
    ) -> Candidate:
        """A candidate with what its training costs."""
        sizing, parameters = self.sizing, counted_by(self.law)(model)
        per_token = FLOPS_PER_PARAMETER_AND_TOKEN * parameters
        training = sizing.training

        def priced(flops: float) -> TrainingCost:
            return cost_of_flops(flops, self.gpu, gpus=training.gpus, mfu=training.mfu)

        cost, loss = None, None
        if tokens is not None:
            cost = priced(per_token * tokens)
            loss = float(self.law.loss(parameters, tokens))
        return Candidate(
            model=model,
            config=config,
            size=size,
            tokens=tokens,
            loss=loss,
            tokens_at_budget=None if budget is None else budget / per_token,
            loss_at_budget=(
                None if budget is None else float(self.law.loss(parameters, budget / per_token))
            ),
            budget_usd=None if budget is None else priced(budget).usd,
            training=cost,
            serving=(),
            lifetime_tokens=None if sizing.serving is None else sizing.serving.lifetime_tokens,
            reason=reason,
        )

    def served(
        self,
        candidates: Sequence[Candidate],
        workers: TaskWorkers,
        progress: Callable[[int, int], None] | None,
    ) -> list[Candidate]:
        """The same candidates with what serving costs; those ruled out already stay as they are."""
        if self.sizing.serving is None:
            return list(candidates)
        asked = [at for at, one in enumerate(candidates) if not one.reason]
        tasks = [
            _Served(
                candidates[at].config,
                self.sizing.serving,
                candidates[at].model.name,
                self.compose,
                self.origin,
            )
            for at in asked
        ]
        found = list(candidates)
        costs = workers.run(_serve, tasks, progress=progress)
        for at, tried in zip(asked, costs, strict=True):
            reason = ""
            if cheapest(tried) is None:
                reason = f"no deployment can serve it: {_reasons(tried)}"
            found[at] = replace(found[at], serving=tuple(tried), reason=reason)
        return found

    def _too_small(self, flops: float, wanted: float) -> str:
        least = smallest_shape(self._rules, name="smallest")
        count = counted_by(self.law)(least)
        low, high = math.log(flops), math.log(1e40)  # the budgets whose optimum is that model
        for _ in range(100):
            middle = (low + high) / 2
            enough = self.law.optimum(math.exp(middle)).parameters * TOO_LARGE >= count
            low, high = (low, middle) if enough else (middle, high)
        return (
            f"{self.origin or 'sizing'}: budget: {flops:.3g} FLOPs are too few for any model: the "
            f"law {self.law.name} would spend them on {wanted:.3g} parameters, and the smallest "
            f"model, {least.num_layers} layer of width {least.hidden_size} with a vocabulary of "
            f"{least.vocab_size:,}, has {count:.3g}; {math.exp(high):.2g} FLOPs would do"
        )

    @property
    def _rules(self) -> ShapeRules:
        return ShapeRules(**self.sizing.shape.model_dump())

    def _shape(self, parameters: float) -> ModelSpec:
        count = counted_by(self.law)
        model = nearest_shape(parameters, self._rules, name="sized", count=count)
        name = short_count(model.num_parameters)
        if model.moe is not None:
            name += f"-a{short_count(model.num_activated_parameters)}"
        return read_config(config_of(model, self._rules), name=f"sized-{name}")


@dataclass(frozen=True, slots=True)
class _Served:
    """What a process needs to find out what serving a model costs."""

    config: Mapping[str, Any]
    serving: Serving
    name: str
    compose: Composer | None
    origin: Path | None


def _serve(task: _Served) -> list[ServingCost | RuledOut]:
    return serving_cost(
        task.config, task.serving, name=task.name, compose=task.compose, origin=task.origin
    )


def short_count(value: float) -> str:
    """7430000000 -> 7.43b, as models are named."""
    for size, letter in ((1e12, "t"), (1e9, "b"), (1e6, "m")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _reasons(served: list[ServingCost | RuledOut]) -> str:
    """The nearest miss of the objectives; else the last reason of each GPU."""
    nearest = nearest_miss(served)
    if nearest is not None:
        return f"none keeps the objectives; the nearest miss is {nearest.label}: {nearest.reason}"
    last = {one.gpu: one.reason for one in served if isinstance(one, RuledOut)}
    return "; ".join(f"{gpu}: {reason}" for gpu, reason in last.items())
