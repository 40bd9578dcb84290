"""Forecasts for the page: few at once, the latest of each page first, the last ones remembered."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from reports.page.records import RunRecords
from reports.what_if.figures import Snapshot, snapshot

AT_ONCE = 2  # simulations; each takes a core
KEPT = 48  # snapshots of some 50 KB
_PAGES = 256
_LOOK_S = 0.1  # how often one that waits looks whether anybody still wants its answer

Alive = Callable[[], None]
"""Called now and then during a simulation; raises where its answer is wanted no more."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A forecast, and how to ask for it again."""

    records: RunRecords
    summary: Mapping[str, Any]
    command: str  # for a shell
    scenario: str  # resolved, as YAML


class Ask(Protocol):
    """Values of knobs by path -> a forecast. Raises ValueError, in words, where there is none."""

    def __call__(self, values: Mapping[str, Any], alive: Alive | None = None) -> Answer: ...


class SupersededError(Exception):
    """The page has asked for something else since, or is gone."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One request: of which page, its how manieth, and whether its client has left."""

    page: str
    number: int
    gone: Callable[[], bool] = lambda: False


class Answers:
    """Snapshots by setting; safe to ask from many threads."""

    def __init__(self, ask: Ask, *, at_once: int = AT_ONCE, kept: int = KEPT) -> None:
        self._ask = ask
        self._free = at_once
        self._kept = kept
        self._known: OrderedDict[str, Snapshot] = OrderedDict()
        self._latest: OrderedDict[str, int] = OrderedDict()
        self._changed = threading.Condition()

    def begin(self, turn: Turn) -> None:
        """What this page asked before is wanted no more."""
        with self._changed:
            number = max(turn.number, self._latest.pop(turn.page, turn.number))
            self._latest[turn.page] = number
            while len(self._latest) > _PAGES:
                self._latest.popitem(last=False)
            self._changed.notify_all()
        self.check(turn)

    def check(self, turn: Turn) -> None:
        """Raises SupersededError for a turn whose answer nobody waits for."""
        if self._latest.get(turn.page, turn.number) != turn.number or turn.gone():
            raise SupersededError

    def of(self, setting: str, values: Mapping[str, Any], turn: Turn) -> Snapshot:
        """The snapshot of a setting. Raises SupersededError, and ValueError as `ask` does."""
        with self._changed:
            if setting in self._known:
                self._known.move_to_end(setting)
                return self._known[setting]
        with self._place(turn):
            result = self._ask(values, lambda: self.check(turn))
            found = snapshot(result.records, result.summary)
        found |= {"command": result.command, "scenario": result.scenario}
        with self._changed:
            self._known[setting] = found
            while len(self._known) > self._kept:
                self._known.popitem(last=False)
        return found

    @contextmanager
    def _place(self, turn: Turn) -> Iterator[None]:
        """One of the few simulations that may run at once."""
        with self._changed:
            while self._free == 0:
                self.check(turn)
                self._changed.wait(_LOOK_S)
            self.check(turn)
            self._free -= 1
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()
