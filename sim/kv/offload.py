"""The prefix cache beyond the device: blocks that the GPU gives up go to tiers of other memory.

A cached block that no sequence holds is *evicted* when the free queue hands it out again. With
tiers its content is copied to host memory, or whichever is the first, and a later request with the
same prefix, the next turn of a conversation above all, gets it back over the host link instead of
computing it again (CachedAttention: Gao et al., USENIX ATC 2024; vLLM's KV offloading; LMCache).
What was loaded stays where it was, too, so that giving it up once more costs nothing. Copies over
the host link are not overlapped with the iteration that makes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sim.kv.cache import BlockAllocator
from sim.kv.tiers import Tier, TierSpec, TierStack


class TieredAllocator(BlockAllocator):
    """A `BlockAllocator` whose prefix cache goes on in tiers of other memory.

    `cached_prefix` lists a block that only a tier has as ``~block``, a negative number; it costs a
    free block, into which `reuse` has it loaded. Block tables hold device blocks only.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        tiers: Sequence[TierSpec],
        writes: str = "back",
        shared: Tier | None = None,
    ) -> None:
        super().__init__(num_blocks, block_size, prefix_caching=True)
        self.tiers = TierStack(tiers, writes=writes, shared=shared)
        self._computed: dict[int, int] = {}  # blocks to be written through, and what they hold

    def at(self, now_s: float) -> None:
        self.tiers.now_s = now_s

    def cached(self, hashes: Iterable[int]) -> list[int]:
        blocks = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                below = self.tiers.find(block_hash)
                if below is None:
                    break
                block = ~below
            blocks.append(block)
        return blocks

    def num_idle(self, blocks: Iterable[int]) -> int:
        return sum(block < 0 or block in self._idle for block in blocks)

    def reuse(self, table: list[int], blocks: Iterable[int]) -> None:
        blocks = list(blocks)
        hashes = iter(self.tiers.load(~block for block in blocks if block < 0))
        # Those on the device first: taking a block for one of the others might evict them.
        held: list[int] = []
        super().reuse(held, [block for block in blocks if block >= 0])
        fresh = iter(self.take(len(blocks) - len(held)))
        on_device = iter(held)
        for block in blocks:
            if block >= 0:
                table.append(next(on_device))
                continue
            target = next(fresh)
            self.tiers.loaded(~block, target)
            self.cache((target,), (next(hashes),))
            table.append(target)

    def forget_all(self) -> None:
        super().forget_all()
        self.tiers.forget_own()
        self._computed.clear()

    def free(self, table: list[int], num_tokens: int | None = None) -> None:
        if self.tiers.through and self._hash_of:
            self.will_write(table)
        super().free(table, num_tokens)

    def will_write(self, blocks: Iterable[int]) -> None:
        """These are computed, those of them that can be found again: write them through."""
        for block in blocks:
            block_hash = self._hash_of.get(block)
            if block_hash is not None:
                assert isinstance(block_hash, int), "one table a sequence"
                self._computed[block] = block_hash

    @property
    def is_writing(self) -> bool:
        """Whether something is to be written through."""
        return bool(self._computed)

    def write_through(self) -> None:
        """Write what has been computed since, where it is still there and no tier has it."""
        tiers = self.tiers
        for block, block_hash in self._computed.items():
            if self._hash_of.get(block) == block_hash and not tiers.has_all(block_hash):
                tiers.store(block_hash, block)
        self._computed.clear()

    def _evict(self, blocks: list[int]) -> None:
        for block in blocks:  # one by one: of twins only the last one's content goes down
            block_hash = self._hash_of.get(block)
            if block_hash is None:
                continue
            assert isinstance(block_hash, int), "one table a sequence"
            if block_hash not in self._twins:  # no other device block has the same content
                self.tiers.store(block_hash, block)
            super()._evict([block])

    @property
    def num_without_content(self) -> int:
        """Blocks that can surely be handed out without evicting one, perhaps fewer than there are.

        Cached blocks lie anywhere in the free queue.
        """
        return 0 if self._idle else self.num_free

    def check(self, tables: Iterable[list[int]]) -> None:  # type: ignore[override]
        super().check(tables)
        self.tiers.check()
