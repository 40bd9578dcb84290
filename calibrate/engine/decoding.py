"""Who decodes, looked up again only when it may be somebody else."""

from __future__ import annotations

from collections.abc import Collection

from sim.decode_set import DecodeSet
from sim.request import Request
from sim.schedulers import Scheduler
from sim.schedulers.progress import Progress


class Decoding:
    """The decodes of a scheduler's next batch: the same object for as long as they are the same.

    So that whoever is handed them need not go through 256 sequences to see that nothing changed.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        # Other policies decide row by row who is computed.
        self._counts = getattr(type(scheduler), "decoding", None) is Progress.decoding
        self._set: DecodeSet | None = None
        self._changes = -1
        self._members: Collection[Request] = ()

    def __call__(self) -> Collection[Request]:
        decodes = self._scheduler.pool.decodes
        if not self._counts:
            return list(self._scheduler.decoding())  # which may be the rows themselves
        if self._set is decodes and self._changes == decodes.changes:
            return self._members
        self._set, self._changes = decodes, decodes.changes
        self._members = self._scheduler.decoding()
        return self._members
