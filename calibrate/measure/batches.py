"""Batches by their lengths: as tensors for the kernels, and as the simulator's features.

Sequences own disjoint blocks of the cache, in random order, as after some time of service.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kernels.transformer import ForwardBatch
from sim.batch import Batch, PrefillChunk
from sim.request import Request


@dataclass(frozen=True, slots=True)
class Lengths:
    """What a batch computes: a context for each decode (its new token included), and
    (new, cached) tokens for each prompt."""

    decodes: tuple[int, ...] = ()
    prefills: tuple[tuple[int, int], ...] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.decodes) + sum(new for new, _ in self.prefills)

    @property
    def num_seqs(self) -> int:
        return len(self.decodes) + len(self.prefills)

    def num_blocks(self, block_size: int) -> int:
        """Blocks of the cache that it occupies."""
        contexts = (*self.decodes, *(sum(pair) for pair in self.prefills))
        return sum(-(-context // block_size) for context in contexts)

    def features(self) -> Batch:
        """As the latency model sees it."""
        return features(
            self.prefills, len(self.decodes), sum(self.decodes), max(self.decodes, default=0)
        )


def features(
    prefills: Sequence[tuple[int, int]], decodes: int, context_tokens: int, longest_tokens: int
) -> Batch:
    """A batch as the latency model sees it: (new, cached) tokens of prompts, sums over decodes."""
    num_seqs = decodes + len(prefills)
    return Batch(
        prefills=[
            PrefillChunk(Request(index, 0.0, new + cached, 1, 1), new, cached)
            for index, (new, cached) in enumerate(prefills)
        ],
        num_decodes=decodes,
        context_tokens=context_tokens,
        longest_tokens=longest_tokens,
        num_tokens=decodes + sum(new for new, _ in prefills),
        num_emitting=num_seqs,
        num_seqs=num_seqs,
    )


def forward_batch(
    lengths: Lengths,
    *,
    block_order: np.ndarray,
    block_size: int,
    vocab_size: int,
    device: torch.device,
    width: int = 0,
) -> ForwardBatch:
    """The tensors of a batch; blocks are taken from ``block_order`` [num_blocks] from its start.

    Block tables are at least ``width`` wide, as an engine's are: decode kernels divide their work
    by that width, which does not change from batch to batch. Raises ValueError where blocks are
    too few.
    """
    needed = lengths.num_blocks(block_size)
    if needed > len(block_order):
        raise ValueError(f"{needed} blocks are needed, the cache has {len(block_order)}")
    contexts = [*lengths.decodes, *(sum(pair) for pair in lengths.prefills)]
    counts = [-(-context // block_size) for context in contexts]
    tables = np.zeros((len(contexts), max(width, *counts)), dtype=np.int32)
    starts = itertools.accumulate(counts, initial=0)
    for row, (start, count) in enumerate(zip(starts, counts, strict=False)):
        tables[row, :count] = block_order[start : start + count]
    new = np.array([1] * len(lengths.decodes) + [pair[0] for pair in lengths.prefills])
    rows = np.repeat(np.arange(len(contexts)), new)
    ends = np.cumsum(new)
    first = np.array(contexts) - new
    positions = np.arange(len(rows)) - np.repeat(ends - new, new) + np.repeat(first, new)
    slots = tables[rows, positions // block_size].astype(np.int64) * block_size
    slots += positions % block_size
    token_ids = np.arange(len(rows)) * 7919 % vocab_size
    bounds = None
    if lengths.prefills:
        bounds = _tensor(np.cumsum([0, *(pair[0] for pair in lengths.prefills)]), device)
    return ForwardBatch(
        token_ids=_tensor(token_ids, device),
        positions=_tensor(positions, device),
        slot_mapping=_tensor(slots, device),
        block_tables=_tensor(tables, device),
        context_lens=_tensor(np.array(contexts), device),
        num_decodes=len(lengths.decodes),
        cu_seqlens=bounds,
        has_past=any(cached for _, cached in lengths.prefills),
    )


def emitting_rows(lengths: Lengths, device: torch.device) -> torch.Tensor:
    """Rows of the hidden states that emit a token: each sequence's last, [num_seqs]."""
    new = [1] * len(lengths.decodes) + [pair[0] for pair in lengths.prefills]
    return torch.tensor(np.cumsum(new) - 1, device=device)


def _tensor(values: np.ndarray, device: torch.device) -> torch.Tensor:
    dtype = torch.int64 if values.dtype == np.int64 else torch.int32
    return torch.from_numpy(np.ascontiguousarray(values)).to(device=device, dtype=dtype)
