"""Whoever drafts tokens for a real engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from calibrate.engine.speculation.packed import Packing
from sim.batch import Batch
from sim.request import Request


@dataclass(frozen=True, slots=True)
class Proposal:
    """Candidates of some sequences, all with the same tree.

    tokens: [sequences, nodes] int64 on the device, the root's column included and not used.
    probabilities: [sequences, nodes, vocabulary], the distribution that a node's children were
        drawn from; None where a proposal is certain: all of it on the one token proposed.
    """

    tokens: torch.Tensor
    probabilities: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """What came of one sequence's verification.

    path: nodes accepted, the root first. tokens: those that go on, the target's own last.
    predictions: what the target would say after each node that it computed.
    """

    path: Sequence[int]
    tokens: Sequence[int]
    predictions: Sequence[int]


class Proposer(Protocol):
    """Drafts for sequences that decode; keeps what it needs of each until it is dropped."""

    def propose(self, batch: Batch, members: Sequence[Request], packing: Packing) -> Proposal:
        """Candidates for each of `members`, the batch's decodes, in order.

        To be called before the target's pass, whether or not anybody has a draft in this batch.
        """

    def verified(self, request: Request, found: Verified) -> None:
        """A verification is through: what it gave, before its tokens are noted down."""

    def emitted(self, request: Request, tokens: Sequence[int]) -> bool:
        """A sequence has new tokens; `tokens` are all of it. Returns whether it has a draft now."""

    def drop(self, request: Request) -> None:
        """Forget a sequence."""
