"""Block tables by groups of layers: what is taken, given back, and found again."""

from collections.abc import Sequence

import pytest

from sim.kv.groups import GroupedAllocator
from sim.kv.tables import NULL, Hits, TableRule, Tables
from sim.request import Request

FULL, WINDOW = TableRule("full"), TableRule("sliding", 9, 2)


def allocator(*rules: TableRule, blocks: int = 100, caching: bool = True) -> GroupedAllocator:
    return GroupedAllocator(blocks, 4, rules, prefix_caching=caching)


def request(tokens: int, hashes: Sequence[int] | None = None, index: int = 0) -> Request:
    known = range(1000, 1000 + tokens // 4) if hashes is None else hashes
    return Request(index, 0.0, tokens, 10, 10, block_hashes=list(known))


def computed(cache: GroupedAllocator, tokens: int, *, step: int = 1000, index: int = 0) -> Request:
    """A request whose prompt was computed in steps, and which found nothing."""
    one = request(tokens, index=index)
    cache.adopt(one, [], 0)
    for start in range(0, tokens, step):
        cache.give_back(one, start)
        end = min(start + step, tokens)
        cache.grow(one.block_table, end)
        cache.cache_prompt(one, start, end)
    return one


def test_windows_give_back_what_no_further_token_looks_at() -> None:
    cache = allocator(FULL, WINDOW)
    one = computed(cache, 40)
    assert cache.num_free == 100 - 3 * 10
    assert cache.give_back(one, 40) == 2 * 8, "the next token looks at tokens 32 to 40"
    assert isinstance(one.block_table, Tables)
    full, *windows = one.block_table.rows()
    assert NULL not in full
    assert [row.count(NULL) for row in windows] == [8, 8]
    assert cache.num_free == 100 - 10 - 2 * 2
    cache.check([one.block_table])
    cache.free(one.block_table, 40)
    assert cache.num_free == 100
    cache.check([])


def test_a_chunk_is_given_back_as_a_whole() -> None:
    cache = allocator(TableRule("chunked", 16))
    one = computed(cache, 30)
    assert cache.give_back(one, 15) == 0
    assert cache.give_back(one, 30) == 4
    assert cache.give_back(one, 31) == 0


def test_a_prefix_is_as_long_as_all_groups_have_it() -> None:
    cache = allocator(FULL, WINDOW)
    cache.free(computed(cache, 40).block_table, 40)
    again = cache.cached_prefix(request(40, index=1))
    assert isinstance(again, Hits)
    assert len(again) == 9, "the last token is computed again"
    assert [row[:7] for row in again.rows[1:]] == [[NULL] * 7] * 2, "two blocks of a window do"
    for block in again.rows[2][7:]:
        cache.forget([block])
    shorter = cache.cached_prefix(request(40, index=1))
    assert len(shorter) == 7
    assert cache.blocks_to_begin(shorter, 28, 40) == 3 * 3 + 7 + 2 * 2


def test_a_state_is_found_where_it_was_kept() -> None:
    cache = allocator(FULL, TableRule("checkpoint", state_blocks=3))
    one = computed(cache, 44, step=20)
    assert isinstance(one.block_table, Tables)
    assert [block != NULL for block in one.block_table.further[0]] == [
        position in (9, 10) for position in range(11)
    ], "one is kept at the end of each step, and given back in the step after the next"
    same = request(44, index=1)
    cache.begin_step()
    hits = cache.cached_prefix(same)
    assert len(hits) == 10
    longer = cache.cached_prefix(request(36, index=2))
    assert len(longer) == 5, "the state after 20 tokens"
    assert cache.longest_found == 8
    cache.free(one.block_table, 44)
    assert cache.num_free == 100


def test_a_state_of_this_step_is_found_in_the_next() -> None:
    cache = allocator(FULL, TableRule("checkpoint", state_blocks=3))
    computed(cache, 40)
    hits = cache.cached_prefix(request(44, index=1))
    assert len(hits) == 10
    assert cache.blocks_to_begin(hits, 40, 44) > cache.num_blocks
    cache.begin_step()
    assert cache.blocks_to_begin(hits, 40, 44) == 2


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="no whole number of blocks"):
        allocator(TableRule("chunked", 18))
    with pytest.raises(ValueError, match="a state is not cached"):
        allocator(FULL, TableRule("state"))
    with pytest.raises(ValueError, match="first table"):
        allocator(TableRule("state"), FULL, caching=False)
