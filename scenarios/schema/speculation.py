"""The section ``speculation`` of a scenario: how tokens are drafted, and how many are accepted."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Microseconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Depth = Annotated[int, Field(ge=1, le=64)]

METHODS = {  # method -> the keys that belong to it, besides those of all
    "draft_model": {
        "draft_model", "draft_tensor_parallel", "draft_table", "num_draft_tokens", "draft_step_ms",
        "host_per_step_us",
    },
    "tree": {
        "draft_model", "draft_tensor_parallel", "draft_table", "branching", "draft_step_ms",
        "host_per_step_us",
    },
    "eagle": {"num_draft_tokens", "branching", "draft_step_ms", "host_per_step_us"},
    "mtp": {"num_draft_tokens", "draft_step_ms", "host_per_step_us"},
    "medusa": {"num_draft_tokens", "branching", "draft_step_ms", "host_per_step_us"},
    "self_speculation": {"num_draft_tokens", "layer_share", "draft_step_ms", "host_per_step_us"},
    "ngram": {"num_draft_tokens", "match_rate", "host_per_step_us", "host_per_sequence_us"},
    "jacobi": {"num_draft_tokens"},
    "lookahead": {"window", "ngram", "guesses"},
}  # fmt: skip
NEEDED = {
    "draft_model": {"draft_model"},
    "tree": {"draft_model", "branching"},
    "self_speculation": {"layer_share"},
    "lookahead": {"window", "ngram", "guesses"},
}
COMMON = {"method", "acceptance", "verification", "seed"}


class _Section(BaseModel):
    """Strict, as all sections of a scenario."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class Acceptance(_Section):
    """How many drafted tokens are accepted; exactly one of the keys.

    ``rate``: each drafted token, given that those before it were accepted. ``per_position``: the
    share of all verifications that accept the 1st, 2nd, … draft, as vLLM logs them. ``per_rank``:
    how often the target's token is the draft's 1st, 2nd, … choice (trees, greedy verification).
    ``trace``: a file with a JSON list of accepted tokens, verification by verification, per line;
    null where there was no draft. ``recording``: a folder of ``orcast validate`` under the same
    method, whose engine has measured the shares by position, and how often there was a draft.
    """

    rate: Rate | None = None
    per_position: Annotated[list[Rate], Field(min_length=1, max_length=64)] | None = None
    per_rank: Annotated[list[Rate], Field(min_length=1, max_length=64)] | None = None
    trace: str | None = None
    recording: str | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of rate, per_position, per_rank, trace, recording"
                + (f", not {' and '.join(given)}" if given else "")
            )
        return self


class Speculation(_Section):
    """Draft a few tokens cheaply, let the target verify all of them in one iteration.

    ``num_draft_tokens`` drafts make a chain, ``branching`` makes a tree of them. Which keys belong
    to which method is checked.
    """

    method: Literal[
        "draft_model",
        "ngram",
        "medusa",
        "eagle",
        "mtp",
        "self_speculation",
        "jacobi",
        "lookahead",
        "tree",
    ]
    acceptance: Acceptance
    # what the rates mean; both cost the same
    verification: Literal["greedy", "rejection"] = "rejection"
    num_draft_tokens: Depth | None = None  # k; medusa: heads
    # children per node, level by level: tree, eagle, medusa
    branching: Annotated[list[Annotated[int, Field(ge=0, le=64)]], Field(max_length=16)] | None = (
        None
    )
    draft_model: str | None = None  # library name or config.json: draft_model, tree
    draft_tensor_parallel: Annotated[int, Field(ge=1, le=8)] | None = None  # default: the target's
    draft_table: str | None = None  # folder of the draft's own latency table
    # where latency.source is fixed
    draft_step_ms: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None = None
    # self_speculation: share of the target's layers that draft
    layer_share: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = None
    match_rate: Rate | None = None  # ngram: share of steps that find something; default 1
    window: Annotated[int, Field(ge=1, le=256)] | None = None  # lookahead: W
    ngram: Annotated[int, Field(ge=2, le=65)] | None = None  # lookahead: N
    guesses: Annotated[int, Field(ge=1, le=256)] | None = None  # lookahead: G
    host_per_step_us: Microseconds | None = None  # of a drafting step; default 50, an assumption
    host_per_sequence_us: Microseconds | None = None  # ngram; default 20, an assumption
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _keys_fit_the_method(self) -> Self:
        given = {name for name in type(self).model_fields if getattr(self, name) is not None}
        if missing := sorted(NEEDED.get(self.method, set()) - given):
            raise ValueError(f"method {self.method} needs {', '.join(missing)}")
        if extra := sorted(given - METHODS[self.method] - COMMON):
            raise ValueError(
                f"{extra[0]} has no meaning for method {self.method}; it takes "
                f"{', '.join(sorted(METHODS[self.method]))}"
            )
        shapes = given & {"num_draft_tokens", "branching"}
        if self.method != "lookahead" and len(shapes) != 1:
            allowed = sorted(METHODS[self.method] & {"num_draft_tokens", "branching"})
            if shapes:
                raise ValueError("num_draft_tokens and branching are both given: keep one of them")
            raise ValueError(f"method {self.method} needs {' or '.join(allowed)}")
        if self.branching is not None and (not self.branching or min(self.branching) < 1):
            raise ValueError(
                f"branching {self.branching} makes a tree without nodes: give every node's "
                "children level by level, each at least 1, e.g. [3, 2, 1]"
            )
        return self._acceptance_fits()

    def _acceptance_fits(self) -> Self:
        acceptance = self.acceptance
        if acceptance.per_position is not None and len(acceptance.per_position) != self.depth:
            raise ValueError(
                f"acceptance.per_position has {len(acceptance.per_position)} rates, drafts are "
                f"{self.depth} deep"
            )
        told = next((key for key in ("trace", "recording") if getattr(acceptance, key)), None)
        if self.match_rate is not None and told is not None:
            raise ValueError(f"match_rate has no meaning with acceptance.{told}, which has its own")
        if acceptance.per_rank is not None:
            if self.branching is None:
                raise ValueError("acceptance.per_rank needs branching: it is about candidates")
            if self.verification != "greedy":
                raise ValueError(
                    "acceptance.per_rank needs verification greedy: sampled candidates have no rank"
                )
        candidates = max(self.branching or [1])
        if acceptance.rate is not None and self.verification == "greedy" and candidates > 1:
            raise ValueError(
                "with branching and verification greedy, give acceptance.per_rank: how often the "
                "target's token is the draft's 1st, 2nd, … choice"
            )
        return self

    @property
    def depth(self) -> int:
        """The longest run of drafts that can be accepted."""
        if self.ngram is not None:
            return self.ngram - 1
        return self.num_draft_tokens or len(self.branching or ())
