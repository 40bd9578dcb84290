"""An engine of a cluster: it is sent requests, and told on the cluster's clock when it is due.

An arrival for one replica leaves the leaps of all others alone; its own is cut short where the
request could be admitted, and so leaping gives the very records that stepping does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import inf, nextafter

from sim.engine.clock import Clock
from sim.engine.engine import Device, Engine
from sim.engine.front_end import ApiServers
from sim.records import IterationLog
from sim.request import Request
from sim.request_pool import RequestPool
from sim.schedulers.scheduler import Answering, Scheduler

# What happens at the same time happens in this order, and in the order of the replicas' numbers.
ARRIVAL, ENDING, DECISION = 0, 1, 1 << 20


class ReplicaPool(RequestPool):
    """A pool that knows how much has been asked of it and has not begun."""

    queued_tokens = 0  # of prompts that wait, or wait again

    def start(self, request: Request, now_s: float) -> None:
        self.queued_tokens -= request.prompt_tokens
        super().start(request, now_s)

    def preempt(self, request: Request, now_s: float) -> None:
        self.queued_tokens += request.prompt_tokens
        super().preempt(request, now_s)

    def finish(self, request: Request, now_s: float) -> Request | None:
        if request not in self.running:  # preempted meanwhile, it has queued again
            self.queued_tokens -= request.prompt_tokens
        return super().finish(request, now_s)

    def evict(self) -> list[Request]:
        self.queued_tokens = 0
        return super().evict()


class ClusterReplica(Engine):
    """An engine that is served from an inbox.

    ``finished`` is called with the requests that ended and when, before the next decision. With
    `awaits_clients` those who have their answer, here or elsewhere, may send the next request
    before it, too.
    """

    def __init__(
        self,
        number: int,
        clock: Clock,
        scheduler: Scheduler,
        device: Device,
        finished: Callable[[ClusterReplica, list[Request], float], None],
        *,
        servers: ApiServers | None = None,
        leap: bool = True,
        check: bool = False,
        awaits_clients: bool = False,
    ) -> None:
        super().__init__(scheduler, device, servers=servers, leap=leap, check=check)
        assert isinstance(scheduler.pool, ReplicaPool)
        self.number = number
        self.pool = scheduler.pool
        self.allocator = scheduler.allocator
        self.num_blocks = scheduler.allocator.num_blocks
        self.num_outstanding = 0
        self.kv_floor = -1.0  # what `kv_share` is at least: a leap only adds to what it was
        self._changed: list[ClusterReplica] = []  # who has to be looked at anew by a router …
        self.is_noted = False  # … and whether this one is there
        self.came_s: list[float] = []  # when requests came, and when some left without an answer
        self.gone_s: list[float] = []
        self._clock = clock
        self._finished = finished
        self._awaits_clients = awaits_clients
        self._entering: dict[Request, float] = {}  # in the front end: when the engine gets them
        self._inbox: deque[Request] = deque()
        self._called_s = inf  # when `_call` comes next
        self._deciding = False  # a decision is due at this very time
        self._call_rank = ENDING + number
        self._decision_rank = DECISION + number
        # When it decides what comes after an iteration that ends.
        self._going_on_rank = self._decision_rank if awaits_clients else self._call_rank
        self._answering = scheduler if isinstance(scheduler, Answering) else None

    # -- from outside -------------------------------------------------------------------------

    def send(self, request: Request, now_s: float) -> None:
        """A request is sent here, to the engine or to the front end before it."""
        self.pool.queued_tokens += request.prompt_tokens * self.pool.num_sequences(request)
        self.num_outstanding += 1
        self.note_change()
        if self.servers is None:
            self._receive(request, now_s)
            return
        if request.sent_s != request.sent_s:  # NaN: no replica had it before
            request.sent_s = now_s
        self._entering[request] = at_s = self.servers.receive(request.prompt_tokens, now_s)
        if not request.was_scheduled:
            request.arrival_s = at_s
        self._clock.at(at_s, ARRIVAL, partial(self._enter, request))

    def _enter(self, request: Request, now_s: float) -> None:
        if self._entering.get(request) == now_s:  # it was not lost on its way
            del self._entering[request]
            self._receive(request, now_s)

    def _receive(self, request: Request, now_s: float) -> None:
        """The engine has a request; one that can never be served is turned away at once."""
        self.came_s.append(now_s)
        if not self.scheduler.servable(request):
            self.pool.reject(request)
            self._lose([request], now_s)
            return
        # Counted as it comes: by the time that it is taken in, others may have finished.
        if self.pool.overflows(request, sum(map(self.pool.num_sequences, self._inbox))):
            self.pool.refuse(request)
            self._lose([request], now_s)
            return
        self._inbox.append(request)
        if self.is_idle:
            self._decide_at(now_s)
        else:
            self.interrupt(self._past(self._going_on_rank, now_s))
            self._call_when_due()

    def note_changes_in(self, changed: list[ClusterReplica]) -> None:
        """From now on this one puts itself there when something a router looks at has changed."""
        self._changed, self.is_noted = changed, False

    def note_change(self) -> None:
        """Requests have come or gone, or blocks been taken or come free."""
        self.kv_floor = -1.0
        if not self.is_noted:
            self.is_noted = True
            self._changed.append(self)

    def cancel(self, request: Request, now_s: float) -> bool:
        """Its client is gone; False where the request is not here.

        In the engine it ends with the next decision, unless it is answered by then.
        """
        if request in self._entering:
            del self._entering[request]
            self.came_s.append(now_s)
            self._withdraw(request, now_s)
        elif request in self._inbox:
            self._inbox.remove(request)
            self._withdraw(request, now_s)
        elif self.pool.holds(request):
            self._departed.append(request)
            if self.is_idle:
                self._decide_at(now_s)
            else:
                self.interrupt(self._past(self._going_on_rank, now_s), leaving=True)
                self._call_when_due()
        else:
            return False
        return True

    def _withdraw(self, request: Request, now_s: float) -> None:
        """It has not been queued yet, and will not be."""
        self.pool.cancel(request, now_s)
        self._lose([request], now_s)

    def let_go(self, now_s: float) -> None:
        pool = self.pool
        gone = [request for request in self._departed if pool.holds(request)]
        self._departed.clear()
        for request in gone:
            for sequence in pool.sequences_of(request):
                if sequence in pool.waiting or sequence in pool.swapped:
                    pool.queued_tokens -= sequence.prompt_tokens
            pool.log.cancelled.add(request.index)
            self.scheduler.abort(request, now_s)
        self.gone_s += [now_s] * len(gone)
        self.num_outstanding -= len(gone)
        self.note_change()
        if gone:
            self._finished(self, gone, now_s)

    def forget(self) -> None:
        """Drop what is noted of all that is over: there will be no records."""
        self.log = IterationLog()
        self.pool.log.forget()
        self.scheduler.gaps.clear()
        self.came_s.clear()
        self.gone_s.clear()

    def wake(self, now_s: float) -> None:
        """Blocks came free from outside: if nothing runs, decide anew."""
        if self.is_idle:
            self._decide_at(now_s)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait, preempted ones included."""
        pool = self.pool
        return len(pool.waiting) + len(pool.swapped) + sum(map(pool.num_sequences, self._inbox))

    def used_share(self, now_s: float) -> float:
        """KV blocks in use, as a share of all blocks."""
        return (self.num_blocks - self.allocator.num_free + self.growth(now_s)) / self.num_blocks

    def kv_share(self, now_s: float) -> float:
        """KV blocks in use and those that queued prompts will take, as a share of all blocks."""
        blocks = self.num_blocks - self.allocator.num_free
        queued = -(-self.pool.queued_tokens // self.allocator.block_size)
        blocks += queued * self.allocator.growing_tables
        blocks += self.growth(self._past(self._going_on_rank, now_s))
        share = blocks / self.num_blocks
        # What sequences give back while they run is no reason to look anew.
        self.kv_floor = 0.0 if self.allocator.gives_back_early else share
        return share

    def num_cached(self, hashes: Sequence[int], now_s: float, more_than: int) -> int:
        """Blocks of a prompt that are found here; or 0, where no more than so many are."""
        answering, cached = self._answering, self.allocator.cached
        self.allocator.at(now_s)
        goes_on = answering is not None and answering.answers.continued_by(hashes)
        if not goes_on and len(cached(hashes)) <= more_than:
            return 0
        # A leap may have reused some of these blocks since it began, and filled others.
        self.catch_up(self._past(self._call_rank, now_s), self._past(self._going_on_rank, now_s))
        if goes_on:
            assert answering is not None
            plan = self._plan
            decoding = plan is not None and plan.batch.num_decodes > 0
            answering.publish_answers(scheduled=int(decoding))
        self.allocator.at(now_s)
        return len(cached(hashes))

    def _past(self, rank: int, now_s: float) -> float:
        """Now; or just after, where what is done here at this time, by its rank, has been done."""
        return nextafter(now_s, inf) if self._clock.reached >= rank else now_s

    def fail(self, now_s: float) -> list[Request]:
        """Lose everything: what is under way is void, and all requests come back as new."""
        lost = self.void(now_s)
        self._called_s = inf
        self._departed.clear()  # its cluster knows
        for request in self._inbox:  # some come with a cache that was computed elsewhere
            request.num_computed_tokens = request.num_generated_tokens = 0
        # A replica that steps has taken in what one in mid-leap still has in its inbox.
        lost = sorted([*lost, *self._inbox], key=lambda request: request.index)
        self._inbox.clear()
        self.gone_s += [now_s] * len(lost)
        if self.servers is not None:
            self.servers.lose(now_s)
            for request in self._entering:
                request.num_computed_tokens = request.num_generated_tokens = 0
            lost = sorted([*lost, *self._entering], key=lambda request: request.index)
            self._entering.clear()
        self.num_outstanding = self.pool.queued_tokens = 0
        self.note_change()
        return lost

    # -- as its time comes --------------------------------------------------------------------

    def _call_when_due(self) -> None:
        due_s = self.due_s
        if due_s != self._called_s and due_s < inf:
            self._called_s = due_s
            self._clock.at(due_s, self._call_rank, self._call)

    def _call(self, now_s: float) -> None:
        if now_s != self._called_s:
            return  # what was due then was cut short, or lost
        self._called_s = inf
        if self._awaits_clients:  # whoever finishes may come again at once
            self.interrupt(now_s)
        if finished := self.collect(now_s):
            self.num_outstanding -= len(finished)
            self.note_change()
            self._finished(self, finished, now_s)
        self.note_change()
        if now_s < self.decision_s and not self.is_idle:
            self._call_when_due()
        elif self._awaits_clients:  # also those of other replicas, whose iterations end just now
            self._decide_at(now_s)
        else:
            self._decide(now_s)

    def _decide_at(self, now_s: float) -> None:
        if not self._deciding:
            self._deciding = True
            self._clock.at(now_s, self._decision_rank, self._decide)

    def _decide(self, now_s: float) -> None:
        self._deciding = False
        if now_s < self.decision_s and not self.is_idle:
            return  # the decision that was due has been made, or the engine has failed since
        self.note_change()
        self.take_in(now_s)
        self.decide(now_s)
        self._call_when_due()

    def take_in(self, now_s: float) -> None:
        """Queue those who have come, and let go of those who have waited too long."""
        inbox, pool = self._inbox, self.pool
        while inbox:
            request, rejected = inbox.popleft(), pool.num_rejected
            pool.enqueue(request)  # `send` has seen that it can be served
            if pool.num_rejected > rejected:
                self._lose([request], now_s)
        if pool.gives_up_s <= now_s:
            self._lose(pool.expire(now_s), now_s)

    def _lose(self, requests: list[Request], now_s: float) -> None:
        """These can never be served, got no place in the queue, or left it."""
        self.gone_s += [now_s] * len(requests)
        self.num_outstanding -= len(requests)
        self.note_change()
        for request in requests:
            self.pool.queued_tokens -= request.prompt_tokens * self.pool.num_sequences(request)
        if requests:
            self._finished(self, requests, now_s)
