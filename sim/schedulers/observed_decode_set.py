"""Sequences whose drafts a real model verifies: how many it accepts is known when it has.

The same questions as `SpeculativeDecodeSet` answers, and the same answers wherever the same was
accepted. There a request's whole way is drawn when it joins; here every member has its next
verification only, and what came of it is told (`observe`) before the set advances.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sim.batch import Verification
from sim.decode_set import DecodeSet
from sim.request import Emission, Request
from sim.speculation.acceptance import ObservedAcceptance
from sim.speculation.speculation import DraftShape


@dataclass(slots=True)
class _Next:
    """A member's next verification; nothing is accepted before it is observed."""

    query_tokens: int
    drafted: int
    accepted: int = 0
    emitted: int = 1


class ObservedDecodeSet(DecodeSet):
    """The running sequences past their prefill, speculating; their counters are always current."""

    def __init__(
        self,
        observed: ObservedAcceptance,
        shape: DraftShape,
        block_size: int,
        *,
        track_longest: bool = False,
        max_model_len: int,
        reserves: bool = False,
    ) -> None:
        """`reserves`: blocks are set aside at admission, so that nobody needs one later."""
        super().__init__(block_size, track_longest=track_longest)
        self._observed = observed
        self._shape = shape
        self._max_model_len = max_model_len
        self._reserves = reserves
        self._members: dict[Request, _Next] = {}
        self._computed_tokens = 0
        self._query_tokens = 0

    def fresh(self) -> ObservedDecodeSet:
        """An empty set of the same kind."""
        return ObservedDecodeSet(
            self._observed,
            self._shape,
            self._block_size,
            track_longest=self.tracks_longest,
            max_model_len=self._max_model_len,
            reserves=self._reserves,
        )

    def __contains__(self, request: Request) -> bool:
        return request in self._members

    # -- the next iteration -----------------------------------------------------------------

    @property
    def query_tokens(self) -> int:
        """Tokens that the members verify in the next iteration."""
        return self._query_tokens

    @property
    def context_tokens(self) -> int:
        """Sum over members of the tokens attended to in the next iteration."""
        return self._computed_tokens + self._query_tokens

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
        longest = max((one.num_computed_tokens for one in self._members), default=None)
        return 0 if longest is None else longest + self._shape.query_tokens

    def stored_of(self, request: Request) -> int:
        return request.num_computed_tokens

    def verification(self) -> Verification:
        """What the next iteration verifies, and what is known of its success."""
        found = Verification(query_tokens=self._query_tokens)
        found.per_sequence = {}
        for request, one in self._members.items():
            found.per_sequence[request] = one.query_tokens
            found.drafted += one.drafted
            found.accepted += one.accepted
            found.emitted += one.emitted
        return found

    def observe(self, request: Request, accepted: int, emitted: int, *, ends: bool = False) -> None:
        """What came of a member's verification: drafts accepted, tokens handed out.

        `ends`: the last of these turned out to be the answer's last (an end-of-sequence token).
        """
        one = self._members[request]
        assert 0 <= accepted < one.query_tokens and 1 <= emitted <= accepted + 1
        one.accepted, one.emitted = accepted, emitted
        if ends:
            self._final_tokens -= request.final_tokens
            request.output_tokens = request.num_generated_tokens + emitted
            self._final_tokens += request.final_tokens

    def needing_block(self) -> Collection[Request]:
        """Members that write to a new block in the next iteration, once for every block."""
        if self._reserves:
            return ()
        return [one for one in self._members for _ in range(self.needs_block(one))]

    def needs_block(self, request: Request) -> int:
        """New blocks that this member needs in the next iteration."""
        if self._reserves:
            return 0
        fewer = self._shape.query_tokens - self._members[request].query_tokens
        slots = request.num_computed_tokens + self._shape.slots - fewer
        blocks = -(-min(slots, self._max_model_len) // self._block_size)
        return max(blocks - len(request.block_table), 0)

    def members(self) -> list[Request]:
        """All members, in the order in which they joined."""
        return list(self._members)

    def members_at(self, tokens: int, ahead: int) -> Collection[Request]:
        """All: they advance unevenly."""
        return self._members

    def steps_to_next_ending(self) -> int:
        """No decision holds for more than one iteration."""
        return 1 if self.num_seqs else 0

    # -- joining and leaving ----------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Let a request that has its first token, or will by then, decode from the next step."""
        request.joined_step = self.step
        self.num_seqs += 1
        self.changes += 1
        self._members[request] = planned = self._plan(request)
        self._query_tokens += planned.query_tokens
        self._computed_tokens += request.num_computed_tokens
        self._final_tokens += request.final_tokens
        assert request.last_token is not None
        self.emissions[request.last_token] = self.emissions.get(request.last_token, 0) + 1

    def _plan(self, request: Request) -> _Next:
        if not self._observed.has_draft(request):
            return _Next(1, 0)
        return _Next(self._shape.query_tokens, self._shape.drafted_tokens)

    def limit(self, request: Request, tokens: int) -> int:
        """Let a member verify at most `tokens` query tokens in the next iteration.

        A chain gives up its last drafts, any other draft is given up whole. Returns how many it
        verifies.
        """
        planned = self._members[request]
        if planned.query_tokens <= tokens:
            return planned.query_tokens
        kept = tokens if self._shape.is_chain else 1
        self.remove(request)
        self.add(request)
        self._query_tokens += kept - self._members[request].query_tokens
        self._members[request] = _Next(kept, min(self._shape.drafted_tokens, kept - 1))
        return kept

    def remove(self, request: Request) -> None:
        """Take a member out before its end (preempted, or left out of one iteration)."""
        if self.step > request.joined_step:
            self._left[request] = self._token_before(request, self.step)
        self.sync(request)
        self._leave(request)
        assert request.last_token is not None
        self.emissions[request.last_token] -= 1
        request.joined_step = -1

    def sync(self, request: Request) -> None:
        """Bring a member's own counters up to date with the set's step."""
        if self.step > request.joined_step:
            request.last_token = self._emission

    def advance(self, iterations: int, emission: Emission) -> list[Request]:
        """Pass one iteration, `emission` is its; returns who ended, in order."""
        assert iterations == 1, "who speculates advances unevenly: no leaps"
        self._left.clear()
        self._before, self._emission = self._emission, emission
        self.step += 1
        ended = []
        for request, one in self._members.items():
            request.num_computed_tokens += one.emitted
            request.num_generated_tokens += one.emitted
            self._computed_tokens += one.emitted
            if request.num_generated_tokens == request.output_tokens:
                ended.append(request)
                continue
            planned = self._plan(request)
            self._query_tokens += planned.query_tokens - one.query_tokens
            self._members[request] = planned
        for request in ended:
            self._left[request] = self._token_before(request, self.step)
            self._leave(request)
            request.last_token = emission
            request.joined_step = -1
        self.emissions = {emission: self.num_seqs} if self.num_seqs else {}
        return ended

    def _leave(self, request: Request) -> None:
        self.num_seqs -= 1
        self.changes += 1
        self._query_tokens -= self._members.pop(request).query_tokens
        self._computed_tokens -= request.num_computed_tokens
        self._final_tokens -= request.final_tokens
