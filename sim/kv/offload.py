"""The prefix cache's second tier: blocks that the GPU gives up go to host memory.

A cached block that no sequence holds is *evicted* when the free queue hands it out again. With a
second tier its content is copied to the host first, and a later request with the same prefix, the
next turn of a conversation above all, gets it back over the host link instead of computing it
again (CachedAttention: Gao et al., USENIX ATC 2024; vLLM's KV offloading; LMCache). What was loaded
stays on the host, too, so that giving it up once more costs nothing. The host drops the least
recently used block when it is full. Copies are not overlapped with the iteration that makes them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from sim.conservation import hold
from sim.kv.cache import BlockAllocator


class HostBlockCache:
    """Cached blocks in host memory by content hash, least recently used first."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._slots: OrderedDict[int, int] = OrderedDict()
        self._hash_in: dict[int, int] = {}
        self._unused = 0  # the first that has never been used, and so have none after it
        self._kept: set[int] = set()  # hashes that the current decision loads: not to be dropped
        self.stored: list[tuple[int, int]] = []  # (device block, host block), since `drain`
        self.loaded: list[tuple[int, int]] = []  # (host block, device block)

    def __len__(self) -> int:
        return len(self._slots)

    def slot(self, block_hash: int) -> int | None:
        """The host block with this content."""
        return self._slots.get(block_hash)

    def store(self, block_hash: int, block: int) -> None:
        """Keep the content of a device block that is about to be overwritten."""
        if block_hash in self._slots:
            self._slots.move_to_end(block_hash)
            return
        if self._unused < self.num_blocks:
            slot = self._unused
            self._unused += 1
        else:
            oldest = next(iter(self._slots), None)
            if oldest is None or oldest in self._kept:
                return
            slot = self._slots.pop(oldest)
            del self._hash_in[slot]
        self._slots[block_hash] = slot
        self._hash_in[slot] = block_hash
        self.stored.append((block, slot))

    def keep(self, slots: Iterable[int]) -> list[int]:
        """Hashes of host blocks that will be loaded; they are the most recently used now."""
        hashes = [self._hash_in[slot] for slot in slots]
        for block_hash in hashes:
            self._slots.move_to_end(block_hash)
        self._kept.update(hashes)
        return hashes

    def drain(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The copies that the next iteration has to make: all stored, then all loaded."""
        copies = self.stored, self.loaded
        self.stored, self.loaded = [], []
        self._kept.clear()
        return copies

    def check(self) -> None:
        """Every host block is free or holds one content; raises ConservationError otherwise."""
        held = set(self._slots.values())
        hold(len(held) == len(self._slots), "a host block holds two contents")
        hold(held == set(range(self._unused)), "a host block is lost, or used before its turn")
        hold(self._hash_in == {slot: key for key, slot in self._slots.items()})


class TieredAllocator(BlockAllocator):
    """A `BlockAllocator` whose prefix cache goes on in host memory.

    `cached_prefix` lists a block that only the host has as ``~host_block``, a negative number; it
    costs a free block, into which `reuse` has it loaded. Block tables hold device blocks only.
    """

    def __init__(self, num_blocks: int, block_size: int, *, host_blocks: int) -> None:
        super().__init__(num_blocks, block_size, prefix_caching=True)
        self.host = HostBlockCache(host_blocks)

    def cached(self, hashes: Iterable[int]) -> list[int]:
        blocks = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                slot = self.host.slot(block_hash)
                if slot is None:
                    break
                block = ~slot
            blocks.append(block)
        return blocks

    def num_idle(self, blocks: Iterable[int]) -> int:
        return sum(block < 0 or block in self._idle for block in blocks)

    def reuse(self, table: list[int], blocks: Iterable[int]) -> None:
        blocks = list(blocks)
        hashes = iter(self.host.keep(~block for block in blocks if block < 0))
        # Those on the device first: taking a block for one of the others might evict them.
        held: list[int] = []
        super().reuse(held, (block for block in blocks if block >= 0))
        fresh = iter(self.take(len(blocks) - len(held)))
        on_device = iter(held)
        for block in blocks:
            if block >= 0:
                table.append(next(on_device))
                continue
            target = next(fresh)
            self.host.loaded.append((~block, target))
            self.cache(target, next(hashes))
            table.append(target)

    def forget_all(self) -> None:
        super().forget_all()
        self.host = HostBlockCache(self.host.num_blocks)

    def _evict(self, block: int) -> None:
        block_hash = self._hash_of[block]
        assert isinstance(block_hash, int), "one table a sequence"
        if block_hash not in self._twins:  # no other device block has the same content
            self.host.store(block_hash, block)
        super()._evict(block)

    @property
    def num_without_content(self) -> int:
        """Blocks that can surely be handed out without evicting one, perhaps fewer than there are.

        Cached blocks lie anywhere in the free queue.
        """
        return 0 if self._idle else self.num_free

    def check(self, tables: Iterable[list[int]]) -> None:  # type: ignore[override]
        super().check(tables)
        self.host.check()
