"""What every section of a scenario file shares: strictness, and numbers with sane bounds."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Upper bounds lie far beyond any deployment: what is above them is a slip, and would otherwise end
# in an overflow or in all of this machine's memory.
Positive = Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Efficiency = Annotated[float, Field(ge=1e-3, le=1, allow_inf_nan=False)]
Percentile = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10**8)]
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Section(BaseModel):
    """Unknown keys are refused; numbers are not guessed from text."""

    model_config = ConfigDict(
        extra="forbid", defer_build=True, strict=True, frozen=True, protected_namespaces=()
    )
