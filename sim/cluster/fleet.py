"""The replicas of a cluster that take requests and are paid for: they fail, come back, are scaled.

The autoscaler starts and drains replicas by the number of unfinished requests. It looks only when
something has changed since.
"""

from __future__ import annotations

from functools import partial
from math import ceil, floor, inf, nextafter

from sim.cluster.plan import Autoscaling, ClusterFacts, Failure, ReplicaGroup
from sim.cluster.replica import ARRIVAL, ClusterReplica
from sim.engine.clock import Clock

# What a request may ask for, and the roles of replicas that can do it.
_PHASES = {"both": ("both", "prefill"), "decode": ("decode",)}


class Fleet:
    """Replicas by number; what is sent to them, and when all has ended, a cluster adds."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.replicas: list[ClusterReplica] = []
        self.facts = ClusterFacts(up_s=[])
        self._groups: list[ReplicaGroup] = []  # of each replica
        # Who take requests, by what is asked, and of which class where groups serve some only.
        self._able: dict[tuple[str, str], list[ClusterReplica]] = {}
        self._starting: dict[int, float] = {}  # and when they will have started
        self._down_until_s: dict[int, float] = {}  # of replicas that have failed
        self._serving_again: set[int] = set()  # of those, which take requests once they are back
        self._changed_s = 0.0
        self._scaling_s = inf  # when the number of replicas is looked at next

    def begin(self, autoscaling: Autoscaling | None) -> None:
        """All replicas are there: those that are not too many take requests from now on."""
        count = len(self.replicas)
        first = count if autoscaling is None else autoscaling.min_replicas
        self._autoscaling = autoscaling
        self._by_class = any(group.classes for group in self._groups)
        self.facts.up_s += [0.0] * count
        self._open = [number < first for number in range(count)]
        # Since when a replica is paid for; None: it is not.
        self._up_since_s = [0.0 if is_open else None for is_open in self._open]
        self._note_replicas(0.0)

    # -- what a cluster adds ------------------------------------------------------------------

    def is_over(self) -> bool:
        """Whether every request has ended."""
        raise NotImplementedError

    def num_at_the_door(self) -> int:
        """Requests that no replica could take."""
        raise NotImplementedError

    def let_in(self, now_s: float) -> None:
        """A replica takes requests again: those at the door go to it."""
        raise NotImplementedError

    def lose(self, replica: ClusterReplica, now_s: float) -> None:
        """All that a replica has is lost; its requests begin anew."""
        raise NotImplementedError

    @property
    def num_serving(self) -> int:
        """Replicas that take requests."""
        return sum(self._open)

    @property
    def states(self) -> list[str]:
        """What becomes of each replica: serving, draining, starting, down or off."""
        return [
            "serving" if self._open[number]
            else "starting" if number in self._starting
            else "down" if number in self._down_until_s
            else "draining" if self._up_since_s[number] is not None
            else "off"
            for number in range(len(self.replicas))
        ]  # fmt: skip

    def able(self, role: str, label: str) -> list[ClusterReplica]:
        """Who take requests of this class for what is asked; the same list until that changes."""
        kind = self._kind(role, label)
        found = self._able.get(kind)
        if found is None:
            found = self._able[kind] = [
                replica
                for replica, group in zip(self.replicas, self._groups, strict=True)
                if self._open[replica.number]
                and group.role in _PHASES[role]
                and (not group.classes or label in group.classes)
            ]
        return found

    def _kind(self, role: str, label: str) -> tuple[str, str]:
        """What requests that go to the same replicas have in common."""
        return role, label if self._by_class else ""

    # -- replicas that come and go ------------------------------------------------------------

    def plan_failure(self, failure: Failure) -> None:
        """Let a replica fail when its time comes."""
        self.clock.at(failure.at_s, ARRIVAL, partial(self._fail, failure))

    def _fail(self, failure: Failure, now_s: float) -> None:
        number = failure.replica
        if self.is_over():
            return
        already = number in self._down_until_s
        until_s = now_s + failure.recover_after_s
        if until_s > self._down_until_s.get(number, -inf):  # of two failures, the longer one
            self._down_until_s[number] = until_s
            if until_s < inf:
                self.clock.at(until_s, ARRIVAL, partial(self._recover, number))
        if already:
            return
        if self._open[number] or number in self._starting:
            self._serving_again.add(number)
        self._close(number, now_s)
        self.lose(self.replicas[number], now_s)

    def _recover(self, number: int, now_s: float) -> None:
        if self._down_until_s.get(number) != now_s:
            return  # another failure keeps it down
        del self._down_until_s[number]
        self._expect_scaling(now_s)
        if number in self._serving_again:  # otherwise it is as idle as it was
            self._serving_again.discard(number)
            if not self.is_over():
                self._reopen(number, now_s)

    def _close(self, number: int, now_s: float) -> None:
        """A replica takes no more requests, and is no longer paid for."""
        self._open[number] = False
        self._starting.pop(number, None)
        since_s = self._up_since_s[number]
        if since_s is not None:
            self.facts.up_s[number] += now_s - since_s
            self._up_since_s[number] = None
        self._note_replicas(now_s)

    def _reopen(self, number: int, now_s: float) -> None:
        self._starting.pop(number, None)
        self._open[number] = True
        if self._up_since_s[number] is None:
            self._up_since_s[number] = now_s
        self._note_replicas(now_s)
        self.let_in(now_s)

    def _note_replicas(self, now_s: float) -> None:
        """Some replica takes requests that did not, or no longer does."""
        self._able.clear()
        self.facts.replicas_over_time.append((now_s, sum(self._open)))
        self._expect_scaling(now_s)

    # -- autoscaling --------------------------------------------------------------------------

    def _expect_scaling(self, now_s: float, not_before_s: float = 0.0) -> None:
        """Something has changed: look at it the next time that replicas are counted."""
        scaling = self._autoscaling
        if scaling is None or self.is_over():
            return
        every_s = scaling.check_every_s
        number = max(floor(now_s / every_s) + 1, ceil(not_before_s / every_s))
        at_s = number * every_s
        if at_s <= now_s:  # rounded: this time is that look's, or they are closer than times can be
            at_s = max((number + 1) * every_s, nextafter(now_s, inf))
        if at_s < self._scaling_s:
            self._scaling_s = at_s
            self.clock.at(at_s, ARRIVAL, self._scale)

    def _scale(self, now_s: float) -> None:
        scaling = self._autoscaling
        if now_s != self._scaling_s or self.is_over():
            return
        assert scaling is not None
        self._scaling_s = inf
        outstanding = sum(replica.num_outstanding for replica in self.replicas)
        outstanding += self.num_at_the_door()
        wanted = max(ceil(outstanding / scaling.target_outstanding), scaling.min_replicas)
        there = [n for n in range(len(self.replicas)) if self._open[n] or n in self._starting]
        if wanted > len(there):
            idle = [
                n
                for n in range(len(self.replicas))
                if n not in there and n not in self._down_until_s
            ]
            # One that still drains is back at once.
            idle.sort(key=lambda n: (self._up_since_s[n] is None, n))
            for number in idle[: wanted - len(there)]:
                self._changed_s = now_s
                if self._up_since_s[number] is not None:
                    self._reopen(number, now_s)
                    continue
                self._starting[number] = started_s = now_s + scaling.startup_s
                self._up_since_s[number] = now_s
                self.clock.at(started_s, ARRIVAL, partial(self._started, number))
        elif wanted < len(there):
            if now_s - self._changed_s < scaling.cooldown_s:
                self._expect_scaling(now_s, self._changed_s + scaling.cooldown_s)
                return
            self._changed_s = now_s
            serving = [n for n in there if self._open[n]]
            for number in reversed(serving[wanted:]):
                self._open[number] = False
                self._drain(self.replicas[number], now_s)
            self._note_replicas(now_s)

    def _started(self, number: int, now_s: float) -> None:
        if self._starting.get(number) == now_s:
            self._reopen(number, now_s)

    def _drain(self, replica: ClusterReplica, now_s: float) -> None:
        """A replica that takes no more requests is given up once it has none."""
        number = replica.number
        closed = not self._open[number] and number not in self._starting
        if closed and not replica.num_outstanding and self._up_since_s[number] is not None:
            self._close(number, now_s)
