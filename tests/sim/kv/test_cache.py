"""The block allocator: block tables, sharing, prefix cache, conservation."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.kv.cache import BlockAllocator
from sim.request import Request


def a_request(index: int = 0, hashes: list[int] | None = None, tokens: int = 64) -> Request:
    return Request(index, 0.0, tokens, 8, 8, block_hashes=hashes or [])


def test_alan_turing_fills_blocks_of_four_one_after_the_other() -> None:
    allocator = BlockAllocator(8, 4)
    table: list[int] = []
    prompt = ["Alan", "Turing", "is", "a", "computer", "scientist"]
    allocator.allocate(table, allocator.blocks_for(len(prompt)))
    assert allocator.filled(len(prompt)) == [4, 2]
    for count, _word in enumerate(["and", "mathematician", "renowned"], start=len(prompt) + 1):
        allocator.allocate(table, allocator.blocks_for(count) - len(table))
    assert len(table) == 3
    assert allocator.filled(9) == [4, 4, 1]
    allocator.check([table])


def test_blocks_come_back_last_first_so_that_a_prefix_outlives_its_tail() -> None:
    allocator = BlockAllocator(4, 16, prefix_caching=True)
    request = a_request(hashes=[11, 12, 13])
    allocator.allocate(request.block_table, 3)
    allocator.cache_prompt(request, 0, 48)
    allocator.free(request.block_table)
    taken: list[int] = []
    allocator.allocate(taken, 2)  # the fourth block, then the tail of the prompt
    assert len(allocator.cached([11, 12, 13])) == 2
    allocator.check([taken])


def test_a_shared_block_is_freed_with_its_last_table() -> None:
    allocator = BlockAllocator(4, 16)
    first: list[int] = []
    allocator.allocate(first, 2)
    second = allocator.fork(first)
    allocator.check([first, second])
    allocator.free(first)
    assert allocator.num_free == 2
    allocator.check([second])
    allocator.free(second)
    assert allocator.num_free == 4


def test_writing_to_a_shared_block_copies_exactly_that_block() -> None:
    allocator = BlockAllocator(5, 16)
    first: list[int] = []
    allocator.allocate(first, 2)
    second = allocator.fork(first)
    before = list(first)
    copied = allocator.write(second, 1)
    assert copied is not None and copied[0] == before[1] and copied[1] == second[1]
    assert first == before and second[0] == first[0] and second[1] != first[1]
    assert allocator.write(second, 1) is None  # private by now
    allocator.check([first, second])


def test_a_cached_prefix_is_found_until_its_blocks_are_taken_for_something_else() -> None:
    allocator = BlockAllocator(4, 16, prefix_caching=True)
    request = a_request(hashes=[1, 2, 3, 4])
    allocator.allocate(request.block_table, 4)
    allocator.cache_prompt(request, 0, 64)
    allocator.free(request.block_table)
    again = a_request(1, hashes=[1, 2, 3, 4])
    hits = allocator.cached_prefix(again)
    assert len(hits) == 3, "the last token is always computed"
    assert allocator.num_idle(hits) == 3
    allocator.reuse(again.block_table, hits)
    allocator.check([again.block_table])
    other: list[int] = []
    allocator.allocate(other, 1)
    assert allocator.cached([1, 2, 3, 4]) == again.block_table
    allocator.free(again.block_table)
    allocator.allocate(other, 3)
    assert allocator.cached([1]) == []
    allocator.check([other])


def test_a_twin_of_a_cached_block_takes_over_when_the_first_is_evicted() -> None:
    allocator = BlockAllocator(3, 16, prefix_caching=True)
    first, second = a_request(0, hashes=[7], tokens=16), a_request(1, hashes=[7], tokens=16)
    for request in (first, second):
        allocator.allocate(request.block_table, 1)
        allocator.cache_prompt(request, 0, 16)
    twin = second.block_table[0]
    allocator.free(first.block_table)
    taken: list[int] = []
    allocator.allocate(taken, 2)
    assert allocator.cached([7]) == [twin]
    allocator.check([second.block_table, taken])


def test_a_preempted_request_finds_its_own_blocks_again_and_nobody_else_does() -> None:
    allocator = BlockAllocator(8, 4, prefix_caching=True)
    request = a_request(tokens=10)
    allocator.allocate(request.block_table, 3)
    request.num_computed_tokens = 10
    allocator.cache_all(request, request.num_computed_tokens)
    allocator.free(request.block_table)
    request.preemptions = 1
    assert len(allocator.cached_prefix(request)) == 2
    stranger = a_request(1, tokens=10)
    stranger.preemptions = 1
    assert allocator.cached_prefix(stranger) == []


def test_a_copy_amid_cached_blocks_is_no_cached_block() -> None:
    allocator = BlockAllocator(5, 4, prefix_caching=True)
    first, second = a_request(0, hashes=[0, 1], tokens=9), a_request(1, hashes=[0], tokens=5)
    allocator.allocate(first.block_table, 3)
    allocator.cache_prompt(first, 0, 9)
    allocator.reuse(second.block_table, allocator.cached_prefix(second))
    assert allocator.write(first.block_table, 0) == (0, 3)
    allocator.free(first.block_table)
    allocator.check([second.block_table])
    assert allocator.idle_blocks() == (1,)


def test_check_notices_a_lost_and_a_doubled_block() -> None:
    allocator = BlockAllocator(4, 16)
    table: list[int] = []
    allocator.allocate(table, 2)
    with pytest.raises(AssertionError):
        allocator.check([])
    with pytest.raises(AssertionError):
        allocator.check([table, table[:1]])


def test_an_allocator_needs_blocks() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        BlockAllocator(0, 16)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_sequence_of_operations_loses_a_block(data: st.DataObject) -> None:
    allocator = BlockAllocator(data.draw(st.integers(1, 12)), 4, prefix_caching=True)
    tables: list[Request] = []
    for number in range(data.draw(st.integers(1, 40))):
        action = data.draw(st.sampled_from(["new", "grow", "free", "fork", "write", "preempt"]))
        if action == "new":
            depth = data.draw(st.integers(0, 3))
            hashes = [10 * depth + i for i in range(data.draw(st.integers(0, 3)))]
            request = a_request(number, hashes=hashes, tokens=4 * len(hashes) + 1)
            hits = allocator.cached_prefix(request)
            fresh = allocator.blocks_for(request.prompt_tokens) - len(hits)
            if fresh + allocator.num_idle(hits) > allocator.num_free:
                continue
            allocator.reuse(request.block_table, hits)
            allocator.allocate(request.block_table, fresh)
            allocator.cache_prompt(request, 4 * len(hits), request.prompt_tokens)
            request.num_computed_tokens = request.prompt_tokens
            tables.append(request)
        elif tables:
            request = data.draw(st.sampled_from(tables))
            if action == "grow" and allocator.num_free:
                allocator.allocate(request.block_table, 1)
            elif action == "free":
                allocator.free(request.block_table)
                tables.remove(request)
            elif action == "preempt":
                allocator.cache_all(request, request.num_computed_tokens)
                allocator.free(request.block_table)
                tables.remove(request)
            elif action == "fork":
                copy = a_request(1000 + number, hashes=request.block_hashes)
                copy.block_table = allocator.fork(request.block_table)
                tables.append(copy)
            elif action == "write" and allocator.num_free and request.block_table:
                position = data.draw(st.integers(0, len(request.block_table) - 1))
                allocator.write(request.block_table, position)
        allocator.check([request.block_table for request in tables])


def test_blocks_come_back_behind_those_that_were_never_in_use() -> None:
    allocator = BlockAllocator(3000, 1)
    table: list[int] = []
    allocator.allocate(table, 700)
    allocator.free(table)
    handed_out = allocator.take(2950)
    assert handed_out == [*range(700, 3000), *range(699, 49, -1)]
    assert allocator.num_free == 50
    allocator.check([handed_out])
