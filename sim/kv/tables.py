"""Which tokens the tables of one kind of layers keep, block by block.

A sequence has a block table for every group of layers, and all tables take their blocks out of one
pool (vLLM's hybrid KV cache manager). What differs is which blocks a table gives back as its
sequence goes on, and what of a cached prefix it needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NULL = -1  # in a table's place: a block that was given back, or never needed


@dataclass(frozen=True, slots=True)
class TableRule:
    """``tables`` block tables that are alike: each for as many layers as every other table.

    ``window`` is how many tokens a sliding window looks at, the token itself among them, or how
    long a chunk is. A state has ``state_blocks`` blocks, whatever the sequence's length. Where
    prefixes are cached states are kept at the ends of blocks (`checkpoint`, vLLM's mode ``align``):
    a block for the one that a sequence has come to, and the one before for as long as it is read,
    at most ``state_blocks``.
    """

    kind: str  # full, sliding, chunked, state or checkpoint
    window: int = 0
    tables: int = 1
    state_blocks: int = 1

    @property
    def grows(self) -> bool:
        """Whether every token is written to these tables."""
        return self.kind not in ("state", "checkpoint")

    @property
    def lengthens(self) -> bool:
        """Whether these tables have a place for every block of a sequence."""
        return self.kind != "state"

    @property
    def gives_back(self) -> bool:
        """Whether blocks come free before the sequence ends."""
        return self.kind in ("sliding", "chunked", "checkpoint")

    def skipped_blocks(self, computed_tokens: int, block_size: int) -> int:
        """Blocks at the beginning that nobody looks at once so many tokens are computed."""
        if self.kind == "sliding":
            return max(computed_tokens - self.window + 1, 0) // block_size
        if self.kind == "chunked":
            return computed_tokens // self.window * self.window // block_size
        if self.kind == "checkpoint":
            return max(computed_tokens - 1, 0) // block_size
        return 0

    def first_skipping(self) -> int:
        """With how many tokens computed the first comes free; then once every block, or chunk."""
        if self.kind == "checkpoint":
            return 1
        return self.window - 1 if self.kind == "sliding" else 0

    def blocks_for(self, tokens: int, block_size: int) -> int:
        """Length of a table of so many tokens, blocks that were given back included."""
        return -(-tokens // block_size) if self.lengthens else self.state_blocks

    def most_blocks(self, tokens: int, block_size: int, in_flight_tokens: int) -> int:
        """Blocks that a table holds at most while its sequence grows to `tokens`.

        A window needs what it looks back on and what is computed before that is known to be behind
        it, and may begin inside a block (vLLM's ``max_admission_blocks_per_request``).
        """
        if self.kind == "sliding":
            held = min(self.window - 1 + in_flight_tokens, tokens)
            return min(-(-held // block_size) + 1, self.blocks_for(tokens, block_size))
        if self.kind == "chunked":
            held = min(self.window + in_flight_tokens, tokens)
            return -(-held // block_size)
        if self.kind == "checkpoint":
            return min(self.blocks_for(tokens, block_size), self.state_blocks)
        return self.blocks_for(tokens, block_size)


class Tables(list[int]):
    """The first of a sequence's block tables, with the others at hand.

    Where a block was given back there is `NULL`; ``starts`` are each rule's blocks so far.
    """

    __slots__ = ("further", "has_states", "starts")

    def __init__(self, num_tables: int, num_rules: int) -> None:
        super().__init__()
        self.further: list[list[int]] = [[] for _ in range(num_tables - 1)]
        self.starts = [0] * num_rules
        self.has_states = False

    def rows(self) -> list[list[int]]:
        """All tables."""
        return [self, *self.further]

    def held(self) -> Iterator[int]:
        """Every block in any of them."""
        for row in self.rows():
            yield from (block for block in row if block != NULL)


class Hits(list[int]):
    """A cached prefix: the first table's blocks, `NULL` where none is needed, and the others'."""

    __slots__ = ("rows",)

    def __init__(self, rows: Sequence[list[int]]) -> None:
        super().__init__(rows[0])
        self.rows = rows
