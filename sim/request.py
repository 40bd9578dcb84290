"""A request: what a client asked for, how far it has come, and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.sharing.group import SampleGroup

NEVER = float("nan")


@dataclass(slots=True, eq=False)
class Request:
    """One generation request; identity, not value, makes two requests the same.

    ``num_computed_tokens`` counts the tokens whose keys and values are in the cache and
    ``num_generated_tokens`` those that the client has received. While a request decodes in
    lockstep with others both stand still at their values of ``joined_step``; `DecodeSet` knows
    how many iterations have passed since (see `DecodeSet.sync`).
    """

    index: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int  # tokens the model will really generate
    max_tokens: int  # the client's limit, all that a reserving policy can know
    # Of full blocks whose content is known: the prompt's, and the answer's where a later turn
    # repeats it.
    block_hashes: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_generated_tokens: int = 0
    joined_step: int = -1  # DecodeSet.step when it joined; -1 outside
    block_table: list[int] = field(default_factory=list)
    scheduled_s: float = NEVER
    first_token_s: float = NEVER
    last_token_s: float = NEVER
    finished_s: float = NEVER
    cached_tokens: int = 0  # prompt tokens found in the prefix cache at the first admission
    preemptions: int = 0
    label: str = ""  # its class, where the workload names classes
    group: SampleGroup | None = None  # of a request for several samples, and of each of them

    @property
    def was_scheduled(self) -> bool:
        """Whether an iteration has ever served it."""
        return self.scheduled_s == self.scheduled_s  # not NaN

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens: the length that a prefill has to catch up to."""
        return self.prompt_tokens + self.num_generated_tokens

    @property
    def final_tokens(self) -> int:
        """Tokens in the cache at the very end; the last token generated is never written."""
        return self.prompt_tokens + self.output_tokens - 1
