"""The rows of a decode batch, kept from iteration to iteration.

Sequences that decode keep their row until they leave; the last row then moves into the gap, so that
rows 0 to n - 1 are always the batch. Block tables live on the device and only entries that changed
are sent there: one block a sequence every block_size iterations, not whole tables every time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import torch

from sim.request import Request


class DecodeRows:
    """What decode kernels read of each sequence: last token, length, block table.

    tokens: [max_num_seqs] int64, the token that goes in next.
    context: [max_num_seqs] int64, tokens in the cache before it.
    tables: [max_num_seqs, max_blocks] int32 on the device, and blocks, the same on the host.
    """

    def __init__(
        self, max_num_seqs: int, max_blocks: int, device: torch.device, *, block_size: int
    ) -> None:
        self.requests: list[Request] = []
        self.tokens = np.zeros(max_num_seqs, dtype=np.int64)
        self.context = np.zeros(max_num_seqs, dtype=np.int64)
        self.tables = torch.zeros((max_num_seqs, max_blocks), dtype=torch.int32, device=device)
        self.blocks = np.zeros((max_num_seqs, max_blocks), dtype=np.int32)
        self.version = 0  # of the order of rows
        self._block_size = block_size
        self._row_of: dict[Request, int] = {}
        self._block = np.zeros(max_num_seqs, dtype=np.int64)  # written to next; -1: look it up
        self._num_blocks = np.zeros(max_num_seqs, dtype=np.int64)
        self._slots = self._block[:0]
        self._fresh = False  # whether there are rows whose block is to be looked up
        self._changes: dict[int, int] = {}  # row * max_blocks + position -> block

    def __len__(self) -> int:
        return len(self.requests)

    def __contains__(self, request: Request) -> bool:
        return request in self._row_of

    def keep_only(self, decoding: Collection[Request]) -> None:
        """Let everybody go who is not among `decoding`."""
        if len(decoding) == len(self.requests) and all(r in self._row_of for r in decoding):
            return
        staying = set(decoding)
        for request in [request for request in self.requests if request not in staying]:
            self._remove(request)

    def add(self, request: Request) -> None:
        """A sequence whose prefill is done; its next input is still to be set."""
        row = len(self.requests)
        self.version += 1
        self.requests.append(request)
        self._row_of[request] = row
        self.context[row] = request.num_computed_tokens
        self._rewrite(row)

    def refresh(self, rewritten: Iterable[Request] = (), *, every: bool = False) -> None:
        """Bring the tables on the device up to date; of `rewritten` ones every entry is sent.

        A sequence gets a block as it begins to write to it, or all of them at the beginning; with
        `every` it may have got more at any time.
        """
        for request in rewritten:
            if request in self._row_of:
                self._rewrite(self._row_of[request])
        count, size = len(self.requests), self._block_size
        context = self.context[:count]
        offset = context % size
        due = offset == 0
        if self._fresh or every:
            due = due | (self._block[:count] < 0) | every
            self._fresh = False
        rows = due.nonzero()[0]
        if len(rows):
            self._look_up(rows, context[rows] // size)
        self._slots = self._block[:count] * size + offset
        if self._changes:
            self._send()

    def slots(self, count: int) -> np.ndarray:
        """The cache slot that each of `count` rows' next token goes to: [count] int64."""
        return self._slots[:count]

    def _look_up(self, rows: np.ndarray, positions: np.ndarray) -> None:
        """Send what is new of these rows' tables, and note the blocks that they write to next:
        their `positions`."""
        width = self.tables.shape[1]
        places: list[int] = []
        blocks: list[int] = []
        lengths: list[int] = []
        written: list[int] = []
        known = self._num_blocks[rows].tolist()
        for row, first, position in zip(rows.tolist(), known, positions.tolist(), strict=True):
            table = self.requests[row].block_table
            length = min(len(table), width)  # what is reserved beyond is never read
            places += range(row * width + first, row * width + length)
            blocks += table[first:length]
            lengths.append(length)
            # Beyond: it does not decode in this iteration.
            written.append(table[position] if position < length else -1)
        if places:
            self.blocks.reshape(-1)[places] = blocks
            self._changes.update(zip(places, blocks, strict=True))
            self._num_blocks[rows] = lengths
        self._block[rows] = written
        self._fresh = self._fresh or -1 in written

    def set_token(self, request: Request, token: int) -> None:
        """What goes in next of a sequence, where it still has a row."""
        row = self._row_of.get(request)
        if row is not None:
            self.tokens[row] = token

    def step(self, by: int = 1) -> None:
        """Every row computes its token: the next one goes behind it."""
        self.context[: len(self.requests)] += by

    def _remove(self, request: Request) -> None:
        row = self._row_of.pop(request)
        self.version += 1
        last = self.requests.pop()
        if last is not request:
            self.requests[row] = last
            self._row_of[last] = row
            self.tokens[row] = self.tokens[len(self.requests)]
            self.context[row] = self.context[len(self.requests)]
            self._rewrite(row)

    def _rewrite(self, row: int) -> None:
        self._num_blocks[row] = 0
        self._block[row] = -1
        self._fresh = True

    def _send(self) -> None:
        device = self.tables.device
        changes = np.array([*self._changes, *self._changes.values()], dtype=np.int64)
        staged = torch.from_numpy(changes).view(2, -1)
        if device.type == "cuda":
            staged = staged.pin_memory().to(device, non_blocking=True)
        self.tables.view(-1)[staged[0]] = staged[1].to(torch.int32)
        self._changes.clear()  # not before: where memory runs out they are sent the next time
