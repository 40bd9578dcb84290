"""The sizing schema: what a SIZING.yaml may say, checked strictly before anything is computed."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from scenarios.schema.electricity import Electricity
from scenarios.schema.engine import Engine
from scenarios.schema.latency import Latency
from scenarios.schema.scenario import Slo
from scenarios.schema.section import Count, Fraction, Section
from scenarios.schema.workload import LengthPair, Lengths

Flops = Annotated[float, Field(gt=0, le=1e32, allow_inf_nan=False)]
Usd = Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False)]
TokenCount = Annotated[float, Field(gt=0, le=1e24, allow_inf_nan=False)]
Degree = Annotated[int, Field(ge=1, le=8)]
TrainingDegree = Annotated[int, Field(ge=1, le=4096)]
Coefficient = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]

FITTED_FORMS = ("chinchilla", "rosenfeld", "kaplan")
COEFFICIENTS = {
    "chinchilla": ("a", "alpha", "b", "beta", "irreducible"),
    "rosenfeld": ("a", "alpha", "b", "beta", "c", "eta", "initial_loss"),
    "kaplan": ("n_c", "alpha_n", "d_c", "alpha_d"),
}


class Budget(Section):
    """What may be spent on training: FLOPs (6 N D), or money at training's GPU, price and MFU."""

    flops: Flops | None = None
    usd: Usd | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.flops is None) == (self.usd is None):
            raise ValueError("give either flops or usd")
        return self


class Law(Section):
    """Which scaling law: published coefficients, your own, or a fit to your runs.

    ``runs`` is a CSV file with the columns loss and two of parameters, tokens, flops.
    """

    form: Literal[
        "chinchilla", "chinchilla-unrounded", "besiroglu", "kaplan", "rosenfeld", "joint-moe"
    ] = "chinchilla"
    coefficients: dict[str, Coefficient] | None = None
    runs: str | None = None
    # rosenfeld with runs: the loss of an untrained model, ln(vocabulary)
    initial_loss: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    bootstrap: Annotated[int, Field(ge=2, le=10_000)] = 200
    confidence: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.95
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _has_one_origin(self) -> Self:
        own = self.runs is not None or self.coefficients is not None
        if self.runs is not None and self.coefficients is not None:
            raise ValueError("runs and coefficients are both given: keep one of them")
        if own and self.form not in FITTED_FORMS:
            raise ValueError(
                f"{self.form} has coefficients of its own; with runs or coefficients the form is "
                f"one of {', '.join(FITTED_FORMS)}"
            )
        if self.form == "rosenfeld" and not own:
            raise ValueError(
                "rosenfeld is fitted anew for every data set and has no coefficients of its own: "
                "give runs (a CSV file) or coefficients"
            )
        if (self.form == "rosenfeld" and self.runs is not None) != (self.initial_loss is not None):
            raise ValueError(
                "initial_loss, ln(vocabulary), belongs to form rosenfeld with runs, which needs it"
            )
        if self.coefficients is not None:
            needed = COEFFICIENTS[self.form]
            if set(self.coefficients) != set(needed):
                raise ValueError(f"coefficients of form {self.form} are {', '.join(needed)}")
        return self


class Shape(Section):
    """What the model's shape must have; layers, width and heads follow from its size."""

    vocab_size: Annotated[int, Field(ge=2, le=10**7)] = 128_256
    head_dim: Annotated[int, Field(ge=8, le=1024)] = 128
    kv_heads: Annotated[int, Field(ge=1, le=1024)] = 8
    mlp_ratio: Annotated[float, Field(ge=0.5, le=16, allow_inf_nan=False)] = 8 / 3
    aspect_ratio: Annotated[float, Field(ge=4, le=4096, allow_inf_nan=False)] = 128.0
    tie_word_embeddings: bool = False
    max_position_embeddings: Annotated[int, Field(ge=128, le=2**24)] = 8192
    num_experts: Annotated[int, Field(ge=0, le=4096)] = 0  # 0: dense
    experts_per_token: Count = 2
    expert_width_ratio: Annotated[float, Field(ge=0.01, le=16, allow_inf_nan=False)] = 2 / 3

    @model_validator(mode="after")
    def _chooses_from_what_there_is(self) -> Self:
        if self.num_experts and self.experts_per_token > self.num_experts:
            raise ValueError(
                f"experts_per_token {self.experts_per_token} exceeds num_experts {self.num_experts}"
            )
        if not self.num_experts:
            for key in ("experts_per_token", "expert_width_ratio"):
                # A default may be written out: a resolved sizing is a sizing again.
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key} has no meaning without num_experts")
        return self


class Training(Section):
    """The training cluster, at this model FLOPs utilisation.

    GPUs that tensor, pipeline and sequence degrees leave over are data-parallel ranks, with ZeRO;
    ``expert_parallel`` of them share out a mixture's experts. ``batch_tokens`` are a step's.
    """

    gpu: str = "h100-sxm"
    gpus: Annotated[int, Field(ge=1, le=10**7)] = 64
    mfu: Fraction = 0.4
    micro_batch: Annotated[int, Field(ge=1, le=65536)] = 1
    sequence_length: Annotated[int, Field(ge=1, le=2**24)] = 4096
    checkpointing: Literal["none", "layer"] = "layer"
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 3
    tensor_parallel: TrainingDegree = 1
    pipeline_parallel: TrainingDegree = 1
    sequence_parallel: TrainingDegree = 1
    expert_parallel: TrainingDegree = 1
    batch_tokens: Annotated[float, Field(ge=1, le=1e12, allow_inf_nan=False)] = 4e6
    gradient_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    fused_attention: bool = True
    dropout: bool = False


class Serving(Section):
    """Where the model will serve, and how much: all tokens of its life, prompts and outputs.

    Every GPU is tried at every tensor-parallel degree that holds the model: always with work
    waiting, or, with an ``slo``, at the highest load that keeps it. ``years`` that the tokens are
    spread over make it a load, which whole replicas have to serve; without them a fleet is taken
    to be as large as need be, and full.
    """

    lifetime_tokens: TokenCount | None = None
    # instead of tokens: requests a second, all those years
    request_rate: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    years: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | None = None
    gpus: Annotated[list[str], Field(min_length=1)] = Field(
        default=["l40s", "h100-sxm", "h200-sxm"]
    )
    tensor_parallel: Annotated[list[Degree], Field(min_length=1)] = Field(default=[1, 2, 4, 8])
    lengths: LengthPair = LengthPair(
        prompt=Lengths(distribution="lognormal", mean=512, sigma=0.9, max=4096),
        output=Lengths(distribution="lognormal", mean=192, sigma=0.8, max=2048),
    )
    engine: Engine = Engine()
    latency: Latency = Latency()
    slo: Slo = Slo()
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _years_of_something(self) -> Self:
        if self.request_rate is not None and self.lifetime_tokens is not None:
            raise ValueError("request_rate and lifetime_tokens are both given: keep one of them")
        if self.request_rate is not None and self.years is None:
            raise ValueError("request_rate needs years: for how long so many are served")
        if self.years is not None and self.lifetime_tokens is self.request_rate is None:
            raise ValueError("years need lifetime_tokens or request_rate: what is served in them")
        return self


class OverTraining(Section):
    """Smaller models trained longer, to the loss of the compute-optimal one.

    ``sizes`` are shares of the optimal number of parameters. ``max_tokens``: what there is to
    train on; the default is the largest published so far (Qwen3, 36 trillion).
    """

    sizes: Annotated[list[Fraction], Field(min_length=1, max_length=64)] = Field(
        default=[0.8, 0.65, 0.5, 0.4, 0.3, 0.2]
    )
    max_tokens: TokenCount = 3.6e13


class Sizing(Section):
    """One question: what a training budget buys, or what a known model takes."""

    name: str = "sizing"
    description: str = ""
    budget: Budget | None = None
    model: str | None = None  # a library name or config.json: its figures instead of a shape
    tokens: TokenCount | None = None  # with model: what it is trained on
    law: Law = Law()
    shape: Shape = Shape()
    training: Training = Training()
    serving: Serving | None = None
    over_training: OverTraining = OverTraining()
    electricity: Electricity = Electricity()

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_a_law(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("law"), str):
            return {**given, "law": {"form": given["law"]}}
        return given

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if self.budget is None and self.model is None:
            raise ValueError(
                "nothing to size: give a budget (--set budget.flops=1e22 or budget.usd=100000) "
                "or a model (--set model=llama-3.1-8b)"
            )
        if self.tokens is not None and self.model is None:
            raise ValueError("tokens belong to a model; a budget decides its tokens itself")
        if self.tokens is not None and self.budget is not None:
            raise ValueError("tokens and budget are both given: keep one of them")
        if self.model is not None and self.shape != Shape():
            raise ValueError(f"shape has no meaning beside the model {self.model}")
        if self.model is not None and self.over_training != OverTraining():
            raise ValueError(f"over_training has no meaning beside the model {self.model}")
        return self
