"""Who answers points: this process, a pool on this machine's cores, or a Ray cluster.

All of them run `scenarios.sweep.point_answer.answer`, so that the answers are the same to the byte;
they come in any order.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from scenarios.sweep.point_answer import Task, answer, failure

Answers = Iterator[tuple[Task, str]]
Workers = Callable[[Sequence[Task]], Answers]

_AHEAD = 3  # tasks handed out for each process, so that none waits for the next one
_DIED = "the process that simulated it was killed (out of memory?)"


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def local_workers(jobs: int | None = None) -> Workers:
    """A pool of `jobs` processes, one for each core by default; with one job, this process."""
    number = cores() if jobs is None else jobs

    def run(tasks: Sequence[Task]) -> Answers:
        if number == 1 or len(tasks) <= 1:
            return ((task, answer(task)) for task in tasks)
        return _in_pools(tasks, min(number, len(tasks)))

    return run


def _in_pools(tasks: Sequence[Task], processes: int) -> Answers:
    """All `tasks`, also where one of them kills its process, which breaks the whole pool."""
    todo = list(reversed(tasks))
    while todo:
        suspects: list[Task] = []
        with _pool(processes) as pool:
            running: dict[Future[str], Task] = {}
            while (todo or running) and not suspects:
                while todo and len(running) < _AHEAD * processes:
                    task = todo.pop()
                    running[_submit(pool, task)] = task
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    task = running.pop(future)
                    try:
                        text = future.result()
                    except BrokenProcessPool:
                        suspects.append(task)
                    else:
                        yield task, text
            suspects += running.values()
        for task in suspects:
            yield task, _alone(task)


def _alone(task: Task) -> str:
    """The answer from a process of its own, which may die without taking others along."""
    with _pool(1) as pool:
        try:
            return _submit(pool, task).result()
        except BrokenProcessPool:
            return failure(_DIED)


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """A pool that is gone when the block ends, however it ends."""
    # A fork has everything imported already. Elsewhere than on Linux it is not safe.
    method = "fork" if sys.platform == "linux" else "spawn"
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context(method),
        initializer=_begin,
        initargs=(os.getpid(),),
    )
    whole = False
    try:
        yield pool
        whole = True
    finally:
        if not whole:  # interrupted: nobody waits for answers that nobody wants
            for child in set(multiprocessing.active_children()) - before:
                child.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, task: Task) -> Future[str]:
    """Hand a task to a pool, which forks its processes at the first one."""
    with warnings.catch_warnings():  # of forking beside threads: the children use none of theirs
        warnings.simplefilter("ignore", DeprecationWarning)
        return pool.submit(answer, task)


def _begin(parent: int) -> None:
    """A worker leaves Ctrl-C to its parent, and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
