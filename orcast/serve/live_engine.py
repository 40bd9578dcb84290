"""The simulated cluster on the wall clock: requests come as they come, tokens go out in their time.

Simulated time begins with the first request and runs `speed` times as fast as the wall's. What is
due is computed as soon as its time has come, never before, and waits for nothing but that: the
cluster, its schedulers and allocators are the simulator's own, iteration after iteration. However
late this machine is in computing what is due, simulated times do not change by it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from heapq import heappop, heappush
from math import inf, nextafter

from orcast.serve.answers import Answer, Choice, Prompt
from orcast.serve.errors import ApiError, queue_is_full, refused, waited_too_long
from orcast.serve.meters import Meters
from scenarios.forecast.live import LiveOptions, live_cluster
from sim.batch import Batch
from sim.cluster.plan import Failure
from sim.cluster.replica import ARRIVAL, ClusterReplica
from sim.engine.engine import Engine, Tokens
from sim.records import Records
from sim.request import SAMPLE_NUMBERS, Request
from sim.workload import Workload

_BEFORE_S = 1e-6  # time begins so long before the first request
_FORGET_S = 5.0  # how often what nobody will ask for is dropped


class LiveEngine:
    """Serves prompts on a simulated cluster, in real time."""

    def __init__(
        self, options: LiveOptions, *, model: str, speed: float = 1.0, cuts: bool = False,
        tells_due: bool = False,
    ) -> None:  # fmt: skip
        """`cuts`: whether the connections of a replica that fails are lost with it.

        `tells_due`: whether the events of streams say when their tokens were due.
        """
        self.cluster, self.source = live_cluster(options, listener=self)
        self.options, self.speed, self.cuts = options, speed, cuts
        self._tells_due = tells_due
        self.failures = list(options.failures)
        self.meters = Meters(
            self.cluster,
            model=model,
            longest=options.deployment.config.max_model_len,
            now_s=lambda: self.now_s,
        )
        self.settings_changed = False
        self._began_s: float | None = None  # on the wall clock
        self._stamped_s = 0.0
        self._choices: dict[Request, Choice] = {}
        self._prompts: dict[Request, Prompt] = {}
        self._outgoing: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._forgotten_s = time.monotonic()
        self._closed = False

    # -- time ---------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        """Simulated."""
        if self._began_s is None:
            return 0.0
        return (time.monotonic() - self._began_s) * self.speed

    def _turn(self) -> None:
        """Compute what is due, hand out what is, and come again."""
        now_s = self.now_s
        self.cluster.clock.advance(now_s)
        outgoing = self._outgoing
        while outgoing and outgoing[0][0] <= now_s:
            heappop(outgoing)[2]()
        if not self.options.keep and time.monotonic() - self._forgotten_s > _FORGET_S:
            self._forgotten_s = time.monotonic()
            for replica in self.cluster.replicas:
                replica.forget()
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due_s = self.cluster.clock.next_s
        if self._outgoing:
            due_s = min(due_s, self._outgoing[0][0])
        self._timer = None
        if due_s < inf and self._began_s is not None and not self._closed:
            left_s = self._began_s + due_s / self.speed - time.monotonic()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(left_s, 0.0), self._turn)

    def _stamp(self, came_s: float | None = None) -> float:
        """A simulated time for what happens now: later than all that has happened.

        Or for what came then, on the monotonic clock, as far as nothing has happened since.
        """
        came_s = time.monotonic() if came_s is None else came_s
        if self._began_s is None:
            self._began_s = came_s - _BEFORE_S
        at_s = (came_s - self._began_s) * self.speed
        self.cluster.clock.advance(at_s)
        latest_s = max(self._stamped_s, self.cluster.clock.now)
        self._stamped_s = at_s if at_s > latest_s else nextafter(latest_s, inf)
        return self._stamped_s

    # -- requests -----------------------------------------------------------------------------

    def check(self, prompt_tokens: int, output_tokens: Sequence[int], max_tokens: int) -> None:
        """ApiError where no replica could ever serve this."""
        longest = max(output_tokens)
        probe = Request(-1, 0.0, prompt_tokens, longest, max(longest, max_tokens))
        if not any(replica.scheduler.servable(probe) for replica in self.cluster.replicas):
            raise refused(
                f"the KV cache cannot hold {prompt_tokens} prompt tokens and {longest} output "
                "tokens as this scheduler reserves them"
            )

    def submit(
        self, prompt: Prompt, *, max_tokens: int, block_hashes: Sequence[int], label: str,
        came_s: float | None = None,
    ) -> float:  # fmt: skip
        """A prompt has arrived; returns when an engine has it (or has refused it), simulated.

        `came_s`: when, on the monotonic clock; reading it has taken time that is not simulated.
        """
        at_s = self._stamp(came_s)
        request = self.source.push(
            at_s,
            prompt_tokens=prompt.tokens,
            output_tokens=[choice.tokens for choice in prompt.choices],
            max_tokens=max_tokens,
            block_hashes=block_hashes,
            label=label,
        )
        prompt.request = request
        self._prompts[request] = prompt
        if len(prompt.choices) == 1:
            self._choices[request] = prompt.choices[0]
        self.cluster.expect_arrival()
        self.cluster.clock.advance(at_s)
        self._turn()
        return request.arrival_s

    async def reached(self, at_s: float) -> None:
        """Until that simulated time has passed."""
        while (left_s := at_s - self.now_s) > 0:
            await asyncio.sleep(left_s / self.speed)
        self._turn()

    def cancel(self, answer: Answer) -> None:
        """The client is gone: what it asked for ends, and its blocks are free."""
        for prompt in answer.prompts:
            if prompt.request is not None and not prompt.over:
                self._cancel(prompt.request, self._stamp())
        if not self._closed:
            self._turn()

    def _cancel(self, request: Request, at_s: float) -> None:
        self.source.leaves(request, at_s)
        self.cluster.clock.at(at_s, ARRIVAL, partial(self.cluster.cancel, request))
        self.cluster.clock.advance(at_s)

    def fail(self, replica: int, *, recover_after_s: float) -> None:
        """Let a replica fail now."""
        failure = Failure(replica, self._stamp(), recover_after_s)
        self.failures.append(failure)
        self.cluster.plan_failure(failure)
        self._turn()

    def close(self) -> tuple[Records, Workload] | None:
        """No more: what is unfinished is cancelled. The records, where they were kept."""
        self._closed = True
        self._arm()
        left = list(self._prompts)
        self._prompts.clear()
        for request in left:
            self._cancel(request, self._stamp())
        self.source.close()
        self.cluster.clock.run()
        if not self.options.keep or not self.source.count:
            return None
        return self.cluster.records(), self.source.workload

    # -- what the cluster tells ---------------------------------------------------------------

    def iteration(self, engine: Engine, batch: Batch, tokens: Tokens) -> None:
        assert isinstance(engine, ClusterReplica)
        self.meters.iteration(engine.number, batch)
        at_s = batch.emission.seen_s
        if at_s <= self.now_s:
            self._hear(engine.number, tokens, at_s)
        else:
            self._later(at_s, partial(self._hear, engine.number, tokens, at_s))

    def _later(self, at_s: float, call: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._outgoing, (at_s, self._count, call))

    def _hear(self, replica: int, tokens: Tokens, at_s: float) -> None:
        """Clients get tokens."""
        choices, due = self._choices, self._due(at_s)
        gaps: dict[float, int] = {}
        given = 0
        for sequence, count in tokens:
            choice = choices.get(sequence) or self._sample(sequence)
            if choice is None or count <= choice.count:
                continue
            given += count - choice.count
            if choice.count:
                gaps[choice.last_s] = gaps.get(choice.last_s, 0) + 1
            else:
                self._begins(_whole(sequence), replica, at_s)
            choice.count, choice.last_s = count, at_s
            stream = choice.answer.stream
            if stream is not None:
                stream.hear(choice, due)
        self.meters.delays_s.append((self.now_s - at_s) / self.speed)  # of the last of them
        self.meters.of(replica).tokens(
            given, [(at_s - last_s, times) for last_s, times in gaps.items()]
        )

    def _due(self, at_s: float) -> bytes:
        """The comment for events of that time, in seconds since 1970; empty: none is wanted."""
        if not self._tells_due:
            return b""
        return b": due %.6f\n" % (time.time() - (self.now_s - at_s) / self.speed)

    def _begins(self, request: Request, replica: int, at_s: float) -> None:
        """A request's first token, of any of its sequences."""
        prompt = self._prompts[request]
        if not any(choice.count for choice in prompt.choices):
            prompt.replica = replica
            self.meters.of(replica).first_token(request, at_s)

    def _sample(self, sequence: Request) -> Choice | None:
        """The choice that one of a request's several sequences is."""
        prompt = self._prompts.get(_whole(sequence))
        number = sequence.index // SAMPLE_NUMBERS - 1
        if prompt is None or number < 0:
            return None  # over, or its prompt is being computed
        self._choices[sequence] = choice = prompt.choices[number]
        return choice

    def ended(self, requests: Sequence[Request], now_s: float) -> None:
        for request in requests:
            prompt = self._prompts.get(request)
            if prompt is None:
                continue
            if request.finished_s == request.finished_s:  # not NaN
                at_s = request.answered_s
                self._later(at_s, partial(self._finish, request, prompt))
                continue
            self._forget(request)
            answer = prompt.choices[0].answer
            prompt.over = True
            answer.error = answer.error or self._reason(request)
            answer.wake()

    def _finish(self, request: Request, prompt: Prompt) -> None:
        self._forget(request)
        prompt.over = True
        self.meters.finished(request, prompt)
        prompt.choices[0].answer.wake()

    def _forget(self, request: Request) -> None:
        prompt = self._prompts.pop(request, None)
        if self._choices.pop(request, None) is None and prompt is not None:
            mine = set(map(id, prompt.choices))
            for sequence in [one for one, of in self._choices.items() if id(of) in mine]:
                del self._choices[sequence]

    def _reason(self, request: Request) -> ApiError:
        """Why a request got no answer."""
        for replica in self.cluster.replicas:
            log, rules = replica.pool.log, replica.pool.rules
            if request.index in log.refused:
                assert rules is not None
                by_sequences = rules.max_waiting is None or (
                    rules.max_unfinished is not None and replica.pool.overflows(request)
                )
                self.meters.refused(by_sequences=by_sequences)
                return queue_is_full(by_sequences=by_sequences)
            if request.index in log.gave_up:
                assert rules is not None
                return waited_too_long(rules.max_wait_s)
        return ApiError("Client disconnected")

    def lost(self, requests: Sequence[Request], now_s: float) -> None:
        """A replica has failed, and these were there."""
        if not self.cuts:
            return
        for request in requests:
            prompt = self._prompts.get(request)
            if prompt is not None:
                answer = prompt.choices[0].answer
                answer.dropped = True
                answer.wake()
                self.source.leaves(request, now_s)
                self.cluster.clock.at(now_s, ARRIVAL, partial(self.cluster.cancel, request))

    @property
    def serves(self) -> bool:
        """Whether any replica takes requests."""
        return self.cluster.num_serving > 0


def _whole(sequence: Request) -> Request:
    """The request that a sequence belongs to."""
    group = sequence.group
    return group.request if group is not None else sequence.whole
