"""The speculative decode set against sequences that are advanced one by one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.request import Emission, Request
from sim.schedulers.speculative_decode_set import SpeculativeDecodeSet
from sim.speculation import DraftShape, Speculation
from sim.speculation.acceptance import RandomAcceptance, RecordedAcceptance

BLOCK_SIZE = 4


@dataclass
class Plain:
    """One sequence, advanced by the rules alone."""

    request: Request
    accepted: list[int]
    has_draft: list[bool]
    computed: int
    generated: int
    steps: int = 0
    blocks: int = 0
    limit: int | None = None
    emitted: list[int] = field(default_factory=list)

    def query_tokens(self, shape: DraftShape) -> int:
        full = shape.query_tokens if self.has_draft[self.steps] else 1
        return full if self.limit is None else min(full, self.limit)

    def verify(self, shape: DraftShape) -> int:
        accepted = min(self.accepted[self.steps], self.query_tokens(shape) - 1)
        emitted = min(accepted + 1, self.request.output_tokens - self.generated)
        self.steps += 1
        self.limit = None
        self.computed += emitted
        self.generated += emitted
        return emitted


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_calendar_says_what_one_by_one_says(data: st.DataObject) -> None:
    depth = data.draw(st.integers(1, 4))
    shape = data.draw(
        st.sampled_from(
            [
                DraftShape.chain(depth),
                DraftShape.chain(depth, lookahead_slots=depth),
                DraftShape.tree((2,) * depth),
            ]
        )
    )
    acceptance = RandomAcceptance(
        np.linspace(0.9, 0.3, depth),
        match_rate=data.draw(st.sampled_from([1.0, 0.5])),
        seed=data.draw(st.integers(0, 9)),
    )
    decodes = SpeculativeDecodeSet(
        Speculation("any", shape, acceptance), BLOCK_SIZE, track_longest=True, max_model_len=1000
    )
    inside: list[Plain] = []
    outside: list[Plain] = []
    number = 0
    for iteration in range(data.draw(st.integers(1, 60))):
        now_s = float(iteration)
        for _ in range(data.draw(st.integers(0, 2))):
            prompt, output = data.draw(st.integers(1, 9)), data.draw(st.integers(2, 40))
            request = Request(number, 0.0, prompt, output, output)
            request.num_computed_tokens, request.num_generated_tokens = prompt, 1
            accepted, drafted = acceptance.draw(number, output)
            has_draft = [True] * output if drafted is None else drafted.tolist()
            outside.append(Plain(request, accepted.tolist(), has_draft, prompt, 1))
            number += 1
        for plain in list(outside):
            if data.draw(st.booleans()):
                outside.remove(plain)
                inside.append(plain)
                plain.blocks = len(plain.request.block_table)
                plain.request.last_token = Emission(now_s)
                decodes.add(plain.request)
        for plain in list(inside):
            match data.draw(st.sampled_from(["stay"] * 6 + ["leave", "limit"])):
                case "leave":
                    decodes.remove(plain.request)
                    inside.remove(plain)
                    outside.append(plain)
                    assert plain.request.num_computed_tokens == plain.computed
                    assert plain.request.num_generated_tokens == plain.generated
                case "limit":
                    tokens = data.draw(st.integers(1, shape.query_tokens))
                    kept = decodes.limit(plain.request, tokens)
                    if kept < plain.query_tokens(shape):
                        plain.limit = kept
                    assert kept == plain.query_tokens(shape) <= tokens
        queries = [plain.query_tokens(shape) for plain in inside]
        stored = [plain.computed for plain in inside]
        assert decodes.num_seqs == len(inside)
        assert decodes.query_tokens == sum(queries)
        assert decodes.context_tokens == sum(stored) + sum(queries)
        assert decodes.stored_tokens == sum(stored)
        assert set(decodes.members()) == {plain.request for plain in inside}
        final = sum(plain.request.final_tokens for plain in inside)
        assert decodes.unwritten_tokens == final - sum(stored)
        longest = max(stored) + shape.query_tokens if stored else 0
        assert decodes.longest_tokens == longest
        needing = list(decodes.needing_block())
        for plain, tokens in zip(inside, queries, strict=True):
            slots = plain.computed + tokens + shape.lookahead_slots
            blocks = max(-(-slots // BLOCK_SIZE), plain.blocks)
            assert needing.count(plain.request) == blocks - plain.blocks
            assert decodes.needs_block(plain.request) == blocks - plain.blocks
            plain.request.block_table += [0] * (blocks - plain.blocks)
            plain.blocks = blocks
        verified = decodes.verification()
        expected = [
            min(plain.accepted[plain.steps], tokens - 1)
            for plain, tokens in zip(inside, queries, strict=True)
        ]
        emitted = [plain.verify(shape) for plain in inside]
        assert (verified.query_tokens, verified.emitted) == (sum(queries), sum(emitted))
        assert verified.accepted == sum(expected)
        ended = decodes.advance(1, Emission(now_s + 1))
        gone = [plain for plain in inside if plain.generated == plain.request.output_tokens]
        assert set(ended) == {plain.request for plain in gone}
        for plain in gone:
            assert plain.request.num_computed_tokens == plain.request.final_tokens
            inside.remove(plain)


def test_a_long_answer_outgrows_the_calendar() -> None:
    speculation = Speculation("any", DraftShape.chain(1), RecordedAcceptance((np.array([0]),)))
    decodes = SpeculativeDecodeSet(speculation, 16, max_model_len=10**6)
    for start, output in ((0, 3000), (700, 20), (2000, 5000)):
        while decodes.step < start:
            assert decodes.verification().emitted == decodes.num_seqs
            decodes.advance(1, Emission())
        request = Request(start, 0.0, 5, output, output)
        request.num_computed_tokens, request.num_generated_tokens = 5, 1
        request.last_token = Emission(0.0)
        decodes.add(request)
    while decodes.num_seqs:
        assert decodes.verification().emitted == decodes.num_seqs
        decodes.advance(1, Emission())
    assert decodes.step == 2000 + 4999
    assert decodes.context_tokens == decodes.query_tokens == 0


def test_blocks_are_never_needed_beyond_the_models_length() -> None:
    speculation = Speculation("any", DraftShape.chain(8), RecordedAcceptance((np.array([0]),)))
    decodes = SpeculativeDecodeSet(speculation, 4, max_model_len=16)
    request = Request(0, 0.0, 10, 6, 6)
    request.num_computed_tokens, request.num_generated_tokens = 10, 1
    request.block_table = [0, 1, 2]
    request.last_token = Emission(0.0)
    decodes.add(request)
    assert decodes.needs_block(request) == 1, "16 slots, not the 19 that eight drafts would take"
