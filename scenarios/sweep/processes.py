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
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_stop: Event | None = None


class Stopped(Exception):
    """Raised in a helper whose answer nobody waits for any more."""


def check_stop() -> None:
    """Called now and then by long tasks: raises Stopped when the work was given up."""
    if _stop is not None and _stop.is_set():
        raise Stopped


def run_tasks(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    jobs: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """`work` of every task, in the order of the tasks; `progress` is told (done, total).

    `work` has to be a function of a module, tasks and results picklable. One job works in this
    process. An exception of any task is raised here, and the others are given up.
    """
    found: dict[int, Result] = {}

    def note(index: int, result: Result) -> None:
        found[index] = result
        if progress is not None:
            progress(len(found), len(tasks))

    if jobs <= 1 or len(tasks) <= 1:
        for index, task in enumerate(tasks):
            note(index, work(task))
        return [found[index] for index in range(len(tasks))]
    # Fresh processes, not forks: this one may have threads, and they do not survive a fork.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(
        min(jobs, len(tasks)), mp_context=context, initializer=_begin, initargs=(stop,)
    )
    try:
        numbers = {pool.submit(work, task): index for index, task in enumerate(tasks)}
        for done in as_completed(numbers):
            note(numbers[done], done.result())
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    return [found[index] for index in range(len(tasks))]


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
