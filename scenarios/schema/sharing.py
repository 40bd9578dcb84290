"""What requests of a workload share: samples of one prompt, beams, turns of a conversation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


class Sessions(_Section):
    """Conversations: every prompt is all that was said before and then what the user says now.

    ``lengths.prompt`` is what the user says in a turn and ``arrivals`` are of conversations. The
    next turn comes ``turn_gap_s`` (exponential, on average) after the one before, whether or not
    that has been answered. One that would grow beyond ``max_context_tokens`` begins anew.
    """

    turns: Annotated[float, Field(ge=1, le=10_000)]
    spread: Literal["geometric", "fixed"] = "geometric"  # of the number of turns
    turn_gap_s: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
    max_context_tokens: Annotated[int, Field(ge=2, le=2**31 - 1)] | None = None

    @model_validator(mode="after")
    def _whole_turns(self) -> Sessions:
        if self.spread == "fixed" and self.turns != int(self.turns):
            raise ValueError(f"turns {self.turns:g}: a fixed number of turns is whole")
        return self
