"""Sequences that decode in lockstep: one token each, every decode iteration.

Since all members advance together, nobody is touched until something happens to it. A counter of
iterations, the sum of contexts, a calendar of endings and the residue classes of block boundaries
say everything a scheduler asks, at a cost that does not grow with the batch:

    context of a member   = num_computed_tokens + 1 + (step - joined_step)
    it needs a new block  when num_computed_tokens + step - joined_step = 0 (mod block_size)
    it ends               after iteration joined_step + output_tokens - num_generated_tokens

Where the schedule does not know that a token was the last one, since it is still being computed,
the member takes part in one more iteration, whose token nobody gets.
"""

from __future__ import annotations

from collections.abc import Collection
from heapq import heapify, heappop, heappush

from sim.request import Emission, Request


class DecodeSet:
    """The running sequences past their prefill, as one thing that moves forward."""

    def __init__(self, block_size: int, *, track_longest: bool = False) -> None:
        """`track_longest` keeps `longest_tokens` known, for latency models that ask for it."""
        self.step = 0
        self.num_seqs = 0
        self.changes = 0  # of who is a member
        self._block_size = block_size
        self._context_offset = 0  # context_tokens = offset + step * num_seqs
        self._final_tokens = 0
        # Heap of (-context at step 0, number, member); who has left is dropped when it surfaces.
        self._longest: list[tuple[int, int, Request]] = []
        self.tracks_longest = track_longest
        self._endings: dict[int, list[Request]] = {}
        self._ending_steps: list[int] = []  # heap of the calendar's days
        self._crossing: list[dict[Request, None]] = [{} for _ in range(block_size)]
        self.overruns = False  # whether answers that end before their limit are found out late
        self.overrunning: list[Request] = []  # members that have their last token
        self._emission = Emission()  # of the latest iteration …
        self._before = self._emission  # … and of the one before it
        self._left: dict[Request, Emission | None] = {}  # who left since: their tokens before it
        # Of the members' latest tokens, and how many of them each.
        self.emissions: dict[Emission, int] = {}

    def fresh(self) -> DecodeSet:
        """An empty set of the same kind."""
        fresh = DecodeSet(self._block_size, track_longest=self.tracks_longest)
        fresh.overruns = self.overruns
        return fresh

    def __contains__(self, request: Request) -> bool:
        residue = (request.joined_step - request.num_computed_tokens) % self._block_size
        return request.joined_step >= 0 and request in self._crossing[residue]

    @property
    def query_tokens(self) -> int:
        """Tokens that the members compute in the next iteration: one each."""
        return self.num_seqs

    def limit(self, request: Request, tokens: int) -> int:
        """Tokens that this member computes in the next iteration when it may have `tokens`."""
        return 1

    @property
    def context_tokens(self) -> int:
        """Sum over members of the tokens attended to in the next iteration."""
        return self._context_offset + self.step * self.num_seqs

    @property
    def longest_tokens(self) -> int:
        """The longest context of the next iteration; 0 when nobody decodes, or nobody asked."""
        heap = self._longest
        while heap:
            if self._is_current(heap[0]):
                return self.step - heap[0][0]
            heappop(heap)
        return 0

    def _add_length(self, offset: int, request: Request) -> None:
        heap = self._longest
        heappush(heap, (-offset, request.index, request))
        if len(heap) > 4 * self.num_seqs + 64:
            self._longest = [entry for entry in heap if self._is_current(entry)]
            heapify(self._longest)

    @staticmethod
    def _is_current(entry: tuple[int, int, Request]) -> bool:
        offset, _, request = entry
        joined = request.joined_step
        return joined >= 0 and joined - request.num_computed_tokens - 1 == offset

    @property
    def stored_tokens(self) -> int:
        """Tokens in the cache now, before the next iteration writes its own."""
        return self.context_tokens - self.num_seqs

    def stored_of(self, request: Request) -> int:
        """This member's tokens in the cache now."""
        return request.num_computed_tokens + self.step - request.joined_step

    def stored_before(self, request: Request, iterations: int) -> int:
        """This member's tokens in the cache so many iterations ago; it was a member then."""
        return self.stored_of(request) - iterations

    def last_token_of(self, request: Request) -> Emission | None:
        """What the latest token of a request, in here or not, went out with."""
        advanced = request.joined_step >= 0 and self.step > request.joined_step
        return self._emission if advanced else request.last_token

    @property
    def unwritten_tokens(self) -> int:
        """Tokens that the members will still write to the cache before they end."""
        return self._final_tokens - self.stored_tokens

    def add(self, request: Request) -> None:
        """Let a request that has its first token, or will by then, decode from the next step."""
        step = self.step
        request.joined_step = step
        self.num_seqs += 1
        self.changes += 1
        offset = request.num_computed_tokens + 1 - step
        self._context_offset += offset
        if self.tracks_longest:
            self._add_length(offset, request)
        self._final_tokens += request.prompt_tokens + request.output_tokens - 1
        ending = step + request.output_tokens - request.num_generated_tokens
        day = self._endings.get(ending)
        if day is None:
            self._endings[ending] = [request]
            heappush(self._ending_steps, ending)
        else:
            day.append(request)
        self._crossing[(step - request.num_computed_tokens) % self._block_size][request] = None
        last = request.last_token
        assert last is not None
        self.emissions[last] = self.emissions.get(last, 0) + 1

    def add_overrunning(self, request: Request) -> None:
        """Let a request that has its last token decode once more."""
        self.add(request)
        assert request.last_token is not None
        self.emissions[request.last_token] -= 1
        today = self._endings[self.step]
        today.remove(request)
        if not today:  # the calendar begins with tomorrow
            del self._endings[heappop(self._ending_steps)]
        self.overrunning.append(request)

    def remove(self, request: Request) -> None:
        """Take a member out before its end (preempted, or left out of one iteration)."""
        if self.step > request.joined_step:
            self._left[request] = self._token_before(request, self.step)
        self.sync(request)
        if request in self.overrunning:
            self.overrunning.remove(request)
            self._leave(request)
            request.joined_step = -1
            return
        ending = self.step + request.output_tokens - request.num_generated_tokens
        self._endings[ending].remove(request)
        self._leave(request)
        assert request.last_token is not None
        self.emissions[request.last_token] -= 1
        request.joined_step = -1

    def end_next(self, request: Request) -> None:
        """The member turns out to end with the next iteration (an end-of-sequence token)."""
        self.remove(request)
        request.output_tokens = request.num_generated_tokens + 1
        self.add(request)

    def members(self) -> list[Request]:
        """All members; their order is the same whenever the same happened before."""
        return [request for residue in self._crossing for request in residue]

    def sync(self, request: Request) -> None:
        """Bring a member's own counters up to date with the set's step."""
        passed = self.step - request.joined_step
        if passed:
            request.num_computed_tokens += passed
            request.num_generated_tokens += passed
            request.joined_step = self.step
            request.last_token = self._emission

    def needing_block(self) -> Collection[Request]:
        """Members that write to a new block in the next iteration."""
        return self._crossing[self.step % self._block_size]

    def members_at(self, tokens: int, ahead: int) -> Collection[Request]:
        """Members that have `tokens`, modulo the block size, in the cache in `ahead` iterations."""
        return self._crossing[(self.step + ahead - tokens) % self._block_size]

    def crossings(self, iterations: int) -> list[tuple[int, Collection[Request], int]]:
        """Who needs blocks after the first of the next `iterations` iterations.

        As (ahead, members, times): these members need a block in the iteration `ahead` after the
        first, and again every block_size iterations, so many times in all.
        """
        size, step = self._block_size, self.step
        return [
            (ahead, members, (iterations - 1 - ahead) // size + 1)
            for ahead in range(1, min(iterations, size + 1))
            if (members := self._crossing[(step + ahead) % size])
        ]

    def needs_block(self, request: Request) -> int:
        """Whether this member writes to a new block in the next iteration."""
        return request in self._crossing[self.step % self._block_size]

    def steps_to_next_ending(self) -> int:
        """Iterations until a member ends, that one included; 0 when there is none."""
        if self.overrunning:
            return 1
        steps = self._ending_steps
        while steps and not self._endings[steps[0]]:
            del self._endings[heappop(steps)]
        return steps[0] - self.step if steps else 0

    def steps_within(self, free_blocks: int, limit: int) -> int:
        """Iterations, at most `limit`, until more than `free_blocks` further blocks are needed.

        The next iteration's own blocks are taken to be allocated already.
        """
        if free_blocks < 0:
            return 1
        if free_blocks >= self.num_seqs * -(-limit // self._block_size):
            return limit
        cycles = free_blocks // self.num_seqs  # every block_size steps each member needs one
        free_blocks -= cycles * self.num_seqs
        steps = cycles * self._block_size
        while steps < limit - 1:
            free_blocks -= len(self._crossing[(self.step + steps + 1) % self._block_size])
            if free_blocks < 0:
                break
            steps += 1
        return min(steps + 1, limit)

    def advance(self, iterations: int, emission: Emission) -> list[Request]:
        """Pass `iterations` iterations, `emission` the last one's.

        Returns who has the last token now, in order.
        """
        if self.overrunning:
            self.end_overrunning()
        if self._left:
            self._left.clear()
        self._before, self._emission = self._emission, emission
        self.step = step = self.step + iterations
        steps = self._ending_steps
        ended: list[Request] = []
        if steps and steps[0] <= step:
            assert steps[0] == step, "a run went past the end of a sequence"
            heappop(steps)
            ended = self._endings.pop(step)
            for request in ended:
                self._left[request] = self._token_before(request, step)
                if self.overruns and request.max_tokens > request.output_tokens:
                    self.sync(request)
                    self.overrunning.append(request)
                    continue
                self._leave(request)
                request.num_computed_tokens = request.prompt_tokens + request.output_tokens - 1
                request.num_generated_tokens = request.output_tokens
                request.joined_step = -1
                request.last_token = emission
        count = self.num_seqs - len(self.overrunning)
        self.emissions = {emission: count} if count else {}
        return ended

    def _token_before(self, request: Request, step: int) -> Emission | None:
        """The token of a member before that of the latest iteration, which ended with `step`."""
        return self._before if step - request.joined_step > 1 else request.last_token

    def undo(self) -> None:
        """The latest iteration never ends: nobody has a token of it. What is left is to `lose`."""
        for request, before in self._left.items():
            if request.last_token is self._emission:
                request.last_token = before
        self._emission = self._before
        self.step -= 1

    def lose(self) -> None:
        """All members are gone, with the tokens that they have had; the set is of no more use."""
        for request in self.members():
            if self.step > request.joined_step:
                request.last_token = self._emission
            request.joined_step = -1

    def end_overrunning(self) -> None:
        """Take those out that have their last token."""
        for request in self.overrunning:
            self._leave(request)
            request.joined_step = -1
        self.overrunning.clear()

    def _leave(self, request: Request) -> None:
        self.num_seqs -= 1
        self.changes += 1
        computed = request.num_computed_tokens
        self._context_offset -= computed + 1 - request.joined_step
        self._final_tokens -= request.prompt_tokens + request.output_tokens - 1
        del self._crossing[(request.joined_step - computed) % self._block_size][request]
