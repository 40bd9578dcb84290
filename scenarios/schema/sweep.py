"""The ``sweep:`` section of a scenario: which paths vary, how often, and what is asked of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MOST_SEEDS = 10_000


class Sweep(BaseModel):
    """Many runs of one scenario.

    ``axes``: paths to their values, in the grammar of `scenarios.sweep.axes`.
    ``seeds``: how many (``workload.seed``, and the ones after it), or which ones.
    ``sampling``: every combination, or `points` of a Latin hypercube drawn with `sampling_seed`.
    ``metrics``: what the summary and the report show; the table has everything.
    ``confidence``: of the intervals around means over seeds.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    axes: dict[str, Any] = {}
    seeds: Any = 1
    sampling: Literal["cartesian", "latin_hypercube"] = "cartesian"
    points: Annotated[int, Field(ge=1, le=10**6)] | None = None
    sampling_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    metrics: list[str] = []
    confidence: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.95

    @field_validator("seeds")
    @classmethod
    def _a_number_or_a_list(cls, seeds: Any) -> Any:
        listed = seeds if isinstance(seeds, list) else [seeds]
        if not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in listed):
            raise ValueError(f"{seeds!r:.60}: expected a number of seeds, or a list of seeds")
        if not isinstance(seeds, list) and not 1 <= seeds <= MOST_SEEDS:
            raise ValueError(f"{seeds}: expected 1 to {MOST_SEEDS} seeds")
        if not listed or min(listed) < 0 or max(listed) >= 2**63:
            raise ValueError(
                f"{seeds!r:.60}: expected at least one seed, none below 0 or above 2^63"
            )
        if len(set(listed)) < len(listed):
            raise ValueError(f"{seeds!r:.60}: a seed given twice would be the same run")
        return seeds

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.sampling == "latin_hypercube") != (self.points is not None):
            raise ValueError(
                "sampling latin_hypercube needs points: how many settings to draw"
                if self.points is None
                else "points belongs to sampling latin_hypercube; cartesian takes every combination"
            )
        return self

    def seeds_from(self, first: int) -> tuple[int, ...]:
        """The workload's seeds; where only their number is given, `first` and the next ones."""
        if isinstance(self.seeds, list):
            return tuple(self.seeds)
        return tuple(range(first, first + self.seeds))
