"""Independent tasks on several processes: results in order, whatever finishes first.

A process that is asked to end (an interrupt, a full disk, an error in one task) ends its helpers
too, at their next look at the shared flag; a helper whose parent was killed ends by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.synchronize import Event
from typing import Protocol, Self, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_stop: Event | None = None


class Stopped(Exception):
    """Raised in a helper whose answer nobody waits for any more."""


def check_stop() -> None:
    """Called now and then by long tasks: raises Stopped when the work was given up."""
    if _stop is not None and _stop.is_set():
        raise Stopped


class TaskWorkers(Protocol):
    """Who does independent tasks: `Processes` of this machine, or a cluster's."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def run(
        self,
        work: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Result]:
        """`work` of every task, in their order; `progress` is told (done, total)."""


class Processes:
    """TaskWorkers that are kept for all the tasks of a question: each costs a start of Python's.

    A context manager: what is left to do as it ends is given up.
    """

    def __init__(self, jobs: int) -> None:
        """One job works in this process."""
        self._jobs = jobs
        self._pool: ProcessPoolExecutor | None = None
        # Fresh processes, not forks: this one may have threads, and they do not survive a fork.
        self._context = multiprocessing.get_context("spawn")
        self._stop: Event | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None and self._stop is not None:
            self._stop.set()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(
        self,
        work: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Result]:
        """`work` of every task, in the order of the tasks; `progress` is told (done, total).

        `work` has to be a function of a module, tasks and results picklable. An exception of any
        task is raised here.
        """
        found: dict[int, Result] = {}

        def note(index: int, result: Result) -> None:
            found[index] = result
            if progress is not None:
                progress(len(found), len(tasks))

        if self._jobs <= 1 or len(tasks) <= 1:
            for index, task in enumerate(tasks):
                note(index, work(task))
        else:
            pool = self._helpers()
            numbers = {pool.submit(work, task): index for index, task in enumerate(tasks)}
            for done in as_completed(numbers):
                note(numbers[done], done.result())
        return [found[index] for index in range(len(tasks))]

    def _helpers(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._stop = self._context.Event()
            self._pool = ProcessPoolExecutor(
                self._jobs, mp_context=self._context, initializer=_begin, initargs=(self._stop,)
            )
        return self._pool


def _begin(stop: Event) -> None:
    """In a helper: leave the keyboard to the parent, and end when it is gone."""
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
