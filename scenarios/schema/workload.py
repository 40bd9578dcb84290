"""What is asked of the deployment: arrivals, lengths, classes, or a trace."""

from __future__ import annotations

from math import inf
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from scenarios.schema.names import TraceFormat
from scenarios.schema.section import (
    Count,
    Fraction,
    Milliseconds,
    NotNegative,
    Positive,
    Section,
    Tokens,
)
from scenarios.schema.sharing import BeamSearch, ParallelSampling, Sessions, ThinkTime
from sim.workload.arrivals import along


def _rate(value: object) -> object:
    """`inf`, which YAML reads as text, as a number."""
    return inf if isinstance(value, str) and value.lower() in ("inf", "+inf") else value


Point = Annotated[list[NotNegative], Field(min_length=2, max_length=2)]


class Arrivals(Section):
    """When requests arrive; ``request_rate`` is in requests per second."""

    process: Literal["poisson", "gamma", "constant", "all_at_once"] = "poisson"
    request_rate: Positive | None = None  # inf: all at once, as vLLM's client has it
    burstiness: Positive | None = None  # gamma's shape: 1 is Poisson, below 1 burstier
    # stretched so that the last request comes at num_requests / request_rate, as vLLM's client does
    rescale: bool = False
    # [seconds, multiple of request_rate] points, linear between: ramps, steps, days
    profile: Annotated[list[Point], Field(min_length=2, max_length=10_000)] | None = None
    repeat: bool = False  # the profile, from its end on; else its last multiple stays

    @model_validator(mode="before")
    @classmethod
    def _infinite_rate_is_all_at_once(cls, given: Any) -> Any:
        if isinstance(given, dict) and _rate(given.get("request_rate")) == inf:
            kept = {key: given[key] for key in given if key not in ("request_rate", "burstiness")}
            return {**kept, "process": "all_at_once"}
        return given

    @model_validator(mode="after")
    def _has_its_rate(self) -> Self:
        if (self.process == "all_at_once") == (self.request_rate is not None):
            raise ValueError(
                "request_rate is needed"
                if self.request_rate is None
                else "request_rate has no meaning when all requests arrive at once"
            )
        if (self.process == "gamma") != (self.burstiness is not None):
            raise ValueError("burstiness belongs to process gamma, which needs it")
        if self.rescale and (self.process not in ("poisson", "gamma") or self.profile is not None):
            raise ValueError("rescale is of process poisson and gamma without a profile")
        if self.profile is None:
            if self.repeat:
                raise ValueError("repeat has no meaning without a profile")
            return self
        if self.process == "all_at_once":
            raise ValueError("a profile has no meaning when all requests arrive at once")
        times, multiples = zip(*self.profile, strict=True)
        along(np.zeros(1), times, multiples, repeat=self.repeat)  # refuses what is no profile
        return self


class Lengths(Section):
    """A distribution of token counts; which keys it needs depends on ``distribution``."""

    distribution: Literal["fixed", "uniform", "lognormal", "empirical"]
    tokens: Tokens | None = None  # fixed
    mean: Positive | None = None  # lognormal: either mean or median
    median: Positive | None = None
    # lognormal: of the logarithm
    sigma: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    min: Tokens | None = None  # uniform and lognormal
    max: Tokens | None = None
    # empirical: drawn with replacement
    values: Annotated[list[Tokens], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _has_its_keys(self) -> Self:
        needed, optional = {
            "fixed": ({"tokens"}, set()),
            "uniform": ({"min", "max"}, set()),
            "lognormal": ({"sigma"}, {"mean", "median", "min", "max"}),
            "empirical": ({"values"}, set()),
        }[self.distribution]
        given = {
            name
            for name in type(self).model_fields
            if name != "distribution" and getattr(self, name) is not None
        }
        if missing := sorted(needed - given):
            raise ValueError(f"{self.distribution} needs {', '.join(missing)}")
        if extra := sorted(given - needed - optional):
            raise ValueError(f"{extra[0]} has no meaning for a {self.distribution} distribution")
        if self.distribution == "lognormal" and (self.mean is None) == (self.median is None):
            raise ValueError("lognormal needs either mean or median")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} must be at most max {self.max}")
        return self


class LengthPair(Section):
    """Tokens of prompts and of outputs, drawn independently, or as listed with ``in_order``."""

    prompt: Lengths
    output: Lengths
    in_order: bool = False  # empirical values one by one instead of drawn


class RequestClass(Section):
    """One kind of request in a mixture: its part of the load and its lengths."""

    share: Positive  # in proportion to the other classes' shares
    lengths: LengthPair


class SharedPrefixes(Section):
    """Each synthetic prompt begins with one of `num_prefixes` system prompts of `tokens` tokens."""

    num_prefixes: Count
    tokens: Tokens


class Images(Section):
    """Images of some requests: so many tokens each, beside those of the prompt's text.

    How many tokens an image makes is the model's and the picture's size to say. The image encoder's
    own time is not modelled.
    """

    tokens: Tokens
    per_request: Count = 1
    share: Fraction = 1.0  # of the requests that have any


class StructuredOutput(Section):
    """Answers that a grammar constrains: the host masks what may come next, step by step.

    `per_sequence_us` of host time for each constrained sequence of a step, `per_step_us` for each
    step that has one; both are to be measured on your host.
    """

    per_sequence_us: NotNegative = 0.0
    per_step_us: NotNegative = 0.0
    share: Fraction = 1.0  # of the requests that are constrained


class TraceColumns(Section):
    """Where a trace's table keeps what; what is not named is told from the columns' names.

    `unit` is that of the arrival times. Requests of one session go on with what was said in it.
    """

    arrival: str | None = None
    prompt: str | None = None
    output: str | None = None
    session: str | None = None
    unit: Literal["s", "ms", "us", "ns", "date"] | None = None


class Workload(Section):
    """Requests: replayed from a trace, or drawn from arrivals and lengths."""

    trace: str | None = None
    format: TraceFormat = "auto"
    columns: TraceColumns | None = None  # of a trace that is a table of no known format
    tokenizer: str | None = None  # tokenizer.json that counts a trace's text; default: estimated
    time_scale: Positive = 1.0  # 0.5: twice the load
    start: Annotated[int, Field(ge=0)] = 0  # first request of the trace to take
    stop: Count | None = None  # and the one to stop before
    arrivals: Arrivals | None = None
    lengths: LengthPair | None = None
    classes: Annotated[dict[str, RequestClass], Field(min_length=1)] | None = None
    class_column: str | None = None  # of a trace: the column or key that names a request's class
    class_priority: dict[str, int] = Field(default_factory=dict)  # of each class; lower is sooner
    # of each class, to its first token; for scheduling_policy earliest_deadline
    class_deadline_ms: dict[str, Milliseconds] = Field(default_factory=dict)
    num_requests: Count | None = None
    # the limit clients ask for, which cuts longer answers; default: the true output length
    max_tokens: Tokens | None = None
    max_concurrency: Count | None = None
    think_time_s: ThinkTime | None = None  # of max_concurrency's clients, from an answer on
    shared_prefixes: SharedPrefixes | None = None
    sessions: Sessions | None = None
    images: Images | None = None
    structured_output: StructuredOutput | None = None
    # LoRA adapters: the rank of each class's that has one; the others ask for the bare model
    adapters: dict[str, Annotated[int, Field(ge=1, le=1024)]] = Field(default_factory=dict)
    # how clients ask tokens to be chosen (`truncated`: by top-k or top-p); by default they do not
    # say, and engines take what the model's generation_config.json asks for
    sampling: Literal["greedy", "random", "truncated"] | None = None
    samples: ParallelSampling | None = None
    beam_search: BeamSearch | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.lengths is not None and self.classes is not None:
            raise ValueError("lengths and classes are both given: keep one of them")
        lengths, named = self.lengths, "lengths"
        if self.classes is not None:
            lengths, named = next(iter(self.classes.values())).lengths, "classes"
        if self.trace is None and lengths is None:
            raise ValueError(
                "no requests: name a trace file (--set workload.trace=FILE) "
                "or give arrivals, lengths and num_requests"
            )
        if self.trace is not None and lengths is not None:
            raise ValueError(f"trace and {named} are both given: keep one of them")
        if lengths is not None:
            if self.arrivals is None:
                example = "{process: poisson, request_rate: 5}"
                raise ValueError(f"{named} need arrivals, e.g. {example}")
            if self.num_requests is None:
                raise ValueError(f"{named} need num_requests")
            for name in ("start", "stop", "format", "class_column", "columns", "tokenizer"):
                # Its default may be written out: a resolved scenario is a scenario again.
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} has no meaning without a trace")
        elif self.num_requests is not None:
            raise ValueError("num_requests has no meaning with a trace: use start and stop")
        if self.trace is not None and self.sessions is not None:
            for name in ("max_context_tokens", "by_the_clock"):
                if getattr(self.sessions, name):
                    raise ValueError(f"sessions.{name} has no meaning over a trace's own lengths")
            if self.shared_prefixes is not None:
                raise ValueError("over a trace, give sessions or shared_prefixes, not both")
        self._check_adapters()
        if self.think_time_s is not None and self.max_concurrency is None:
            raise ValueError("think_time_s is of max_concurrency's clients: give that, or sessions")
        if self.samples is not None and self.beam_search is not None:
            raise ValueError(
                "samples and beam_search are both given: a request samples independent answers or "
                "searches for the best ones; keep one of them"
            )
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop {self.stop} must be above start {self.start}")
        return self

    def _check_adapters(self) -> None:
        if not self.adapters:
            return
        if self.classes is None and self.class_column is None:
            raise ValueError("adapters are of classes: give classes, or class_column of a trace")
        for name in self.adapters:
            if self.classes is not None and name not in self.classes:
                raise ValueError(
                    f"adapters.{name}: no class of that name; {', '.join(self.classes)}"
                )
