"""Tiers of memory behind a device's prefix cache: host, NVMe, a store that replicas share.

A tier keeps cached blocks by the hash of their content and drops the least recently used one when
it is full, or one that nobody asked for in `ttl_s`. What leaves the device goes to the first tier.
With writes ``back`` it goes on to the next when a tier drops it (CachedAttention: Gao et al.,
USENIX ATC 2024); with writes ``through`` every tier has it as soon as it is computed (LMCache;
Mooncake: Qin et al., FAST 2025).

Every block on its way to or from the device crosses the host link, which the latency model counts.
Reading below the host comes on top, α + blocks · β, one tier after the other. Writing there goes on
beside the computation, block by block: one that is still on its way is not found.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import Protocol

import numpy as np

from sim.conservation import hold

WRITES = ("back", "through")


@dataclass(frozen=True, slots=True)
class TierSpec:
    """One tier: `num_blocks` large; seconds are a block's, `latency_s` that of each access."""

    kind: str  # host, nvme or shared
    num_blocks: int
    read_s: float = 0.0
    write_s: float = 0.0
    latency_s: float = 0.0
    ttl_s: float = inf

    @property
    def is_timed(self) -> bool:
        """Whether what is found in it depends on when it is asked."""
        return self.kind == "shared" or self.ttl_s < inf or self.writes_behind

    @property
    def writes_behind(self) -> bool:
        """Whether writing goes on beside the computation."""
        return self.kind != "host" and (self.write_s > 0 or self.latency_s > 0)


class Refetch(Protocol):
    """What fetching is weighed against: computing the same tokens again."""

    link_s: float  # of a block over the host link

    def prefill_s(self, new_tokens: int, cached_tokens: int) -> float:
        """Seconds that a prompt's `new_tokens` take behind `cached_tokens`, alone in a batch."""


class Tier:
    """Blocks by content hash, least recently used first."""

    def __init__(self, num_blocks: int, ttl_s: float = inf) -> None:
        self.num_blocks = num_blocks
        self.ttl_s = ttl_s
        self.written = 0  # blocks, since the start
        self.dropped = 0
        self._slots: OrderedDict[int, int] = OrderedDict()
        self._hash_in: dict[int, int] = {}
        self._free: list[int] = []  # of those handed out before
        self._fresh = 0  # the first slot that never held anything
        self._used_s: dict[int, float] = {}  # where a time to live is set
        self._there_s: dict[int, float] = {}  # when those are written that are on their way

    def __len__(self) -> int:
        return len(self._slots)

    def slot(self, block_hash: int, now_s: float = 0.0) -> int | None:
        """The slot with this content, if it can be read now."""
        slot = self._slots.get(block_hash)
        if slot is None:
            return None
        if self._used_s and now_s - self._used_s[block_hash] > self.ttl_s:
            return None
        if self._there_s and self._there_s.get(block_hash, -inf) > now_s:
            return None
        return slot

    def has(self, block_hash: int) -> bool:
        """Whether it has this content, be it on its way."""
        return block_hash in self._slots

    def hash_in(self, slot: int) -> int:
        return self._hash_in[slot]

    def use(self, block_hash: int, now_s: float) -> int | None:
        """Its slot, now the most recently used, be it on its way; None: it has none."""
        slot = self._slots.get(block_hash)
        if slot is not None:
            self._slots.move_to_end(block_hash)
            if self.ttl_s < inf:
                self._used_s[block_hash] = max(now_s, self._used_s[block_hash])
        return slot

    def expire(self, now_s: float) -> None:
        """Drop what nobody asked for in `ttl_s`."""
        while self._used_s:
            oldest = next(iter(self._slots))
            if now_s - self._used_s[oldest] <= self.ttl_s:
                return
            self.drop(oldest)

    @property
    def is_full(self) -> bool:
        return len(self._slots) >= self.num_blocks

    @property
    def oldest(self) -> int:
        """The content that was used least recently."""
        return next(iter(self._slots))

    def drop(self, block_hash: int) -> None:
        slot = self._slots.pop(block_hash)
        del self._hash_in[slot]
        self._used_s.pop(block_hash, None)
        self._there_s.pop(block_hash, None)
        self._free.append(slot)
        self.dropped += 1

    def add(self, block_hash: int, now_s: float, there_s: float) -> int:
        """A slot for this content, which can be read from `there_s`; there must be room."""
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._fresh
            self._fresh += 1
        self._slots[block_hash] = slot
        self._hash_in[slot] = block_hash
        if self.ttl_s < inf:
            self._used_s[block_hash] = now_s
        if there_s > now_s:
            self._there_s[block_hash] = there_s
        self.written += 1
        return slot

    def check(self) -> None:
        """Every slot is free or holds one content; raises ConservationError otherwise."""
        held = set(self._slots.values())
        hold(len(held) == len(self._slots), "a block of a tier holds two contents")
        hold(not held & set(self._free), "a block of a tier is both free and used")
        hold(len(held) + len(self._free) == self._fresh, "a block of a tier is lost")
        hold(len(held) <= self.num_blocks, "a tier holds more than it has room for")
        hold(self._hash_in == {slot: key for key, slot in self._slots.items()})
        hold(self.written - self.dropped == len(held), "a tier's blocks written are not all kept")
        hold(self._there_s.keys() <= self._slots.keys(), "what is on its way has no slot")
        known = self._slots.keys() if self.ttl_s < inf else set()
        hold(self._used_s.keys() == known, "a time to live is of nothing")


class TierStack:
    """A replica's tiers, first to last, and the copies that its next iteration has to make.

    A block of a tier goes by one number, the slots of the tiers before it counted.
    """

    def __init__(
        self, specs: Sequence[TierSpec], *, writes: str = "back", shared: Tier | None = None
    ) -> None:
        """`shared`: the store that replicas share, where they do."""
        if writes not in WRITES:
            raise ValueError(f"writes {writes!r} of tiers; allowed: {', '.join(WRITES)}")
        self.specs = tuple(specs)
        self.through = writes == "through"
        self.now_s = 0.0
        self.asked = 0  # blocks of prompts that were admitted
        self.on_device = 0  # of those, found there
        self.found = [0] * len(specs)
        self.passed_over = [0] * len(specs)  # found, and sooner computed again
        self.stored = [0] * len(specs)
        self.tiers = [
            shared
            if shared is not None and spec.kind == "shared"
            else Tier(spec.num_blocks, spec.ttl_s)
            for spec in specs
        ]
        self.is_timed = any(spec.is_timed for spec in specs)
        self._first = [0, *accumulate(spec.num_blocks for spec in specs)]
        self._written_s = [0.0] * len(specs)  # when all is written that was to be
        self._kept: set[int] = set()  # what the current decision loads: not to be dropped
        self._moved_in: list[tuple[int, int]] = []
        self._moved_out: list[tuple[int, int]] = []
        self._read_s = 0.0

    def find(self, block_hash: int) -> int | None:
        """The block of the first tier that has this content."""
        for tier, first in zip(self.tiers, self._first, strict=False):
            slot = tier.slot(block_hash, self.now_s)
            if slot is not None:
                return first + slot
        return None

    def has_all(self, block_hash: int) -> bool:
        """Whether every tier has this content."""
        for tier in self.tiers:
            tier.expire(self.now_s)
        return all(tier.has(block_hash) for tier in self.tiers)

    def tier_of(self, block: int) -> int:
        """Which tier a block is of."""
        number = 0
        while block >= self._first[number + 1]:
            number += 1
        return number

    def store(self, block_hash: int, block: int) -> None:
        """Keep the content of a device block."""
        source = block
        for number in range(len(self.tiers) if self.through else 1):
            kept_in = self._put(number, block_hash, source)
            if kept_in is not None:
                source = ~kept_in

    def _put(self, number: int, block_hash: int, source: int) -> int | None:
        """Have a tier keep a content, copied from `source`; returns the block, None where it can't.

        Below 0 the source is a tier's: ``~block``.
        """
        tier, spec, first = self.tiers[number], self.specs[number], self._first[number]
        tier.expire(self.now_s)
        slot = tier.use(block_hash, self.now_s)
        if slot is not None:
            return first + slot
        last = number + 1 == len(self.tiers)
        if tier.is_full:
            oldest = tier.oldest
            if oldest in self._kept:
                return None if self.through or last else self._put(number + 1, block_hash, source)
            if not self.through and not last:
                at = tier.use(oldest, -inf)
                assert at is not None
                self._put(number + 1, oldest, ~(first + at))
            tier.drop(oldest)
        there_s = -inf
        if spec.writes_behind:
            begin_s = max(self.now_s, self._written_s[number])
            self._written_s[number] = begin_s + spec.write_s
            there_s = self._written_s[number] + spec.latency_s
        block = first + tier.add(block_hash, self.now_s, there_s)
        self.stored[number] += 1
        self._moved_out.append((source, block))
        return block

    def load(self, blocks: Iterable[int]) -> list[int]:
        """The contents of blocks that are read now; nothing is to be dropped for before that."""
        hashes, counts = [], [0] * len(self.tiers)
        for block in blocks:
            number = self.tier_of(block)
            block_hash = self.tiers[number].hash_in(block - self._first[number])
            self.tiers[number].use(block_hash, self.now_s)
            counts[number] += 1
            hashes.append(block_hash)
        self._kept.update(hashes)
        for number, count in enumerate(counts):
            self.found[number] += count
        self._read_s += self._reading_s(counts)
        return hashes

    def loaded(self, block: int, target: int) -> None:
        """A tier's block is copied to a block of the device."""
        self._moved_in.append((block, target))

    def reading_s(self, blocks: Iterable[int]) -> float:
        """How long it takes to read these into the host's memory."""
        counts = [0] * len(self.tiers)
        for block in blocks:
            counts[self.tier_of(block)] += 1
        return self._reading_s(counts)

    def _reading_s(self, counts: Sequence[int]) -> float:
        return sum(
            spec.latency_s + count * spec.read_s
            for spec, count in zip(self.specs, counts, strict=True)
            if count
        )

    def drain(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]], float]:
        """The copies that the next iteration makes, all out, then all in; seconds of reading."""
        moved = self._moved_out, self._moved_in, self._read_s
        self._moved_out, self._moved_in, self._read_s = [], [], 0.0
        self._kept.clear()
        return moved

    def forget_own(self) -> None:
        """The replica is lost, and its own tiers with it."""
        for number, spec in enumerate(self.specs):
            if spec.kind != "shared":
                self.tiers[number] = Tier(spec.num_blocks, spec.ttl_s)
                self._written_s[number] = 0.0
        self._kept.clear()
        self.drain()

    def rows(self) -> np.ndarray:
        """Of the device and each tier: blocks asked for, found, passed over, stored, held."""
        device = [self.asked, self.on_device, 0, 0, 0]
        held = [len(tier) for tier in self.tiers]
        further = zip(self.found, self.passed_over, self.stored, held, strict=True)
        return np.array([device, *([self.asked, *row] for row in further)], dtype="i8")

    def check(self) -> None:
        for tier in self.tiers:
            tier.check()
