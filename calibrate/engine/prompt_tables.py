"""Block tables of prompts that are computed in chunks, so that each looks at new blocks alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.batch import PrefillChunk
from sim.request import Request


@dataclass(slots=True)
class _Table:
    """Blocks as of a sequence's latest chunk, and what the next one begins with."""

    blocks: np.ndarray  # int32, longer than what is used of it
    used: int
    next_token: int
    preemptions: int


class PromptTables:
    """Tables of the prompts that are not through."""

    def __init__(self) -> None:
        self._tables: dict[Request, _Table] = {}

    def copy(self, chunk: PrefillChunk, row: np.ndarray) -> None:
        """Write a chunk's block table to the beginning of `row`, int32, as much as there is room.

        Where the chunk does not follow the one before, its blocks may be others: all are read.
        """
        request, end = chunk.request, chunk.cached_tokens + chunk.new_tokens
        known, blocks = self._tables.get(request), request.block_table
        follows = (
            known is not None
            and (known.next_token, known.preemptions) == (chunk.cached_tokens, request.preemptions)
            and known.used <= len(blocks)
        )
        if known is None or not follows:
            known = _Table(np.zeros(64, dtype=np.int32), 0, 0, request.preemptions)
        count = len(blocks)
        if count > len(known.blocks):
            known.blocks = np.concatenate((known.blocks, np.zeros(2 * count, dtype=np.int32)))
        known.blocks[known.used : count] = blocks[known.used :]
        known.used, known.next_token = count, end
        most = min(count, len(row))
        row[:most] = known.blocks[:most]
        if end < request.num_tokens:
            self._tables[request] = known
        else:
            self._tables.pop(request, None)

    def drop(self, request: Request) -> None:
        """This sequence computes no prompt any more."""
        self._tables.pop(request, None)
