"""The KV-cache block allocator: block tables, reference counts, prefix cache.

PagedAttention (Kwon et al., SOSP 2023, section 4) stores keys and values in blocks of
``block_size`` tokens. A sequence's *block table* lists its blocks in order; blocks are taken from
the head of one free queue. With the prefix cache on, a full block carries the hash of all tokens up
to its last one. It comes back to the queue's end and keeps that hash until the queue hands it out
again: the queue is thus the cache's least-recently-used order. What holds nothing that could be
found again comes back to the queue's head (vLLM's `BlockPool.free_blocks`).

A long prompt has thousands of blocks, and most of them share their fate: they are computed, found,
given back and evicted together. So everything here takes many blocks at once, what is known of a
block lies in dicts and sets, and a chain is known by its ends: a table gives back its last block
first, so wherever a block can be found again, so can all that come before it. `keeps_prefixes` says
whether that holds.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import repeat, takewhile
from operator import is_not
from typing import Any

from sim.conservation import hold
from sim.kv.tables import TableRule
from sim.request import Request

# What a block is found by: the hash of its content; with several tables a sequence, whose besides.
Key = int | tuple[int, int]

_NUMBERS: list[int] = []
_is_something = partial(is_not, None)
_AT_ONCE = 1024  # blocks that go into the queue when it is out of such as have been in use


def block_numbers(start: int, stop: int) -> list[int]:
    """`start` to `stop` - 1, the same int objects for all allocators.

    Sixty-four replicas with numbers of their own would drive each other's out of the CPU's cache.
    """
    _NUMBERS.extend(range(len(_NUMBERS), stop))
    return _NUMBERS[start:stop]


class BlockAllocator:
    """Hands out KV blocks; a table is a plain ``list[int]`` of block numbers.

    Invariants (`check`): free + used = all; a used block's reference count equals the number of
    tables that hold it.
    """

    rules: tuple[TableRule, ...] = ()  # of the tables of a sequence; none: one, and nothing special
    growing_tables = 1  # that every token of a sequence is written to
    lengthening_tables = 1  # that take a block when a sequence begins one
    gives_back_early = False  # whether a sequence gives up blocks before it ends
    keeps_prefixes = True  # whether of what can be found again all can that comes before it

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = False) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"a KV cache needs at least one block of one token, not {num_blocks} x {block_size}"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        # Whether a match's last block is computed again all the same, for the hidden states that a
        # draft head needs and no cache has (vLLM with EAGLE and MTP).
        self.drops_last_match = False
        self.num_free = num_blocks
        # A queue as a list and the position of its head: slices of many blocks cost one call. Of
        # thousands of replicas most never use all their blocks: from `_unused` on they are in no
        # list yet, and what comes back meanwhile is queued behind them.
        self._queue: list[int] = []
        self._head = 0
        self._unused = 0
        self._returned: list[int] = []  # the queue itself, once all have been in use
        self._compact_at = num_blocks // 4 + 1024  # soon, so that the queue stays near the CPU
        # Blocks taken out of the queue's middle leave a dead entry, counted here.
        self._dead: dict[int, int] = {}
        self._references: dict[int, int] = {}  # only of blocks in more than one table
        self.shared_blocks = 0  # table entries beyond each block's first
        self._hash_of: dict[int, Key] = {}
        self._block_of: dict[Key, int] = {}
        self._twins: dict[Key, list[int]] = {}  # further blocks with the same content
        self._idle: set[int] = set()  # cached blocks that no table holds

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    def fits(self, count: int) -> bool:
        """Whether so many blocks can be handed out at once."""
        return count <= self.num_free

    def could_fit(self, count: int) -> bool:
        """Whether `fits` would say yes if nothing were in use."""
        return count <= self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def filled(self, num_tokens: int) -> list[int]:
        """Tokens in each block of a sequence of `num_tokens` tokens, e.g. 9 tokens: 4, 4, 1."""
        full, rest = divmod(num_tokens, self.block_size)
        return [self.block_size] * full + ([rest] if rest else [])

    def most_blocks(self, num_tokens: int) -> int:
        """Blocks that a sequence holds when it has the most of them, if it ends with so many."""
        return -(-num_tokens // self.block_size)

    def stored_slots(self, stored_tokens: int) -> int:
        """Slots that hold something for sequences of so many tokens in all, shared ones each."""
        return stored_tokens

    def blocks_to_begin(
        self, hits: Sequence[int], known_tokens: int, num_tokens: int, *, bounded: bool = True
    ) -> int:
        """Free blocks that a sequence takes that begins with `hits` and has `num_tokens`."""
        blocks = -(-num_tokens // self.block_size)
        return blocks - len(hits) + self.num_idle(hits) if hits else blocks

    def blocks_to_grow(self, table: list[int], num_tokens: int) -> int:
        """Blocks that `grow` takes."""
        return self.blocks_for(num_tokens) - len(table)

    # -- taking and giving back -------------------------------------------------------------

    def take(self, count: int) -> list[int]:
        """`count` blocks from the head of the free queue; their old content is forgotten."""
        assert count <= self.num_free, "the scheduler asked for more blocks than are free"
        head = self._head
        if head + count > len(self._queue) and self._returned is not self._queue:
            self._lengthen(head + count - len(self._queue))
        blocks = self._queue[head : head + count]
        if self._dead and not self._dead.keys().isdisjoint(blocks):
            blocks = self._take_live(count)
        else:
            self._head = head + count
        if self._idle and not self._idle.isdisjoint(blocks):
            self._evict(blocks)
        self.num_free -= count
        if self._head > self._compact_at:
            del self._queue[: self._head]
            self._head = 0
        return blocks

    def allocate(self, table: list[int], count: int) -> None:
        """Append `count` fresh blocks to `table`."""
        if count > 0:
            table += self.take(count)

    def grow(self, table: list[int], num_tokens: int) -> None:
        """Let a table hold `num_tokens` tokens; it may be long enough already."""
        count = -(-num_tokens // self.block_size) - len(table)
        if count > 0:
            table += self.take(count)

    def adopt(self, request: Request, hits: Sequence[int], known_tokens: int) -> None:
        """A sequence begins with cached blocks, `known_tokens` of it being there or coming."""
        self.reuse(request.block_table, hits)

    def free(self, table: list[int], num_tokens: int | None = None) -> None:
        """Give back all blocks of `table`, last first, so that a prefix outlives its tail.

        Those that its first `num_tokens` tokens fill may be found again; None: all may.
        """
        if self._hash_of and num_tokens is not None:
            full = num_tokens // self.block_size
            self._put_first(self._released(table[full:]))
            del table[full:]
        blocks = self._released(table)
        if self._hash_of:
            # Most often all of them, or none of the last ones.
            last = next((at for at, block in enumerate(blocks) if block in self._hash_of), None)
            if last is not None:
                cached = blocks[last:]
                if not self.keeps_prefixes:
                    cached = list(filter(self._hash_of.__contains__, cached))
                self._idle.update(cached)
        self._returned += blocks
        self.num_free += len(blocks)
        table.clear()

    def _released(self, table: list[int]) -> list[int]:
        """Those of a table that no other holds, last first."""
        references = self._references
        if not references:
            return table[::-1]
        # What is shared is a prefix, most often.
        shared = list(takewhile(references.__contains__, table))
        own = table[len(shared) :]
        if not references.keys().isdisjoint(own):
            shared += filter(references.__contains__, own)
            own = [block for block in own if block not in references]
        if shared:
            self._unshare(shared)
        own.reverse()
        return own

    def _put_first(self, blocks: list[int]) -> None:
        """Let these be handed out next. They were taken from the head: no dead entries are left."""
        head, count = self._head, len(blocks)
        if head >= count:
            self._head = head - count
            self._queue[head - count : head] = blocks
        else:
            self._queue[head:head] = blocks
        self.num_free += count

    def _lengthen(self, count: int) -> None:
        """Queue at least `count` blocks that have never been in use, or all that there are."""
        start, queue = self._unused, self._queue
        self._unused = min(start + max(count, _AT_ONCE), self.num_blocks)
        queue += block_numbers(start, self._unused)
        if self._unused == self.num_blocks:
            queue += self._returned
            self._returned = queue

    def _take_live(self, count: int) -> list[int]:
        blocks: list[int] = []
        while len(blocks) < count:
            if self._head == len(self._queue):
                self._lengthen(1)
            block = self._queue[self._head]
            self._head += 1
            dead = self._dead.get(block, 0)
            if not dead:
                blocks.append(block)
            elif dead == 1:
                del self._dead[block]
            else:
                self._dead[block] = dead - 1
        return blocks

    def _unshare(self, blocks: Sequence[int]) -> None:
        """A table lets go of blocks that several hold."""
        counts = list(map(self._references.pop, blocks))
        self.shared_blocks -= len(counts)
        if counts.count(2) < len(counts):
            pairs = zip(blocks, counts, strict=True)
            self._references.update({block: count - 1 for block, count in pairs if count > 2})

    def _add_references(self, blocks: Sequence[int]) -> None:
        references = self._references
        if references.keys().isdisjoint(blocks):
            references.update(dict.fromkeys(blocks, 2))
        else:
            for block in blocks:
                references[block] = references.get(block, 1) + 1
        self.shared_blocks += len(blocks)

    # -- sharing ----------------------------------------------------------------------------

    def fork(self, table: Sequence[int]) -> list[int]:
        """A second table over the same blocks (parallel samples of one prompt)."""
        self._add_references(table)
        return list(table)

    def share(self, table: list[int], blocks: Iterable[int]) -> None:
        """Append blocks that other tables hold."""
        blocks = list(blocks)
        self._add_references(blocks)
        table += blocks

    def references(self, block: int) -> int:
        """How many tables hold a block in use."""
        return self._references.get(block, 1)

    def write(self, table: list[int], position: int) -> tuple[int, int] | None:
        """Make the block at `position` of `table` private before it is written to.

        Returns ``(source, target)``, the copy that the engine has to make, or None when the block
        was private already (copy-on-write, PagedAttention section 4.4).
        """
        source = table[position]
        if source not in self._references:
            return None
        (target,) = self.take(1)
        self._unshare((source,))
        table[position] = target
        if source in self._hash_of:
            self.keeps_prefixes = False  # those behind it may be cached, the copy is not
        return source, target

    # -- prefix cache -----------------------------------------------------------------------

    def at(self, now_s: float) -> None:
        """It is that late: what is found elsewhere than on the device may depend on it."""

    def cached(self, hashes: Iterable[int]) -> list[int]:
        """The blocks of the longest cached prefix of a chain of block hashes."""
        found = map(self._block_of.get, hashes)
        return list(takewhile(_is_something, found))  # type: ignore[arg-type]

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of these cached blocks no table holds: using them again costs a free block."""
        return len(self._idle.intersection(blocks))

    def idle_blocks(self) -> tuple[int, ...]:
        """Free blocks that still hold what the prefix cache may find, in order of their numbers."""
        return tuple(sorted(self._idle))

    def reuse(self, table: list[int], blocks: Iterable[int]) -> None:
        """Append cached blocks to `table`."""
        blocks = list(blocks)
        idle = self._idle.intersection(blocks)
        if idle:
            self._idle -= idle
            self.num_free -= len(idle)
            dead = self._dead
            if dead.keys().isdisjoint(idle):
                dead.update(dict.fromkeys(idle, 1))
            else:
                for block in idle:
                    dead[block] = dead.get(block, 0) + 1
        if len(idle) < len(blocks):
            held = [block for block in blocks if block not in idle] if idle else blocks
            self._add_references(held)
        table += blocks

    def cache(self, blocks: Sequence[int], hashes: Sequence[Key]) -> None:
        """Remember that blocks in use are full and what they hold.

        What is known of one already stands.
        """
        hash_of, block_of = self._hash_of, self._block_of
        if not blocks:
            return
        ends = self.keeps_prefixes
        if blocks[0] in hash_of if ends else not hash_of.keys().isdisjoint(blocks):
            new = [number for number, block in enumerate(blocks) if block not in hash_of]
            if not new:
                return
            blocks, hashes = [blocks[each] for each in new], [hashes[each] for each in new]
        hash_of.update(zip(blocks, hashes, strict=True))
        if hashes[0] not in block_of if ends else block_of.keys().isdisjoint(hashes):
            block_of.update(zip(hashes, blocks, strict=True))
            return
        for block, block_hash in zip(blocks, hashes, strict=True):
            if block_of.setdefault(block_hash, block) != block:
                self._twins.setdefault(block_hash, []).append(block)

    def cache_prompt(self, request: Request, first_token: int, last_token: int) -> None:
        """Publish the prompt blocks that are filled by tokens `first_token` to `last_token`."""
        start = first_token // self.block_size
        stop = min(last_token // self.block_size, len(request.block_hashes))
        if start < stop:
            table = request.block_table
            if start and table[start - 1] not in self._hash_of:
                self.keeps_prefixes = False  # what came back from the host is published no more
            self.cache(table[start:stop], request.block_hashes[start:stop])

    def cache_all(self, request: Request, num_tokens: int) -> None:
        """Publish every block that the first `num_tokens` tokens of a request fill.

        Blocks behind the known prompt content can only be found again by the request itself, so
        they carry a hash of its own and are published no sooner than that can matter, which is when
        it is preempted.
        """
        full = num_tokens // self.block_size
        self.cache(request.block_table[:full], [request.block_hash(at) for at in range(full)])

    def cached_prefix(self, request: Request) -> list[int]:
        """Cached blocks that `request` may use; at least its last token is always computed."""
        if not self.prefix_caching or not (request.block_hashes or request.preemptions):
            return []
        limit = (request.num_tokens - 1) // self.block_size
        blocks = self._found(request, limit)
        return blocks[:-1] if self.drops_last_match else blocks

    def _found(self, request: Request, limit: int) -> list[int]:
        known = request.block_hashes[:limit]
        blocks = self.cached(known)
        if request.preemptions and len(blocks) == len(known):
            own = (request.block_hash(position) for position in range(len(known), limit))
            blocks += self.cached(own)
        return blocks

    def forget_all(self) -> None:
        """The prefix cache is empty."""
        self._forget(list(self._hash_of))

    def forget(self, table: Sequence[int]) -> None:
        """What these blocks hold is not to be found again (it turned out to be wrong)."""
        self.keeps_prefixes = False  # others may have gone on from them
        self._forget(list(table))

    def _evict(self, blocks: list[int]) -> None:
        """Blocks, some of them cached, are about to be handed out for something else."""
        self._forget(blocks)

    def _forget(self, blocks: list[int]) -> None:
        """What is known of these is known no more; of some nothing may be."""
        self._idle.difference_update(blocks)
        known = len(self._hash_of)
        hashes: list[Any] = list(map(self._hash_of.pop, blocks, repeat(None)))
        if known - len(self._hash_of) < len(blocks):
            pairs = zip(blocks, hashes, strict=True)
            blocks = [block for block, block_hash in pairs if block_hash is not None]
            hashes = [block_hash for block_hash in hashes if block_hash is not None]
        if not self._twins or self._twins.keys().isdisjoint(hashes):
            deque(map(self._block_of.pop, hashes), maxlen=0)
            return
        for block, block_hash in zip(blocks, hashes, strict=True):
            twins = self._twins.get(block_hash)
            if twins is None:
                del self._block_of[block_hash]
                continue
            if self._block_of[block_hash] == block:
                self._block_of[block_hash] = twins.pop(0)
            else:
                twins.remove(block)
            if not twins:
                del self._twins[block_hash]

    # -- conservation -----------------------------------------------------------------------

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Count all blocks; raises ConservationError when one is lost, doubled or miscounted.

        `tables` are all tables in use.
        """
        held = Counter(block for table in tables for block in table)
        dead = dict(self._dead)
        free: list[int] = []
        queue = self._queue[self._head :]
        if self._returned is not self._queue:
            queue += [*block_numbers(self._unused, self.num_blocks), *self._returned]
        for block in queue:
            if dead.get(block, 0):
                dead[block] -= 1
            else:
                free.append(block)
        hold(not any(dead.values()), "dead queue entries miscounted")
        hold(len(free) == len(set(free)) == self.num_free, "a block is free twice or lost")
        hold(not held.keys() & set(free), "a block is both free and used")
        hold(len(held) + len(free) == self.num_blocks, "free + used blocks != all blocks")
        shared = {block: count for block, count in held.items() if count > 1}
        hold(shared == self._references, "reference counts differ from the tables")
        hold(sum(shared.values()) - len(shared) == self.shared_blocks)
        hold(self._idle == self._hash_of.keys() & set(free), "idle cached blocks miscounted")
        listed = Counter(self._block_of.values())
        listed.update(block for twins in self._twins.values() for block in twins)
        hold(listed == Counter(self._hash_of.keys()), "prefix cache and hashes disagree")
