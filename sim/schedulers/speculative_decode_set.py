"""Sequences that decode by speculation: each advances by as many tokens as are accepted.

The same questions as `sim.decode_set.DecodeSet` answers, at a cost that grows as little with the
batch. How many tokens each verification of a request accepts is drawn when it joins, so its whole
way to its end is known: when it ends, when it needs blocks, what it adds to every sum. All that is
entered in a calendar once; an iteration only reads its own day. Whoever leaves early (preempted,
held back, given fewer tokens) has the rest of its way taken out again.

    slots of a member     = num_computed_tokens + query tokens + lookahead slots

Rejected tokens' slots stay with their sequence and are written again by the next iteration.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from sim.batch import Verification
from sim.decode_set import DecodeSet
from sim.request import Emission, Request
from sim.speculation.speculation import Speculation

# Rows of the calendar: sums over the members that verify on that day.
_EMITTED, _ACCEPTED, _DRAFTED, _FEWER = range(4)
_REVIEW_STEPS = 64  # how often the sequences that may become the longest are picked anew


@dataclass(slots=True)
class _Way:
    """One member's drawn verifications, and those of its present stay."""

    accepted: np.ndarray  # i8[all verifications it can ever need]
    has_draft: np.ndarray | None
    done: int = 0  # verifications of earlier stays
    ends: np.ndarray | None = None  # i8[steps]: tokens emitted since it joined, step by step
    sums: np.ndarray | None = None  # i8[4, steps]: what it adds to the calendar
    block_steps: tuple[int, ...] = ()
    computed_tokens: int = 0  # when it joined
    generated_tokens: int = 0


class SpeculativeDecodeSet(DecodeSet):
    """The running sequences past their prefill, under speculative decoding; never leapt over."""

    def __init__(
        self,
        speculation: Speculation,
        block_size: int,
        *,
        track_longest: bool = False,
        max_model_len: int,
        reserves: bool = False,
    ) -> None:
        """`reserves`: blocks are set aside at admission, so that nobody needs one later."""
        super().__init__(block_size, track_longest=track_longest)
        self._speculation = speculation
        self._shape = speculation.shape
        self._max_model_len = max_model_len
        self._reserves = reserves
        self._computed_tokens = 0
        self._ways: dict[Request, _Way] = {}
        self._members: dict[Request, None] = {}
        self._ends: dict[int, dict[Request, None]] = {}
        self._needs: dict[int, dict[Request, int]] = {}
        self._calendar = np.zeros((4, 256), dtype=np.int64)
        self._first_step = 0  # of the calendar
        self._near_longest: list[Request] = []
        self._review_step = 0

    def fresh(self) -> SpeculativeDecodeSet:
        """An empty set of the same kind; what has been drawn for a request goes with it."""
        fresh = SpeculativeDecodeSet(
            self._speculation,
            self._block_size,
            track_longest=self.tracks_longest,
            max_model_len=self._max_model_len,
            reserves=self._reserves,
        )
        fresh._ways = self._ways
        return fresh

    def __contains__(self, request: Request) -> bool:
        return request in self._members

    # -- the next iteration -----------------------------------------------------------------

    @property
    def query_tokens(self) -> int:
        """Tokens that the members verify in the next iteration."""
        fewer = int(self._calendar[_FEWER, self.step - self._first_step])
        return self.num_seqs * self._shape.query_tokens - fewer

    @property
    def context_tokens(self) -> int:
        """Sum over members of the tokens attended to in the next iteration."""
        return self._computed_tokens + self.query_tokens

    @property
    def stored_tokens(self) -> int:
        """Tokens in the cache now; rejected ones do not count."""
        return self._computed_tokens

    @property
    def unwritten_tokens(self) -> int:
        """Tokens that the members will still add to the cache before they end."""
        return self._final_tokens - self._computed_tokens

    @property
    def longest_tokens(self) -> int:
        """The longest context of the next iteration; 0 when nobody decodes."""
        if not self.num_seqs:
            return 0
        if self.step >= self._review_step:
            self._pick_longest()
        return max(map(self.stored_of, self._near_longest)) + self._shape.query_tokens

    def verification(self) -> Verification:
        """What the next iteration verifies and, drawn beforehand, with which success."""
        emitted, accepted, drafted, fewer = self._calendar[:, self.step - self._first_step].tolist()
        return Verification(
            query_tokens=self.num_seqs * self._shape.query_tokens - fewer,
            drafted=drafted,
            accepted=accepted,
            emitted=emitted,
        )

    def needing_block(self) -> Collection[Request]:
        """Members that write to a new block in the next iteration, once for every block."""
        needs = self._needs.get(self.step)
        if not needs:
            return ()
        return [request for request, blocks in needs.items() for _ in range(blocks)]

    def needs_block(self, request: Request) -> int:
        """New blocks that this member needs in the next iteration."""
        return self._needs.get(self.step, {}).get(request, 0)

    def members(self) -> list[Request]:
        """All members, in the order in which they joined."""
        return list(self._members)

    def steps_to_next_ending(self) -> int:
        """No decision holds for more than one iteration."""
        return 1 if self.num_seqs else 0

    # -- joining and leaving ----------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Let a request that has its first token, or will by then, decode from the next step."""
        self._join(request, self._shape.query_tokens)

    def limit(self, request: Request, tokens: int) -> int:
        """Let a member verify at most `tokens` query tokens in the next iteration.

        As vLLM does when the token budget runs out: a chain gives up its last drafts, any other
        draft is given up whole. Returns how many it verifies.
        """
        way = self._ways[request]
        assert way.sums is not None
        full = self._shape.query_tokens
        planned = full - int(way.sums[_FEWER, self.step - request.joined_step])
        if planned <= tokens:
            return planned
        kept = tokens if self._shape.is_chain else 1
        self.remove(request)
        self._join(request, kept)
        return kept

    def remove(self, request: Request) -> None:
        """Take a member out before its end (preempted, or left out of one iteration)."""
        passed = self.step - request.joined_step
        if passed:
            self._left[request] = self._token_before(request, self.step)
        self.sync(request)
        way = self._ways[request]
        assert way.ends is not None
        del self._ends[request.joined_step + len(way.ends)][request]
        self._enter(request.joined_step, way, passed, sign=-1)
        for step in way.block_steps:
            if step >= self.step:
                del self._needs[step][request]
        way.done += passed
        self._leave(request)
        assert request.last_token is not None
        self.emissions[request.last_token] -= 1
        request.joined_step = -1

    def sync(self, request: Request) -> None:
        """Bring a member's own counters up to date with the set's step."""
        passed = self.step - request.joined_step
        if passed:
            way = self._ways[request]
            assert way.ends is not None
            emitted = int(way.ends[passed - 1])
            request.num_computed_tokens = way.computed_tokens + emitted
            request.num_generated_tokens = way.generated_tokens + emitted
            request.last_token = self._emission

    def advance(self, iterations: int, emission: Emission) -> list[Request]:
        """Pass one iteration, `emission` is its; returns who ended, in order."""
        assert iterations == 1, "who speculates advances unevenly: no leaps"
        day = self.step - self._first_step
        self._computed_tokens += int(self._calendar[_EMITTED, day])
        self._needs.pop(self.step, None)
        self._left.clear()
        self._before, self._emission = self._emission, emission
        self.step += 1
        if day + 1 == self._calendar.shape[1]:
            self._make_room(1)
        ended = list(self._ends.pop(self.step, ()))
        for request in ended:
            self._left[request] = self._token_before(request, self.step)
            request.num_computed_tokens = request.final_tokens
            request.num_generated_tokens = request.output_tokens
            request.last_token = emission
            self._leave(request)
            request.joined_step = -1
            del self._ways[request]
        self.emissions = {emission: self.num_seqs} if self.num_seqs else {}
        return ended

    def lose(self) -> None:
        super().lose()
        self._ways.clear()  # whoever comes back begins anew

    # -- the calendar -----------------------------------------------------------------------

    def _join(self, request: Request, first_tokens: int) -> None:
        remaining = request.output_tokens - request.num_generated_tokens
        way = self._ways.get(request)
        if way is None:
            drawn = self._speculation.acceptance.draw(request.index, remaining)
            way = self._ways[request] = _Way(*drawn)
        self._plan(request, way, first_tokens)
        assert way.ends is not None
        request.joined_step = self.step
        self.num_seqs += 1
        self._members[request] = None
        self._computed_tokens += request.num_computed_tokens
        self._final_tokens += request.final_tokens
        self._ends.setdefault(self.step + len(way.ends), {})[request] = None
        self._enter(self.step, way, 0, sign=1)
        assert request.last_token is not None
        self.emissions[request.last_token] = self.emissions.get(request.last_token, 0) + 1
        self._review_step = self.step

    def _plan(self, request: Request, way: _Way, first_tokens: int) -> None:
        """Lay out a member's stay from here to its last token."""
        shape = self._shape
        remaining = request.output_tokens - request.num_generated_tokens
        accepted = way.accepted[way.done : way.done + remaining]
        if first_tokens < shape.query_tokens:
            accepted = accepted.copy()
            accepted[0] = min(accepted[0], first_tokens - 1)
        ends = np.cumsum(accepted + 1)
        steps = int(np.searchsorted(ends, remaining)) + 1
        ends = ends[:steps]
        ends[-1] = remaining  # what is accepted beyond the answer's end is thrown away
        sums = np.zeros((4, steps), dtype=np.int64)
        sums[_EMITTED] = ends
        sums[_EMITTED, 1:] -= ends[:-1]
        sums[_ACCEPTED] = accepted[:steps]
        sums[_DRAFTED] = shape.drafted_tokens
        if way.has_draft is not None:
            without = ~way.has_draft[way.done : way.done + steps]
            sums[_DRAFTED, without] = 0
            sums[_FEWER, without] = shape.query_tokens - 1
        if first_tokens < shape.query_tokens and sums[_DRAFTED, 0]:
            sums[_DRAFTED, 0] = min(shape.drafted_tokens, first_tokens - 1)
            sums[_FEWER, 0] = shape.query_tokens - first_tokens
        way.ends, way.sums = ends, sums
        way.computed_tokens = request.num_computed_tokens
        way.generated_tokens = request.num_generated_tokens
        way.block_steps = () if self._reserves else self._plan_blocks(request, sums)

    def _plan_blocks(self, request: Request, sums: np.ndarray) -> tuple[int, ...]:
        """Enter the blocks a member will need beyond those it has; returns when."""
        before = np.cumsum(sums[_EMITTED]) - sums[_EMITTED]
        slots = request.num_computed_tokens + before + self._shape.slots - sums[_FEWER]
        blocks = -(-np.minimum(slots, self._max_model_len) // self._block_size)
        held = np.maximum.accumulate(np.maximum(blocks, len(request.block_table)))
        new = held.copy()
        new[1:] -= held[:-1]
        new[0] -= len(request.block_table)
        found = np.flatnonzero(new)
        steps = tuple((found + self.step).tolist())
        for step, count in zip(steps, new[found].tolist(), strict=True):
            self._needs.setdefault(step, {})[request] = count
        return steps

    def _enter(self, joined_step: int, way: _Way, passed: int, *, sign: int) -> None:
        """Add what a member's steps from number `passed` on contribute, or take it out again."""
        assert way.sums is not None
        start = joined_step + passed - self._first_step
        rest = way.sums[:, passed:]
        if start + rest.shape[1] >= self._calendar.shape[1]:
            self._make_room(rest.shape[1])
            start = joined_step + passed - self._first_step
        if sign > 0:
            self._calendar[:, start : start + rest.shape[1]] += rest
        else:
            self._calendar[:, start : start + rest.shape[1]] -= rest

    def _make_room(self, steps: int) -> None:
        """Drop the days gone by, and have at least `steps` and one to come."""
        ahead = self._calendar[:, self.step - self._first_step :]
        fresh = np.zeros((4, 2 * max(ahead.shape[1], steps + 1, 128)), dtype=np.int64)
        fresh[:, : ahead.shape[1]] = ahead
        self._calendar = fresh
        self._first_step = self.step

    def _leave(self, request: Request) -> None:
        self.num_seqs -= 1
        del self._members[request]
        self._computed_tokens -= request.num_computed_tokens
        self._final_tokens -= request.final_tokens
        self._review_step = self.step

    # -- the longest ------------------------------------------------------------------------

    def stored_of(self, request: Request) -> int:
        way, passed = self._ways[request], self.step - request.joined_step
        assert way.ends is not None
        return way.computed_tokens + (int(way.ends[passed - 1]) if passed else 0)

    def stored_before(self, request: Request, iterations: int) -> int:
        way, passed = self._ways[request], self.step - request.joined_step - iterations
        assert way.ends is not None
        if passed < 0:  # it has been given fewer tokens since: no fewer than that
            return max(way.computed_tokens - self._shape.query_tokens, 0)
        return way.computed_tokens + (int(way.ends[passed - 1]) if passed else 0)

    def members_at(self, tokens: int, ahead: int) -> Collection[Request]:
        """All: they advance unevenly."""
        return self._members

    def _pick_longest(self) -> None:
        """Those that can be the longest before the next review: nobody else can catch up."""
        stored = {request: self.stored_of(request) for request in self._members}
        reach = max(stored.values()) - _REVIEW_STEPS * self._shape.depth
        self._near_longest = [request for request, tokens in stored.items() if tokens >= reach]
        self._review_step = self.step + _REVIEW_STEPS
