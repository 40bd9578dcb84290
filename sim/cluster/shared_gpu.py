"""One GPU that several engines compute on: instances of a model, or of several models.

A Triton Inference Server runs every instance of its instance groups by itself and lets the GPU
divide itself between those that have work ("Concurrent Model Execution" in its user guide); vLLM
engines beside each other on one card do so too, each with its part of the memory. Two ways:

*Time slices*: those that compute at the same time have an equal share of it each, as where the
driver takes kernels of several contexts in turn. Slices are far shorter than an iteration, so this
is processor sharing (Kleinrock, "Time-shared systems: a theoretical treatment", JACM 1967): of n
that compute each is n times as slow. That kernels of unlike needs could overlap is left out.

*Turns*: an execution has the GPU to itself until it is through, and whoever was ready first is
next, as under Triton's rate limiter with one resource that every instance asks for and equal
priorities.

Only the device's time is shared. The host works for each instance by itself: before an iteration,
or while the one before is computed, where the engine decides ahead.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

from sim.batch import Batch
from sim.cluster.replica import ClusterReplica
from sim.engine.clock import Clock
from sim.engine.engine import Flight
from sim.engine.front_end import ApiServers
from sim.engine.run_log import Counts
from sim.latency.protocol import LatencyModel
from sim.latency.shared import SharedGpuLatency, shared
from sim.request import Request
from sim.schedulers.scheduler import Scheduler

GpuSharing = Literal["time_slices", "turns"]


@dataclass(slots=True)
class Execution:
    """An iteration on its way: what is left of it, in seconds of the host and of the whole GPU."""

    host_s: float  # before it can begin on the GPU
    gpu_s: float
    least_s: float  # from its begin, however fast the GPU is: the host decides the next one
    alone_s: float  # what it takes with the GPU to itself
    begun_s: float = inf
    ready_s: float = inf  # when its host is through
    start_s: float = inf  # when it has begun, or will begin and end if nobody launches another
    end_s: float = inf


class SharedGpu:
    """What the instances on one GPU have queued, and when each execution begins and ends.

    All of that is known as long as nobody launches anything: then the times of all executions that
    are under way are told anew.
    """

    def __init__(self, sharing: GpuSharing) -> None:
        self.lanes: list[Lane] = []
        self._turns = sharing == "turns"
        self._reached_s = 0.0  # up to when the executions below have got on
        self._holder: Execution | None = None  # of turns

    def launch(self, lane: Lane, execution: Execution, now_s: float) -> None:
        """One more, behind those of its own instance."""
        self._get_on(now_s)
        lane.queue.append(execution)
        self._tell()

    def drop(self, lane: Lane, now_s: float) -> None:
        """An instance has failed: what it had under way is gone."""
        self._get_on(now_s)
        if self._holder in lane.queue:
            self._holder = None
        lane.queue.clear()
        self._tell()

    def _get_on(self, until_s: float) -> None:
        queues = [lane.queue for lane in self.lanes]
        self._holder = _get_on(queues, self._reached_s, until_s, self._holder, turns=self._turns)
        self._reached_s = until_s

    def _tell(self) -> None:
        """What becomes of all executions if nobody launches another."""
        queues, holder = [], None
        for lane in self.lanes:
            ahead: deque[Execution] = deque()
            for one in lane.queue:
                ahead.append(_copy(one))
                if one is self._holder:
                    holder = ahead[-1]
            queues.append(ahead)
        told = [list(queue) for queue in queues]
        _get_on(queues, self._reached_s, inf, holder, turns=self._turns)
        for lane, executions in zip(self.lanes, told, strict=True):
            for one, ahead_of_it in zip(lane.queue, executions, strict=True):
                one.start_s, one.end_s = ahead_of_it.begun_s, ahead_of_it.end_s
            if lane.queue:
                lane.free_at_s = lane.queue[-1].end_s
                lane.retimed(lane.queue)


def _copy(one: Execution) -> Execution:
    return Execution(one.host_s, one.gpu_s, one.least_s, one.alone_s, one.begun_s, one.ready_s)


def _get_on(
    queues: Sequence[deque[Execution]],
    now_s: float,
    until_s: float,
    holder: Execution | None,
    *,
    turns: bool,
) -> Execution | None:
    """Let the first of every queue get on until then; who ends leaves its queue.

    Returns who has the GPU in the end, where it is had in turns.
    """
    while True:
        heads = [queue[0] for queue in queues if queue]
        for one in heads:
            if one.begun_s == inf:
                one.begun_s = now_s
            if one.host_s <= 0.0 and one.ready_s == inf:
                one.ready_s = now_s
        if not heads or now_s >= until_s:
            return holder
        computing = [one for one in heads if one.host_s <= 0.0 and one.gpu_s > 0.0]
        if turns:
            if holder is None and computing:
                holder = min(computing, key=lambda one: one.ready_s)
            computing = [holder] if holder is not None else []
        share = len(computing)
        # What happens next: somebody's host is through, or the GPU, or the time that it takes at
        # least is up.
        next_s = until_s
        for one in heads:
            if one.host_s > 0.0:
                next_s = min(next_s, now_s + one.host_s)
            elif one.gpu_s <= 0.0:
                next_s = min(next_s, max(now_s, one.begun_s + one.least_s))
        for one in computing:
            next_s = min(next_s, now_s + one.gpu_s * share)
        for one in heads:
            if one.host_s > 0.0:
                one.host_s = 0.0 if now_s + one.host_s <= next_s else one.host_s - (next_s - now_s)
        for one in computing:
            done = now_s + one.gpu_s * share <= next_s
            one.gpu_s = 0.0 if done else max(one.gpu_s - (next_s - now_s) / share, 0.0)
            if turns and one.gpu_s <= 0.0:
                holder = None
        now_s = next_s
        for queue in queues:
            if queue and queue[0].host_s <= 0.0 and queue[0].gpu_s <= 0.0:
                one = queue[0]
                if now_s >= one.begun_s + one.least_s:
                    one.end_s = now_s
                    queue.popleft()


class Lane:
    """An instance's place on the GPU: a `Device` whose times others may put off."""

    def __init__(self, gpu: SharedGpu, latency: SharedGpuLatency) -> None:
        self.gpu = gpu
        self.latency = latency
        self.queue: deque[Execution] = deque()
        self.free_at_s = 0.0
        self.retimed: Callable[[Sequence[Execution]], None] = lambda executions: None
        self.launched: Execution | None = None  # the latest
        gpu.lanes.append(self)

    @property
    def free_s(self) -> float:
        """When the latest of its executions ends, as far as is known."""
        return self.free_at_s

    @free_s.setter
    def free_s(self, at_s: float) -> None:
        """The instance has failed, unless it is what it was: all it had under way is gone."""
        if at_s != self.free_at_s:
            self.free_at_s = at_s
            self.gpu.drop(self, at_s)

    def run(self, batch: Batch, now_s: float) -> tuple[float, float]:
        """When a batch that is launched now begins and ends, if nobody else launches another."""
        execution = Execution(*self.latency.split_s(batch))
        self.launched = execution
        self.gpu.launch(self, execution, now_s)
        return execution.start_s, execution.end_s

    def leap(self, batch: Batch, now_s: float, iterations: int, until_s: float) -> list[float]:
        """One iteration: others may launch at any time."""
        return [self.run(batch, now_s)[1]]


class Instance(ClusterReplica):
    """An engine on a GPU that is not its own."""

    def __init__(
        self,
        gpu: SharedGpu,
        number: int,
        clock: Clock,
        scheduler: Scheduler,
        latency: LatencyModel,
        finished: Callable[[ClusterReplica, list[Request], float], None],
        *,
        servers: ApiServers | None,
        check: bool,
        awaits_clients: bool,
    ) -> None:
        lane = Lane(gpu, shared(latency))
        super().__init__(
            number, clock, scheduler, lane, finished,
            servers=servers, leap=False, check=check, awaits_clients=awaits_clients,
        )  # fmt: skip
        lane.retimed = self._retime
        self._lane = lane
        self._launching = False
        self._alone: dict[int, float] = {}  # of what is in flight, by its flight
        self.alone_s = array("d")  # what each recorded iteration takes with the GPU to itself

    def _launch(self, batch: Batch, now_s: float) -> None:
        self._launching = True
        super()._launch(batch, now_s)
        self._launching = False
        assert self._plan is not None and self._lane.launched is not None
        self._alone[id(self._plan)] = self._lane.launched.alone_s

    def _note(self, flight: Flight, ends_s: list[float], counts: Counts) -> None:
        super()._note(flight, ends_s, counts)
        self.alone_s.append(self._alone.pop(id(flight)))

    def void(self, now_s: float) -> list[Request]:
        lost = super().void(now_s)
        self._alone.clear()
        return lost

    def _retime(self, executions: Sequence[Execution]) -> None:
        """Somebody launches or fails, and so its iterations end at other times."""
        flights = [*self._flights, *([self._plan] if self._plan is not None else [])]
        known = list(executions)[: -1 if self._launching else None]  # the latest has no flight yet
        decision_s = self.decision_s
        for flight, execution in zip(reversed(flights), reversed(known), strict=False):
            if flight.ends_s[-1] == self.decision_s:
                decision_s = execution.end_s
            flight.start_s, flight.ends_s = execution.start_s, [execution.end_s]
        if self._plan is not None and self._flights:
            self._plan.next_s = self._flights[-1].ends_s[-1]
        if not self._launching:
            self.decision_s = decision_s
            self._call_when_due()
