"""The time of a real run."""

from __future__ import annotations

import time
from collections.abc import Callable

_SPIN_S = 1e-3  # sleeping is no more exact than this


class Clock:
    """Wall-clock seconds since its start, minus the time that was skipped."""

    def __init__(self, *, skip_idle: bool = False) -> None:
        """`skip_idle`: an engine with nothing to do jumps to the next arrival and does not wait."""
        self._start_s = time.perf_counter()
        self._skip_idle = skip_idle

    def restart(self) -> None:
        """Begin at 0 again."""
        self._start_s = time.perf_counter()

    def now_s(self) -> float:
        return time.perf_counter() - self._start_s

    def wait_until(self, at_s: float, *, unless: Callable[[], bool]) -> None:
        """Return at `at_s`, at once where that has passed, or soon after `unless` holds."""
        if self._skip_idle:
            self._start_s = min(self._start_s, time.perf_counter() - at_s)
            return
        while (left_s := at_s - self.now_s()) > 0:
            if unless():
                return
            if left_s > _SPIN_S:
                time.sleep(min(left_s - _SPIN_S, 0.1))
