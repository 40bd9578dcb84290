"""Contiguous KV memory, as engines before paging laid it out: buddies, or the first hole that fits.

A request's whole reservation lies in one piece, so free memory that lies in pieces too small for it
is of no use: external fragmentation, which blocks of one size do not have. Kwon et al. (SOSP 2023,
section 6.1) give their Orca baselines the *buddy* allocator (Knowlton, CACM 1965): a piece is a
power of two of blocks, at a multiple of its own size; one too large is halved, and halves that are
both free are joined again. *First fit* (Knuth, TAOCP 1, section 2.5) takes what is asked for from
the lowest hole that is large enough.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

from sim.conservation import hold
from sim.kv.cache import BlockAllocator, Key, block_numbers


class ContiguousAllocator(BlockAllocator):
    """A table is one piece of neighbouring blocks; nothing is shared, nor found again.

    Invariants (`check`): tables and holes are pieces that cover every block once.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size)
        self._numbers = tuple(block_numbers(0, num_blocks))  # no queue is kept

    def cache(self, blocks: Sequence[int], hashes: Sequence[Key]) -> None:
        """What blocks hold is not found again."""

    def take(self, count: int) -> list[int]:
        """One piece of at least `count` blocks, of which `fits` says that it is there."""
        start, size = self._place(count)
        self.num_free -= size
        return list(self._numbers[start : start + size])

    def free(self, table: list[int], num_tokens: int | None = None) -> None:
        if table:
            self._give_back(table[0], len(table))
            self.num_free += len(table)
            table.clear()

    def _place(self, count: int) -> tuple[int, int]:
        """First block and size of the piece that is handed out."""
        raise NotImplementedError

    def _give_back(self, start: int, size: int) -> None:
        raise NotImplementedError

    def _holes(self) -> list[tuple[int, int]]:
        """First block and size of every free piece."""
        raise NotImplementedError

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        pieces = self._holes()
        hold(sum(size for _, size in pieces) == self.num_free, "holes != free blocks")
        for table in tables:
            if table:
                hold(list(table) == list(range(table[0], table[-1] + 1)), "a table in pieces")
                pieces.append((table[0], len(table)))
        at = 0
        for start, size in sorted(pieces):
            hold(start == at and size > 0, "a block is free and used, held twice, or lost")
            at = start + size
        hold(at == self.num_blocks, "free + used blocks != all blocks")


class BuddyAllocator(ContiguousAllocator):
    """Pieces are powers of two of blocks; what is more than was asked for is internally lost.

    A cache that is no power of two begins as the pieces of its binary digits, largest first.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size)
        # By the piece's order, its size's logarithm: first blocks, lowest first.
        self._free: list[list[int]] = [[] for _ in range(num_blocks.bit_length())]
        at = 0
        for order in reversed(range(num_blocks.bit_length())):
            if num_blocks >> order & 1:
                self._free[order].append(at)
                at += 1 << order

    def fits(self, count: int) -> bool:
        return any(self._free[(count - 1).bit_length() :])

    def could_fit(self, count: int) -> bool:
        return (count - 1).bit_length() < len(self._free)

    def _place(self, count: int) -> tuple[int, int]:
        wanted = (count - 1).bit_length()
        order = next(k for k in range(wanted, len(self._free)) if self._free[k])
        start = self._free[order].pop(0)
        while order > wanted:
            order -= 1
            insort(self._free[order], start + (1 << order))
        return start, 1 << wanted

    def _give_back(self, start: int, size: int) -> None:
        order = size.bit_length() - 1
        while True:
            free = self._free[order]
            buddy = start ^ (1 << order)
            at = bisect_left(free, buddy)
            if at == len(free) or free[at] != buddy:
                break
            del free[at]
            start = min(start, buddy)
            order += 1
        insort(free, start)

    def _holes(self) -> list[tuple[int, int]]:
        return [(start, 1 << order) for order, free in enumerate(self._free) for start in free]


class FirstFitAllocator(ContiguousAllocator):
    """Pieces are as large as asked for, from the lowest hole that has as many blocks."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size)
        self._free = [(0, num_blocks)]  # lowest first; no two are neighbours

    def fits(self, count: int) -> bool:
        return any(size >= count for _, size in self._free)

    def _place(self, count: int) -> tuple[int, int]:
        at = next(i for i, (_, size) in enumerate(self._free) if size >= count)
        start, size = self._free[at]
        self._free[at : at + 1] = [(start + count, size - count)] if size > count else []
        return start, count

    def _give_back(self, start: int, size: int) -> None:
        free = self._free
        at = bisect_left(free, (start, 0))
        if at < len(free) and free[at][0] == start + size:
            size += free.pop(at)[1]
        if at and sum(free[at - 1]) == start:
            before, length = free.pop(at - 1)
            start, size, at = before, size + length, at - 1
        free.insert(at, (start, size))

    def _holes(self) -> list[tuple[int, int]]:
        return list(self._free)


def largest_piece(placement: str, num_blocks: int) -> int:
    """Blocks that one request can have of an empty cache."""
    return 1 << (num_blocks.bit_length() - 1) if placement == "buddy" else num_blocks


PLACEMENTS: dict[str, type[BlockAllocator]] = {
    "anywhere": BlockAllocator,
    "buddy": BuddyAllocator,
    "first_fit": FirstFitAllocator,
}
