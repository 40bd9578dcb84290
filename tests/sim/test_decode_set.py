"""The set of decoding sequences against a plain list that counts every token of everyone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sim.decode_set import DecodeSet
from sim.request import Emission, Request


def request(index: int, *, computed: int, output: int, generated: int = 1) -> Request:
    """A request past its prefill: its latest token is out and not yet in the cache."""
    prompt = computed + 1 - generated
    made = Request(index, 0.0, prompt, output, output)
    made.num_computed_tokens, made.num_generated_tokens = computed, generated
    made.last_token = Emission(0.0)
    return made


@dataclass
class Member:
    """What the plain model knows of a member."""

    request: Request
    stored: int
    left: int
    last_s: float

    @property
    def context(self) -> int:
        return self.stored + 1


class AgainstPlainList(RuleBasedStateMachine):
    @initialize(block_size=st.integers(1, 5))
    def begin(self, block_size: int) -> None:
        self.block_size = block_size
        self.set = DecodeSet(block_size, track_longest=True)
        self.members: list[Member] = []
        self.away: list[Member] = []
        self.count = 0
        self.now_s = 0.0

    @rule(
        computed=st.integers(1, 20),
        left=st.integers(1, 9),
        generated=st.integers(1, 3),
        late_s=st.sampled_from([0.0, 0.5]),
    )
    def join(self, computed: int, left: int, generated: int, late_s: float) -> None:
        generated = min(generated, computed)
        new = request(self.count, computed=computed, output=generated + left, generated=generated)
        self.count += 1
        new.last_token = Emission(self.now_s - late_s)
        self.set.add(new)
        self.members.append(Member(new, computed, left, self.now_s - late_s))

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(self.members), label="who")
        self.members.remove(member)
        self.away.append(member)
        self.set.remove(member.request)
        left = member.request
        assert left.joined_step == -1
        assert left.num_computed_tokens == member.stored
        assert left.output_tokens - left.num_generated_tokens == member.left
        assert left.last_token_s == member.last_s

    @precondition(lambda self: self.away)
    @rule(data=st.data(), recomputed=st.integers(0, 2))
    def come_back(self, data: st.DataObject, recomputed: int) -> None:
        """Swapped in again, or recomputed: with as many tokens, or some more, as before."""
        member = data.draw(st.sampled_from(self.away), label="who")
        self.away.remove(member)
        recomputed = min(recomputed, member.left - 1)
        member.stored += recomputed
        member.left -= recomputed
        member.request.num_computed_tokens += recomputed
        member.request.num_generated_tokens += recomputed
        member.last_s = self.now_s
        member.request.last_token = Emission(self.now_s)
        self.set.add(member.request)
        self.members.append(member)

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def advance(self, data: st.DataObject) -> None:
        longest = min(member.left for member in self.members)
        assert self.set.steps_to_next_ending() == longest
        steps = data.draw(st.integers(1, longest), label="iterations")
        self.now_s += 0.25 * steps
        ended = self.set.advance(steps, Emission(self.now_s))
        for member in self.members:
            member.stored += steps
            member.left -= steps
            member.last_s = self.now_s
        expected = {member.request.index for member in self.members if not member.left}
        assert {one.index for one in ended} == expected
        for one in ended:
            assert one.num_generated_tokens == one.output_tokens
            assert one.num_computed_tokens == one.final_tokens
            assert (one.joined_step, one.last_token_s) == (-1, self.now_s)
        self.members = [member for member in self.members if member.left]

    @precondition(lambda self: self.members)
    @rule(free=st.integers(0, 40), data=st.data())
    def look_ahead(self, free: int, data: st.DataObject) -> None:
        limit = data.draw(st.integers(1, min(member.left for member in self.members)))
        steps = self.set.steps_within(free, limit)
        assert 1 <= steps <= limit
        assert self.blocks_needed(steps) <= free
        if steps < limit:
            assert self.blocks_needed(steps + 1) > free
        added = dict.fromkeys(range(steps), 0)
        for ahead, members, times in self.set.crossings(steps):
            for again in range(times):
                added[ahead + again * self.block_size] += len(members)
        expected = {
            ahead: sum((member.stored + ahead) % self.block_size == 0 for member in self.members)
            for ahead in range(1, steps)
        }
        assert added == {0: 0, **expected}

    def blocks_needed(self, steps: int) -> int:
        """Blocks that the iterations after the next one, up to `steps`, begin."""
        return sum(
            (member.stored + ahead) % self.block_size == 0
            for member in self.members
            for ahead in range(1, steps)
        )

    @invariant()
    def sums_agree(self) -> None:
        contexts = [member.context for member in self.members]
        assert self.set.num_seqs == len(contexts)
        assert self.set.context_tokens == sum(contexts)
        assert self.set.longest_tokens == max(contexts, default=0)
        assert self.set.stored_tokens == sum(member.stored for member in self.members)
        assert self.set.unwritten_tokens == sum(
            member.request.final_tokens - member.stored for member in self.members
        )

    @invariant()
    def who_needs_a_block_agrees(self) -> None:
        crossing = {
            member.request.index for member in self.members if member.stored % self.block_size == 0
        }
        assert {one.index for one in self.set.needing_block()} == crossing
        for member in self.members:
            assert self.set.needs_block(member.request) == (member.request.index in crossing)

    @invariant()
    def emissions_agree(self) -> None:
        expected: dict[float, int] = {}
        for member in self.members:
            expected[member.last_s] = expected.get(member.last_s, 0) + 1
        found: dict[float, int] = {}
        for emission, count in self.set.emissions.items():
            if count:
                found[emission.at_s] = found.get(emission.at_s, 0) + count
        assert found == expected


def test_the_set_knows_what_a_list_of_sequences_knows() -> None:
    run_state_machine_as_test(
        AgainstPlainList, settings=settings(max_examples=120, stateful_step_count=30, deadline=None)
    )


def test_an_empty_set_waits_for_nobody() -> None:
    empty = DecodeSet(16)
    assert (empty.num_seqs, empty.context_tokens, empty.stored_tokens) == (0, 0, 0)
    assert empty.steps_to_next_ending() == 0
    assert not empty.needing_block()
    assert not empty.crossings(100)
    assert not empty.emissions


def test_a_member_that_fills_its_block_needs_the_next_one() -> None:
    decodes = DecodeSet(4)
    member = request(0, computed=7, output=20)
    decodes.add(member)
    assert not decodes.needs_block(member), "the eighth token still fits"
    decodes.advance(1, Emission(1.0))
    assert decodes.needs_block(member), "the ninth begins the third block"
    decodes.advance(1, Emission(2.0))
    assert not decodes.needs_block(member)


def test_going_past_an_end_is_a_mistake() -> None:
    decodes = DecodeSet(4)
    decodes.add(request(0, computed=7, output=3))
    with pytest.raises(AssertionError, match="past the end"):
        decodes.advance(3, Emission(1.0))


def test_who_ends_together_ends_in_order_of_joining() -> None:
    decodes = DecodeSet(4)
    for index, left in enumerate([3, 5, 3, 3]):
        decodes.add(request(index, computed=9, output=1 + left))
    assert [one.index for one in decodes.advance(3, Emission(1.0))] == [0, 2, 3]
    assert [one.index for one in decodes.advance(2, Emission(2.0))] == [1]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 17))
def test_without_free_blocks_a_run_lasts_until_the_first_block_boundary(
    stored: list[int], block_size: int
) -> None:
    decodes = DecodeSet(block_size)
    for index, tokens in enumerate(stored):
        decodes.add(request(index, computed=tokens, output=200))
    to_boundary = min(-(tokens + 1) % block_size + 1 for tokens in stored)
    assert decodes.steps_within(0, 199) == to_boundary
