"""What requests of a workload share: samples of one prompt, beams, turns of a conversation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Sequences = Annotated[int, Field(ge=1, le=1024)]


class _Section(BaseModel):
    """Strict, as all sections of a scenario."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ParallelSampling(_Section):
    """Several answers to one prompt, whose KV blocks they share; `samples: 4` is `{n: 4}`.

    Under ``scheduler: paged`` they are one request with a seat for each; under ``chunked`` each is
    a request of its own.

    ``n``: answers of a request, or a list of which each request draws one. ``independent``: further
    answers draw lengths of their own; ``equal``: all are as long as the first.
    """

    n: Sequences | Annotated[list[Sequences], Field(min_length=1)]
    lengths: Literal["independent", "equal"] = "independent"

    @model_validator(mode="before")
    @classmethod
    def _a_number_is_n(cls, given: Any) -> Any:
        return {"n": given} if isinstance(given, int | list) else given

    @property
    def most(self) -> int:
        """The most samples that a request asks for."""
        return self.n if isinstance(self.n, int) else max(self.n)


class BeamSearch(_Section):
    """The ``width`` best hypotheses go on; at every token some are replaced by forks of others.

    It needs ``scheduler: paged``. Which ones is drawn: each goes on by itself with probability
    ``survival``, else its place goes to a fork of one drawn uniformly from all.
    """

    width: Sequences
    survival: Annotated[float, Field(ge=0, le=1)] = 0.9


class ThinkTime(_Section):
    """Seconds from an answer to the next turn; a number is the mean of an exponential one."""

    distribution: Literal["exponential", "fixed", "uniform", "lognormal"] = "exponential"
    mean_s: Seconds | None = None  # exponential
    seconds: Seconds | None = None  # fixed
    min_s: Seconds | None = None  # uniform
    max_s: Seconds | None = None
    median_s: Seconds | None = None  # lognormal
    sigma: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_number_is_the_mean(cls, given: Any) -> Any:
        return {"mean_s": given} if isinstance(given, int | float) else given

    @model_validator(mode="after")
    def _keys_fit(self) -> ThinkTime:
        needed = {
            "exponential": {"mean_s"},
            "fixed": {"seconds"},
            "uniform": {"min_s", "max_s"},
            "lognormal": {"median_s", "sigma"},
        }[self.distribution]
        given = {
            name
            for name in ("mean_s", "seconds", "min_s", "max_s", "median_s", "sigma")
            if getattr(self, name) is not None
        }
        if given != needed:
            raise ValueError(f"{self.distribution} takes {', '.join(sorted(needed))}, no more")
        if self.min_s is not None and self.max_s is not None and self.min_s > self.max_s:
            raise ValueError(f"min_s {self.min_s:g} is above max_s {self.max_s:g}")
        return self


class Sessions(_Section):
    """Conversations: every prompt is all that was said before and then what the user says now.

    ``lengths.prompt`` is what the user says in a turn and ``arrivals`` are of conversations. The
    next turn comes ``think_time_s`` after the answer before it has ended, or, where ``turn_gap_s``
    (exponential, on average) is given instead, that long after the turn before it came, though
    no earlier than its answer has ended; with ``by_the_clock`` whether or not it has. A
    conversation that would grow beyond ``max_context_tokens`` begins anew.
    """

    turns: Annotated[float, Field(ge=1, le=10_000)]
    spread: Literal["geometric", "fixed"] = "geometric"  # of the number of turns
    think_time_s: ThinkTime | None = None
    turn_gap_s: Seconds | None = None
    by_the_clock: bool = False
    max_context_tokens: Annotated[int, Field(ge=2, le=2**31 - 1)] | None = None

    @model_validator(mode="after")
    def _whole_turns(self) -> Sessions:
        if self.spread == "fixed" and self.turns != int(self.turns):
            raise ValueError(f"turns {self.turns:g}: a fixed number of turns is whole")
        if (self.think_time_s is None) == (self.turn_gap_s is None):
            raise ValueError("give think_time_s, from an answer to the next turn, or turn_gap_s")
        if self.by_the_clock and self.turn_gap_s is None:
            raise ValueError("by_the_clock needs turn_gap_s: a think time begins with an answer")
        return self
