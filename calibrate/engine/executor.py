"""Whatever computes batches for an engine: what it is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from sim.batch import Batch
from sim.request import Request


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


@dataclass(slots=True)
class Outcome:
    """What an iteration gave, and where its time went (seconds)."""

    emitting: Sequence[Request] = ()  # every sequence that emits a token, in order …
    sampled: Sequence[int] = ()  # … and its token
    # Of those that speculate, in place of that: tokens emitted, and drafts accepted.
    answers: dict[Request, list[int]] = field(default_factory=dict)
    accepted: dict[Request, int] = field(default_factory=dict)
    not_finite: list[Request] = field(default_factory=list)  # whose logits are NaN or infinite
    prepare_s: float = 0.0
    draft_s: float = 0.0  # of the forward pass's time, what went to drafting
    forward_s: float = 0.0
    sample_s: float = 0.0

    @property
    def tokens(self) -> dict[Request, int]:
        """By sequence."""
        return dict(zip(self.emitting, self.sampled, strict=True))


class Executor(Protocol):
    """Whatever computes batches for an engine."""

    def add(self, request: Request, prompt: np.ndarray, answer: np.ndarray) -> None:
        """Take in a request: token ids of its prompt, and of its answer as far as it is known.

        Known tokens go in whatever is sampled: later prompts may repeat them.
        """

    def run(self, batch: Batch, decoding: Collection[Request]) -> Outcome:
        """Compute `batch`, whose decodes are `decoding`. Raises torch.OutOfMemoryError."""

    def drop(self, request: Request) -> list[list[int]]:
        """Forget a request; returns the tokens that each of its sequences generated."""
