"""Who of many replicas has least of something, without looking at all of them for every request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush

from sim.cluster.replica import ClusterReplica

Figures = tuple[float, ...]


class Standings:
    """Replicas in the order of their figures, equal ones in the order of their places.

    A heap that is brought up to date by those who have changed since (they note themselves down):
    finding the first costs as much as changes have been, however many replicas there are. Entries
    that no longer hold are dropped as they surface.
    """

    def __init__(
        self, replicas: Sequence[ClusterReplica], figures: Callable[[ClusterReplica], Figures]
    ) -> None:
        self.replicas = replicas
        self._figures = figures
        self._changed: list[ClusterReplica] = []
        self._place_of = {replica: place for place, replica in enumerate(replicas)}
        self._latest: list[Figures | None] = [None] * len(replicas)
        self._heap: list[tuple[Figures, int]] = []
        for replica in replicas:
            replica.note_changes_in(self._changed)
        self._rebuild()

    def first(self) -> tuple[Figures, int] | None:
        """The least figures, and whose place they are; None where nobody is left."""
        if self._changed:
            self._catch_up()
        heap, latest = self._heap, self._latest
        while heap:
            figures, place = heap[0]
            if latest[place] == figures:
                return heap[0]
            heappop(heap)
        return None

    def take_out(self, place: int) -> None:
        """Who is there is not found until put back, whatever becomes of it."""
        self._latest[place] = None

    def put_back(self, place: int) -> None:
        """It is found again, with the figures that it has by now."""
        self._enter(place)

    def _enter(self, place: int) -> None:
        figures = self._figures(self.replicas[place])
        if figures != self._latest[place]:
            self._latest[place] = figures
            heappush(self._heap, (figures, place))

    def _catch_up(self) -> None:
        for replica in self._changed:
            replica.is_noted = False
            self._enter(self._place_of[replica])
        self._changed.clear()
        if len(self._heap) > 4 * len(self.replicas) + 64:
            self._rebuild()

    def _rebuild(self) -> None:
        self._latest = [self._figures(replica) for replica in self.replicas]
        self._heap = [(figures, place) for place, figures in enumerate(self._latest) if figures]
        heapify(self._heap)
