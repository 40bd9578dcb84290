"""Several engines behind a router: groups, pools, failures, autoscaling, on one SimPy clock.

A *group* is a number of equal replicas. With roles ``prefill`` and ``decode`` (DistServe, Zhong et
al., OSDI 2024; Splitwise, Patel et al., ISCA 2024) a prompt is first computed by a prefill replica,
then its KV cache crosses a link (`KvTransfers`), and a decode replica emits all of the answer, its
first token included. A replica that fails loses what it has; its requests begin anew elsewhere
(`Fleet`).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Protocol

import numpy as np

from sim.cluster.fleet import Fleet
from sim.cluster.kv_transfers import DecodePool, KvTransfers, PrefillPool
from sim.cluster.lockstep import Lockstep, Rank, tokens_by_step
from sim.cluster.plan import (
    Autoscaling,
    ClusterFacts,
    Failure,
    KvLink,
    ReplicaGroup,
    shared_store,
)
from sim.cluster.replica import ARRIVAL, ClusterReplica, ReplicaPool
from sim.cluster.routers import ROUTERS, Routing
from sim.cluster.shared_gpu import GpuSharing, Instance, SharedGpu
from sim.engine.block_history import BlockRecorder, watched
from sim.engine.device import device_of
from sim.engine.engine import Listener
from sim.engine.front_end import ApiServers, Arrivals, FrontEnd
from sim.engine.policy import block_allocator, scheduler_class
from sim.engine.run_log import collect, keep_on
from sim.records import Records
from sim.request import NEVER, Request
from sim.scratch import Scratch
from sim.workload.samples import Samples
from sim.workload.source import RequestSource
from sim.workload.workload import Workload

_REPORT_EVERY = 256  # endings between two calls of `progress`


def simulate_cluster(
    workload: Workload,
    groups: Sequence[ReplicaGroup],
    *,
    router: str = "round_robin",
    kv_link: KvLink | None = None,
    autoscaling: Autoscaling | None = None,
    gpu_sharing: GpuSharing = "time_slices",
    failures: Sequence[Failure] = (),
    seed: int = 0,
    leap: bool = True,
    check: bool = False,
    progress: Callable[[int], None] | None = None,
    recorder: BlockRecorder | None = None,
    scratch: Scratch | None = None,
) -> tuple[Records, ClusterFacts]:
    """Serve `workload` on all replicas of `groups`, numbered in order.

    Leaping gives the same records as stepping, for every router. `seed` is the random router's,
    `gpu_sharing` is of groups that are on one GPU. A `recorder` notes all block tables of a run
    that does not leap. On a `scratch` records are kept as they come, not in memory.
    """
    caching = any(group.config.enable_prefix_caching for group in groups)
    source = RequestSource(workload, block_size=groups[0].config.block_size, prefix_caching=caching)
    cluster = Cluster(
        source, groups, router=router, kv_link=kv_link, autoscaling=autoscaling,
        gpu_sharing=gpu_sharing, seed=seed, leap=leap, check=check, progress=progress,
        recorder=recorder,
    )  # fmt: skip
    for failure in failures:
        cluster.plan_failure(failure)
    if scratch is not None:
        keep_on(scratch, cluster.replicas)
    cluster.clock.run()
    return cluster.records(scratch), cluster.facts


def _looked_up(
    known: Mapping[int, float], numbers: np.ndarray, other: float, dtype: str
) -> np.ndarray:
    """What is known of requests of ascending `numbers`; `other` of those of whom nothing is."""
    column = np.full(len(numbers), other, dtype)
    if known:
        keys, values = np.array(list(known)), np.array(list(known.values()))
        at = np.minimum(np.searchsorted(numbers, keys), len(numbers) - 1)
        there = numbers[at] == keys
        column[at[there]] = values[there]
    return column


class Source(Arrivals, Protocol):
    """Where a cluster's requests come from: all that it is told of them."""

    samples: Samples | None  # those that requests ask for
    total: float  # requests in all; infinity while more may come

    @property
    def workload(self) -> Workload:
        """All that came, once no more will."""

    def take(self) -> Request:
        """The request that arrives at `next_arrival_s`."""

    def rest(self) -> list[Request]:
        """Everybody who has not come, and will not."""


class Cluster(Fleet):
    """Replicas, a router, and what comes and goes, over the requests of `source`.

    A driver runs its clock; `listener` hears of tokens and ends where it does not leap.
    """

    def __init__(
        self,
        source: Source,
        groups: Sequence[ReplicaGroup],
        *,
        router: str = "round_robin",
        kv_link: KvLink | None = None,
        autoscaling: Autoscaling | None = None,
        gpu_sharing: GpuSharing = "time_slices",
        seed: int = 0,
        leap: bool = True,
        check: bool = False,
        progress: Callable[[int], None] | None = None,
        recorder: BlockRecorder | None = None,
        listener: Listener | None = None,
    ) -> None:
        super().__init__()
        self._source = source
        self._listener = listener
        self._gone: set[Request] = set()  # whose clients are, as far as they have not ended
        self._lockstep: Lockstep | None = None  # that ranks are added to
        self._store = shared_store(groups)
        self._gpus: dict[str, SharedGpu] = {}  # that several engines are on
        self._gpu_sharing: GpuSharing = gpu_sharing
        self._steps_with: list[int] = []  # each replica's lockstep, or itself alone
        self._recorder = recorder
        self._awaits_answers = source.awaits_answers
        self._unequal = len(groups) > 1
        self._samples = source.samples
        self._transfers = KvTransfers(
            kv_link, self.clock, self.facts, partial(self._dispatch, role="decode")
        )
        if self._samples is not None and any(
            group.role != "both" and group.scheduler == "paged" for group in groups
        ):
            raise ValueError("under paged, several samples cannot move from a pool to another")
        self._fronted = any(group.front_end is not None for group in groups)
        for group in groups:
            for number in range(group.replicas):
                if group.in_lockstep > 1 and number % group.in_lockstep == 0:
                    self._lockstep = Lockstep(self.clock, len(self.replicas))
                self._add_replica(group, leap=leap, check=check)
        self._route = ROUTERS[router]
        rng = np.random.default_rng([seed, 0x70757465])
        self._memory: defaultdict[tuple[str, str], Routing] = defaultdict(lambda: Routing(rng))
        self._progress = progress
        self._ended = 0
        # Output and limit of requests that are being prefilled.
        self._lengths: dict[Request, tuple[int, int]] = {}
        self._nowhere: dict[str, deque[Request]] = {"both": deque(), "decode": deque()}
        self._arrival_due = inf
        self.begin(autoscaling)
        self.expect_arrival()

    def _add_replica(self, group: ReplicaGroup, *, leap: bool, check: bool) -> None:
        config = group.config
        pool = self._pool(group)
        allocator = block_allocator(config, group.num_blocks, shared=self._store)
        policy = scheduler_class(group.scheduler, config, samples=self._samples)
        if self._recorder is not None:
            policy = watched(policy, self._recorder)
        scheduler = policy(pool, allocator, config)
        self._groups.append(group)
        number, servers = len(self.replicas), self._servers(group)
        if group.in_lockstep > 1:
            assert self._lockstep is not None
            self._steps_with.append(self._lockstep.number)
            replica: ClusterReplica = Rank(
                self._lockstep, number, scheduler, group.latency, self._on_finished,
                servers=servers, leap=leap, check=check,
            )  # fmt: skip
        elif group.shared_gpu:
            self._steps_with.append(number)
            gpu = self._gpus.setdefault(group.shared_gpu, SharedGpu(self._gpu_sharing))
            replica = Instance(
                gpu, number, self.clock, scheduler, group.latency, self._on_finished,
                servers=servers, check=check, awaits_clients=self._awaits_answers,
            )  # fmt: skip
        else:
            self._steps_with.append(number)
            replica = ClusterReplica(
                number, self.clock, scheduler, device_of(group.latency), self._on_finished,
                servers=servers, leap=leap, check=check, awaits_clients=self._awaits_answers,
            )  # fmt: skip
        if group.role != "prefill":  # whose token nobody gets
            replica.listener = self._listener
        self.replicas.append(replica)

    def _servers(self, group: ReplicaGroup) -> ApiServers | None:
        """A replica's front end; where any replica has one, those without have one of no time."""
        if not self._fronted:
            return None
        return ApiServers(group.front_end or FrontEnd())

    def _pool(self, group: ReplicaGroup) -> ReplicaPool:
        block_size, track_longest = group.config.block_size, group.latency.uses_longest
        if group.role == "prefill":
            return PrefillPool(block_size, track_longest=track_longest)
        if group.role == "decode":
            return DecodePool(block_size, self._transfers.release, track_longest=track_longest)
        return ReplicaPool(block_size, track_longest=track_longest)

    # -- requests -----------------------------------------------------------------------------

    def expect_arrival(self) -> None:
        """Somebody may be the next to come who was not before."""
        next_s = self._source.next_arrival_s
        if next_s < inf and next_s != self._arrival_due:
            self._arrival_due = next_s
            self.clock.at(next_s, ARRIVAL, self._arrive)

    def _arrive(self, now_s: float) -> None:
        self._arrival_due = inf
        source = self._source
        while source.next_arrival_s <= now_s:
            request = source.take()
            if request.leaves_s < inf:
                self.clock.at(request.leaves_s, ARRIVAL, partial(self.cancel, request))
            self._dispatch(request, now_s)
        self.expect_arrival()

    def cancel(self, request: Request, now_s: float) -> None:
        """The client of a request that has come is gone: it ends, unless it has its answer."""
        if request.finished_s == request.finished_s:  # not NaN
            return
        self._gone.add(request)
        for queue in self._nowhere.values():
            if request in queue:
                queue.remove(request)
                self._drop(request, now_s)
                return
        for replica in self.replicas:
            if replica.cancel(request, now_s):
                return
        # It is on its way from a replica to another, or to one again: dropped when it gets there.

    def _drop(self, request: Request, now_s: float) -> None:
        """It ends between two replicas."""
        self._transfers.release(request, now_s)
        self._restore(request)
        home = self.replicas[0]
        home.came_s.append(now_s)
        home.gone_s.append(now_s)
        home.pool.cancel(request, now_s)
        self._count_ended([request], now_s)

    def _dispatch(self, request: Request, now_s: float, role: str = "both") -> None:
        """Send a request to a replica of its phase; with none up it waits at the door."""
        self._expect_scaling(now_s)
        if request in self._gone:
            self._drop(request, now_s)
            return
        able, kind = self.able(role, request.label), self._kind(role, request.label)
        if not able:
            self._nowhere[role].append(request)
            return
        replica = self._route(request, able, now_s, self._memory[kind])
        if self._unequal and not replica.scheduler.servable(request):
            # Too small a replica; the router chooses among those that are large enough.
            fitting = [each for each in able if each.scheduler.servable(request)]
            if fitting:
                replica = self._route(request, fitting, now_s, self._memory[kind])
        if self._groups[replica.number].role == "prefill" and not self._shorten(request, replica):
            replica.came_s.append(now_s)
            replica.gone_s.append(now_s)
            replica.scheduler.pool.reject(request)
            self._count_ended([request], now_s)
            return
        replica.send(request, now_s)

    def _shorten(self, request: Request, prefill: ClusterReplica) -> bool:
        """Let a request end with its first token; False where it could not be served to its end."""
        if not any(
            replica.scheduler.servable(request)
            for replica, group in zip(self.replicas, self._groups, strict=True)
            if group.role == "decode"
        ):
            return False
        self._lengths[request] = request.output_tokens, request.max_tokens
        request.output_tokens = request.max_tokens = 1
        if prefill.scheduler.servable(request):
            return True
        self._restore(request)
        return False

    def _restore(self, request: Request) -> None:
        if request in self._lengths:
            request.output_tokens, request.max_tokens = self._lengths.pop(request)

    def _on_finished(self, replica: ClusterReplica, finished: list[Request], now_s: float) -> None:
        self._expect_scaling(now_s)
        group = self._groups[replica.number]
        if group.role != "prefill":
            if group.role == "decode":
                for request in finished:  # also those that it turned away
                    self._transfers.release(request, now_s)
            self._count_ended(finished, now_s)
            if not self._open[replica.number]:
                self._drain(replica, now_s)
            return
        ended = []
        for request in finished:
            self._restore(request)
            cancelled = request.index in replica.pool.log.cancelled
            if cancelled or not request.num_generated_tokens:  # found no place, or left it
                ended.append(request)
                continue
            size = group.sent_bytes(request.prompt_tokens)
            self._transfers.send(replica, request, size, now_s)
        self._count_ended(ended, now_s)
        self._drain(replica, now_s)

    def _count_ended(self, ended: Sequence[Request], now_s: float) -> None:
        if not ended:
            return
        before = self._ended
        self._ended += len(ended)
        if self._gone:
            self._gone.difference_update(ended)
        if self._listener is not None:
            self._listener.ended(ended, now_s)
        if self._awaits_answers:
            self._source.release(ended, now_s)
            self.expect_arrival()
        if self._progress is not None and self._ended // _REPORT_EVERY > before // _REPORT_EVERY:
            self._progress(self._ended)

    # -- replicas that come and go ------------------------------------------------------------

    def is_over(self) -> bool:
        return self._ended == self._source.total

    def num_at_the_door(self) -> int:
        return sum(map(len, self._nowhere.values()))

    def let_in(self, now_s: float) -> None:
        for role, queue in self._nowhere.items():
            for _ in range(len(queue)):
                self._dispatch(queue.popleft(), now_s, role)

    def lose(self, replica: ClusterReplica, now_s: float) -> None:
        # Held blocks come free before the replica's own.
        lost = self._transfers.lose(replica, now_s) + replica.fail(now_s)
        if self._listener is not None:
            self._listener.lost(lost, now_s)
        for request in sorted(lost, key=lambda request: request.index):
            self._transfers.release(request, now_s)
            self.facts.retries[request.index] = self.facts.retries.get(request.index, 0) + 1
            self._restore(request)
            last = request.last_token
            if last is not None and last.seen_s > now_s:  # it hears of the failure after that
                self.clock.at(last.seen_s, ARRIVAL, partial(self._dispatch, request))
            else:
                self._dispatch(request, now_s)

    # -- the end ------------------------------------------------------------------------------

    def records(self, scratch: Scratch | None = None) -> Records:
        """The run's records. Raises AssertionError when a request was left behind."""
        self._strand()
        workload = self._source.workload
        found = collect(self.replicas, scratch=scratch)
        ends_s = found.iterations["start_s"] + found.iterations["duration_s"]
        end_s = float(ends_s.max(initial=0.0))
        for number, since_s in enumerate(self._up_since_s):
            if since_s is not None:
                self.facts.up_s[number] += max(end_s - since_s, 0.0)
        numbers = found.requests["request"]
        found.requests["retries"] = _looked_up(self.facts.retries, numbers, 0, "i4")
        if any(group.role == "prefill" for group in self._groups):
            found.requests["prefilled_s"] = _looked_up(self.facts.prefilled_s, numbers, NEVER, "f8")
        if self._lockstep is not None:
            locksteps = np.array(self._steps_with)
            found.iterations.update(tokens_by_step(found.iterations, locksteps))
        # A prefill pool logs those it turns away as it knows them: with one token to generate.
        found.requests["output_tokens"] = workload.output_tokens[found.requests["request"]]
        if workload.samples is not None:
            found.requests.update(workload.samples.columns(found.requests["request"]))
        return found

    def _strand(self) -> None:
        """Turn away whom nobody is left to serve: at the door, within, and still to come."""
        now_s = self.clock.now
        home = self.replicas[0]
        left: list[Request] = []
        for queue in self._nowhere.values():
            left += queue
            queue.clear()
        for replica in self.replicas:
            left += self._transfers.lose(replica, now_s)
            if replica.num_outstanding:
                left += replica.fail(now_s)
        for request in [*left, *self._source.rest()]:
            self._restore(request)
            home.came_s.append(request.arrival_s)
            home.gone_s.append(request.arrival_s)
            home.pool.strand(request)
