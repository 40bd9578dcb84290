"""The inputs of passes over several tokens of each decoding sequence, and over prompts.

Sequences of one pass bring unlike numbers of tokens (a draft, or none; two to catch up with, or
one), a kernel takes equally many of each. So every sequence's tokens are aligned to the right, and
rows before them are padding: they write nothing, and nobody reads what they compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kernels.transformer import ForwardBatch
from sim.request import Request


@dataclass(frozen=True, slots=True)
class Prompts:
    """Chunks of prompts, packed one after the other."""

    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    context_lens: torch.Tensor  # [P]
    tables: torch.Tensor  # [P, max_blocks] int32
    starts: torch.Tensor  # [P + 1]
    has_past: bool


@dataclass(frozen=True, slots=True)
class Packing:
    """What every pass of one iteration has in common.

    tables: [D, max_blocks] int32 on the device, of the decodes. blocks: [D, max_blocks] the same
    on the host. stored: [D] tokens that each has in the cache. room: [D] slots that it may use.
    widths: [D] tokens of each that the target verifies, the last token of its own included.
    """

    members: Sequence[Request]
    tables: torch.Tensor
    blocks: np.ndarray
    stored: np.ndarray
    room: np.ndarray
    widths: np.ndarray
    block_size: int
    prompts: Prompts | None

    def batch(
        self,
        tokens: torch.Tensor,
        *,
        starts: np.ndarray,
        counts: np.ndarray,
        depths: np.ndarray | None = None,
        words: np.ndarray | None = None,
        tree_len: int | None = None,
        with_prompts: bool = False,
    ) -> ForwardBatch:
        """A pass over the first ``counts`` of each sequence's tokens; `counts` may be zero.

        Args:
            tokens: [D, Q] int64 on the device.
            starts: [D] slot of each sequence's first token, counted from its beginning.
            depths: [Q] how far each token lies behind the first as the model sees it; None: its
                place.
            words: [Q] int64, which of the tree's tokens each sees; None: a chain.
            tree_len: tokens of the tree by now, those of earlier passes included.
            with_prompts: take the batch's prompts along.
        """
        rows, width = tokens.shape
        place = np.arange(width) - (width - counts[:, None])  # of a column's token; < 0: padding
        used = place >= 0
        place = np.maximum(place, 0)
        at = np.where(used, starts[:, None] + place, 0)
        deep = starts[:, None] + (place if depths is None else depths[place])
        block = np.take_along_axis(self.blocks, at // self.block_size, axis=1)
        slots = np.where(used, block * self.block_size + at % self.block_size, -1)
        columns = [place, np.where(used, 0, -1), np.where(used, deep, 0), slots]
        contexts = np.minimum(starts + counts, self.room)
        if words is not None:
            # Without a draft the root is the last token: all that it might see lies before it.
            seen = np.where(counts[:, None] == width, words[place], -1)
            columns.append(np.where(used, seen, 0))
        packed = to_device(np.stack(columns), tokens.device)
        token_ids = torch.where(packed[1] < 0, packed[1], tokens.gather(1, packed[0])).flatten()
        positions, slot_mapping = packed[2].flatten(), packed[3].flatten()
        context_lens, tables = to_device(contexts, tokens.device), self.tables
        prompts = self.prompts if with_prompts else None
        if prompts is not None:
            token_ids = torch.cat((token_ids, prompts.token_ids))
            positions = torch.cat((positions, prompts.positions))
            slot_mapping = torch.cat((slot_mapping, prompts.slot_mapping))
            context_lens = torch.cat((context_lens, prompts.context_lens))
            tables = torch.cat((tables, prompts.tables))
        return ForwardBatch(
            token_ids=token_ids,
            positions=positions,
            slot_mapping=slot_mapping,
            block_tables=tables,
            context_lens=context_lens,
            num_decodes=rows,
            query_len=width,
            tree_mask=None if words is None else packed[4].flatten(),
            tree_len=tree_len,
            cu_seqlens=None if prompts is None else prompts.starts,
            has_past=prompts is None or prompts.has_past,
        )


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """As int64, without waiting for the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
