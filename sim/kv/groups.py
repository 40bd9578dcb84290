"""A KV cache of several groups of layers: a table for each, one pool of blocks for all.

vLLM's `HybridKVCacheCoordinator` and its managers of one type each. A cached prefix is as long as
all groups have it: full attention needs every block of it, a sliding window the last ones that it
looks at, a chunk those since it began. What one group has less of, the others are asked for again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sim.conservation import hold
from sim.kv.cache import BlockAllocator, Key
from sim.kv.tables import NULL, Hits, TableRule, Tables
from sim.request import Request


class GroupedAllocator(BlockAllocator):
    """A `BlockAllocator` whose sequences have a table for each of several groups of layers."""

    keeps_prefixes = False  # a window gives back what comes first

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        rules: Sequence[TableRule],
        *,
        prefix_caching: bool = False,
        in_flight_tokens: int = 1 << 40,
        max_model_len: int = 1 << 40,
    ) -> None:
        """`in_flight_tokens`: that may be computed before windows give blocks back.

        Raises ValueError where a chunk is no whole number of blocks, where a state's table comes
        before a longer one, and for a prefix cache beside states that are not kept for it.
        """
        super().__init__(num_blocks, block_size, prefix_caching=prefix_caching)
        self.rules = tuple(rules)
        if not rules[0].lengthens and any(rule.lengthens for rule in rules):
            raise ValueError("the first table has to be one that grows, where any does")
        for rule in rules:
            if rule.kind == "chunked" and rule.window % block_size:
                raise ValueError(
                    f"chunks of {rule.window} tokens are no whole number of blocks of {block_size}"
                )
        if prefix_caching and not all(rule.lengthens for rule in rules):
            raise ValueError("a state is not cached: no prefix is found again beside one")
        self.growing_tables = sum(rule.tables for rule in rules if rule.grows)
        self.gives_back_early = any(rule.gives_back for rule in rules)
        # Those that take a block when a sequence begins one.
        self.lengthening_tables = sum(rule.tables for rule in rules if rule.lengthens)
        self.skipped = 0  # entries that are `NULL`, of tables that grow
        self._state_tables = [
            rule.tables * (1 if rule.lengthens else rule.state_blocks)
            for rule in rules
            if not rule.grows
        ]
        self._states = 0  # blocks of sequences' latest states
        self.longest_found = 0  # blocks that one group at least has of what was looked for last
        # What states were kept of in this step: others find them in the next.
        self._fresh: set[Key] = set()
        self.is_fresh = True  # whether what is published now was computed in this step
        # Blocks in the tables of each rule, once for each table: now, and when there were most.
        self._held = [0] * len(rules)
        self.most_held = [0] * len(rules)
        self._in_flight_tokens = in_flight_tokens
        self._max_model_len = max_model_len
        ends = [sum(rule.tables for rule in rules[: number + 1]) for number in range(len(rules))]
        self._rows = [range(end - rule.tables, end) for end, rule in zip(ends, rules, strict=True)]
        # Full attention first: what it has is found from the left, and bounds what others look for.
        self._order = sorted(range(len(rules)), key=lambda number: rules[number].kind != "full")

    # -- how many blocks ----------------------------------------------------------------------

    def most_blocks(self, num_tokens: int) -> int:
        size, in_flight = self.block_size, self._in_flight_tokens
        return sum(
            rule.most_blocks(num_tokens, size, in_flight) * rule.tables for rule in self.rules
        )

    def stored_slots(self, stored_tokens: int) -> int:
        held = self.growing_tables * stored_tokens
        return held + (self._states - self.skipped) * self.block_size

    def blocks_to_begin(
        self, hits: Sequence[int], known_tokens: int, num_tokens: int, *, bounded: bool = True
    ) -> int:
        """Free blocks that a sequence takes which begins with `known_tokens` and has `num_tokens`.

        `bounded`: no more than windows ever hold, since they give back as the sequence is computed.
        """
        size, blocks = self.block_size, 0
        if hits and self._fresh and self._ends_in_fresh_state(hits):
            return self.num_blocks + 1
        for rule, rows in zip(self.rules, self._rows, strict=True):
            needed = rule.blocks_for(num_tokens, size)
            if bounded and rule.gives_back and rule.grows:
                most = rule.most_blocks(self._max_model_len, size, self._in_flight_tokens)
                needed = min(needed, most)
            skipped = rule.skipped_blocks(known_tokens, size)
            new = max(needed - max(skipped, len(hits) if rule.lengthens else 0), 0)
            blocks += (min(new, 1) if rule.kind == "checkpoint" else new) * rule.tables
            if hits:
                assert isinstance(hits, Hits)
                blocks += sum(self.num_idle(hits.rows[row][skipped:]) for row in rows)
        return blocks

    def blocks_to_grow(self, table: list[int], num_tokens: int) -> int:
        blocks = self.blocks_for(num_tokens) - len(table)
        if blocks <= 0:
            return 0
        return blocks * self.growing_tables + self.lengthening_tables - self.growing_tables

    def begin_step(self) -> None:
        """What was computed in the step before can be found."""
        self._fresh.clear()

    def _ends_in_fresh_state(self, hits: Sequence[int]) -> bool:
        assert isinstance(hits, Hits)
        for rule, rows in zip(self.rules, self._rows, strict=True):
            if rule.kind == "checkpoint":
                for row in rows:
                    if self._hash_of.get(hits.rows[row][-1]) in self._fresh:
                        return True
        return False

    # -- taking and giving back ---------------------------------------------------------------

    def adopt(self, request: Request, hits: Sequence[int], known_tokens: int) -> None:
        tables = Tables(sum(rule.tables for rule in self.rules), len(self.rules))
        request.block_table = tables
        every = tables.rows()
        for number, (rule, rows) in enumerate(zip(self.rules, self._rows, strict=True)):
            skipped = rule.skipped_blocks(known_tokens, self.block_size)
            tables.starts[number] = skipped
            if rule.grows:
                self.skipped += skipped * rule.tables
            elif hits:
                self._keep_state(tables)
            for row in rows:
                every[row] += [NULL] * skipped
                if hits:
                    assert isinstance(hits, Hits)
                    found = hits.rows[row][skipped:]
                    self.reuse(every[row], found)
                    self._hold(number, len(found))

    def _keep_state(self, tables: Tables) -> None:
        if not tables.has_states:
            tables.has_states = True
            self._states += sum(self._state_tables)

    def _hold(self, number: int, blocks: int) -> None:
        """So many more in the tables of a rule."""
        self._held[number] = held = self._held[number] + blocks
        if held > self.most_held[number]:
            self.most_held[number] = held

    def grow(self, table: list[int], num_tokens: int) -> None:
        assert isinstance(table, Tables)
        every, size = table.rows(), self.block_size
        for number, (rule, rows) in enumerate(zip(self.rules, self._rows, strict=True)):
            length = rule.blocks_for(num_tokens, size)
            if not rule.grows:
                self._keep_state(table)
            for row in rows:
                blocks = length - len(every[row])
                if blocks > 1 and rule.kind == "checkpoint":  # only where the step ends
                    every[row] += [NULL] * (blocks - 1)
                    blocks = 1
                if blocks > 0:
                    every[row] += self.take(blocks)
                    self._hold(number, blocks)

    def give_back(self, request: Request, computed_tokens: int) -> int:
        """Blocks behind the windows of a sequence with so many tokens come free; returns how many.

        They can be found again until they are handed out for something else. States that are not
        read any more come free with them, and are not counted.
        """
        tables = request.block_table
        assert isinstance(tables, Tables)
        blocks = 0
        for number, (rule, rows) in enumerate(zip(self.rules, self._rows, strict=True)):
            if not rule.gives_back:
                continue
            start = tables.starts[number]
            end = min(rule.skipped_blocks(computed_tokens, self.block_size), len(tables))
            if end <= start:
                continue
            tables.starts[number] = end
            every = tables.rows()
            for row in rows:
                self._cache_row(request, row, every[row], start, end)
                given = [block for block in every[row][start:end] if block != NULL]
                self._held[number] -= len(given)
                super().free(given)
                every[row][start:end] = [NULL] * (end - start)
            if rule.grows:
                blocks += (end - start) * rule.tables
        self.skipped += blocks
        return blocks

    def gives_back_shared(self, request: Request, computed_tokens: int) -> bool:
        """Whether others hold a block that would be given back with so many tokens."""
        tables = request.block_table
        assert isinstance(tables, Tables)
        every = tables.rows()
        for start, rule, rows in zip(tables.starts, self.rules, self._rows, strict=True):
            end = rule.skipped_blocks(computed_tokens, self.block_size)
            for row in rows:
                if any(block in self._references for block in every[row][start:end]):
                    return True
        return False

    def free(self, table: list[int], num_tokens: int | None = None) -> None:
        if not isinstance(table, Tables):
            assert not table, "a table that nobody made"
            return
        every, size = table.rows(), self.block_size
        for number, (rule, rows) in enumerate(zip(self.rules, self._rows, strict=True)):
            start, full = table.starts[number], None
            if num_tokens is not None:
                full = num_tokens // size if rule.lengthens else 0
            for row in rows:
                held = [block for block in every[row][start:] if block != NULL]
                found = full
                if full is not None:
                    found = sum(block != NULL for block in every[row][start:full]) * size
                self._held[number] -= len(held)
                super().free(held, found)
                every[row].clear()
            if rule.grows:
                self.skipped -= start * rule.tables
        table.starts = [0] * len(self.rules)
        if table.has_states:
            table.has_states = False
            self._states -= sum(self._state_tables)

    # -- prefix cache -------------------------------------------------------------------------

    def _cache_row(
        self, request: Request, row: int, table: Sequence[int], start: int, end: int
    ) -> None:
        if self.prefix_caching:
            kept = [at for at in range(start, min(end, len(table))) if table[at] != NULL]
            keys = [_key(request.block_hash(position), row) for position in kept]
            self.cache([table[position] for position in kept], keys)

    def note_fresh(self, request: Request, position: int) -> None:
        """The state after this block counts as computed in this step, if there is one."""
        tables = request.block_table
        assert isinstance(tables, Tables)
        every = tables.rows()
        for rule, rows in zip(self.rules, self._rows, strict=True):
            if rule.kind == "checkpoint":
                for row in rows:
                    key = self._hash_of.get(every[row][position])
                    if key is not None:
                        self._fresh.add(key)

    def cache_prompt(self, request: Request, first_token: int, last_token: int) -> None:
        stop = min(last_token // self.block_size, len(request.block_hashes))
        self._cache_rows(request, first_token // self.block_size, stop)
        if self.is_fresh and 0 < stop == last_token / self.block_size:
            self.note_fresh(request, stop - 1)

    def cache_all(self, request: Request, num_tokens: int) -> None:
        self._cache_rows(request, 0, num_tokens // self.block_size)

    def _cache_rows(self, request: Request, start: int, end: int) -> None:
        tables = request.block_table
        assert isinstance(tables, Tables)
        for row, table in enumerate(tables.rows()):
            self._cache_row(request, row, table, start, end)

    def cached(self, hashes: Iterable[int]) -> list[int]:
        known = list(hashes)
        return self._longest(known, len(known))

    def _found(self, request: Request, limit: int) -> list[int]:
        full = request.num_tokens // self.block_size
        hashes = list(request.block_hashes[:full])
        if request.preemptions:
            hashes += [request.block_hash(position) for position in range(len(hashes), full)]
        return self._longest(hashes, min(limit, len(hashes)))

    def cached_prefix(self, request: Request) -> list[int]:
        if not self.prefix_caching or not (request.block_hashes or request.preemptions):
            return []
        return self._found(request, (request.num_tokens - 1) // self.block_size)

    def _longest(self, hashes: Sequence[int], limit: int) -> list[int]:
        """The longest prefix of at most `limit` blocks that all groups have."""
        found: dict[int, list[list[int]]] = {}
        lengths: dict[int, int] = {}
        dropped: set[int] = set()  # who has been asked for a block more than that at this length
        alone = len(self.rules) == 1
        length, longest = limit, 0
        while True:
            current = length
            for number in self._order:
                if self.rules[number].kind == "full" and number in found:
                    current = min(current, lengths[number])
                    continue
                drops = self.drops_last_match and number not in dropped
                keeps = not drops or self.rules[number].kind == "checkpoint"
                most = current if alone or keeps else min(current + 1, len(hashes))
                rows, blocks = self._match(number, hashes, most, drops=not keeps)
                if drops:
                    dropped.add(number)
                elif blocks < current:
                    dropped.clear()
                found[number], lengths[number] = rows, blocks
                current = blocks
                longest = max(longest, current)
            if current >= length:
                break
            length = current
        self.longest_found = longest
        if not length or not hashes:
            return []
        return Hits([row[:length] for number in range(len(self.rules)) for row in found[number]])

    def _match(
        self, number: int, hashes: Sequence[int], most: int, *, drops: bool
    ) -> tuple[list[list[int]], int]:
        """Blocks of each table of a rule for the longest prefix that it has, and its length."""
        rule = self.rules[number]
        if rule.kind in ("sliding", "checkpoint"):
            return self._match_window(number, hashes, most, drops=drops)
        start = rule.skipped_blocks(most * self.block_size, self.block_size)
        rows = [[NULL] * start for _ in self._rows[number]]
        for position in range(start, most):
            blocks = self._blocks_of(number, hashes[position])
            if blocks is None:
                break
            for row, block in zip(rows, blocks, strict=True):
                row.append(block)
        length = len(rows[0])
        return rows, max(length - 1, 0) if drops else length

    def _match_window(
        self, number: int, hashes: Sequence[int], most: int, *, drops: bool
    ) -> tuple[list[list[int]], int]:
        """From the right: as many blocks in a row as the window looks at, or all from the first.

        Of a state it is the last.
        """
        window = self.rules[number].window if self.rules[number].grows else 2
        needed = -(-(window - 1) // self.block_size) + drops
        rows = [[NULL] * most for _ in self._rows[number]]
        count, length = 0, -1
        for position in range(most - 1, -1, -1):
            blocks = self._blocks_of(number, hashes[position])
            if blocks is None:
                count = 0
                continue
            for row, block in zip(rows, blocks, strict=True):
                row[position] = block
            count += 1
            if count >= needed:
                length = position + count
                break
        if length < 0:
            length = count
        return rows, max(length - 1, 0) if drops else length

    def _blocks_of(self, number: int, block_hash: int) -> list[int] | None:
        """The blocks with this content, one in each table of a rule; None where one is missing."""
        blocks = []
        for row in self._rows[number]:
            block = self._block_of.get(_key(block_hash, row))
            if block is None:
                return None
            blocks.append(block)
        return blocks

    # -- conservation -------------------------------------------------------------------------

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        every = [table for table in tables if isinstance(table, Tables)]
        super().check([list(table.held()) for table in every])
        skipped = states = 0
        for table in every:
            rows_of = table.rows()
            for start, rule, rows in zip(table.starts, self.rules, self._rows, strict=True):
                for row in rows:
                    kept = rows_of[row]
                    nulls = kept[:start].count(NULL)
                    hold(nulls == start, rule)
                    if rule.grows:
                        hold(kept.count(NULL) == start, rule)
                        skipped += nulls
            states += sum(self._state_tables) * table.has_states
        hold(skipped == self.skipped, "blocks that were given back miscounted")
        hold(states == self._states, "a state is lost")
        hold(sum(self._held) == sum(len(list(table.held())) for table in every))


def _key(block_hash: int, row: int) -> Key:
    """What a block of one of the tables is found by."""
    return (block_hash, row) if row else block_hash
