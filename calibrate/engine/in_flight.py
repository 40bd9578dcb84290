"""A batch on its way through the device: its inputs, prepared, launched."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from calibrate.engine.iteration_graphs import Staged
from sim.request import Request


@dataclass(slots=True)
class Inputs:
    """What goes into a forward pass, in one array: tokens, positions, slots, context lengths.

    Each of the four begins at an even place, so on 16 bytes, however many tokens there are.
    The first `num_decodes` tokens are filled in at the launch. ``starts``: [prefills + 1], where
    each prompt's tokens begin among them; ``emitting``: rows that a token is sampled from.
    """

    packed: np.ndarray
    num_tokens: int
    num_decodes: int
    starts: np.ndarray
    tables: torch.Tensor
    emitting: list[int]
    has_past: bool


@dataclass(slots=True)
class Prepared:
    """A batch ready but for its decodes' tokens: a captured graph's inputs, or a pass's."""

    count: int
    emitting: Sequence[Request]
    newcomers: list[tuple[Request, int]]  # decodes without a token yet, and where theirs is
    staged: Staged | None
    inputs: Inputs | None
    rows: list[int]  # of what a graph leaves, those of prompts that end; decodes' are the first
    order: int = 0  # of the rows
    host_s: float = 0.0


Computed = tuple[torch.Tensor, list[Any]]  # tokens (see `IterationGraphs`), marks


@dataclass(frozen=True, slots=True)
class Launched:
    """A batch that the device computes."""

    prepared: Prepared
    computed: Computed | Future[Computed]
