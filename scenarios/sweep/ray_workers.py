"""Tasks on a Ray cluster: its scheduler, its failure handling, our answers.

A task whose worker or node dies is done again by another, as often as Ray's ``max_retries`` says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from scenarios.errors import InputError
from scenarios.sweep.point_answer import Task, answer, failure
from scenarios.sweep.point_key import forecast_version
from scenarios.sweep.point_workers import Answers, Workers

Given = TypeVar("Given")
Result = TypeVar("Result")

_AHEAD = 3  # tasks handed out for each core of the cluster


def ray_workers(address: str | None = None) -> Workers:
    """Points on the Ray cluster at `address`; without one, on one started on this machine.

    Its nodes need the same Orcast, and see the files that the scenario names. Raises InputError
    where Ray is not installed or not reached.
    """
    ray = _installed()

    def run(tasks: Sequence[Task]) -> Answers:
        with _connected(ray, address):
            for index, reference in _on_cluster(ray, answer, tasks):
                try:
                    yield tasks[index], _result(ray, reference)
                except ray.exceptions.RayError as error:
                    yield tasks[index], failure(_why(error))

    return run


class RayTasks:
    """`Processes` on a Ray cluster, with the same answers; a context manager as they are."""

    def __init__(self, address: str | None = None) -> None:
        """As of `ray_workers`."""
        self._ray = _installed()
        self._address = address
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._open.enter_context(_connected(self._ray, self._address))
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def run(
        self,
        work: Callable[[Given], Result],
        tasks: Sequence[Given],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Result]:
        """`work` of every task, in their order; raises what a task raised, InputError for one
        whose every worker died."""
        found: dict[int, Result] = {}
        for index, reference in _on_cluster(self._ray, work, tasks):
            try:
                found[index] = _result(self._ray, reference)
            except self._ray.exceptions.RayTaskError as error:
                _why(error)
                raise error.cause from None
            except self._ray.exceptions.RayError as error:
                raise InputError(f"--ray: {_why(error)}") from None
            if progress is not None:
                progress(len(found), len(tasks))
        return [found[index] for index in range(len(tasks))]


def _installed() -> Any:
    try:
        import ray  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise InputError(
            "--ray needs the package ray: pip install 'orcast[cluster]', or leave it out to use "
            "this machine's cores"
        ) from None
    return ray


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """A connection of our own is closed in the end; one that was there stays."""
    mine = not ray.is_initialized()
    if mine:
        _connect(ray, address)
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # says so itself otherwise
    try:
        ray.init(
            address=address,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        line = str(error).strip().split("\n", 1)[0]
        raise InputError(f"--ray {address or ''}: no cluster: {line}") from None


def _on_cluster(
    ray: Any, work: Callable[[Given], Result], tasks: Sequence[Given]
) -> Iterator[tuple[int, Any]]:
    """The tasks' numbers and references to their results, as they are done."""
    remote = ray.remote(_done_there)
    todo = list(reversed(range(len(tasks))))
    running: dict[Any, int] = {}
    folder = str(Path.cwd())
    while todo or running:
        ahead = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while todo and len(running) < ahead:
            index = todo.pop()
            running[remote.remote(work, tasks[index], folder)] = index
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            yield running.pop(reference), reference


def _result(ray: Any, reference: Any) -> Any:
    theirs, result = ray.get(reference)
    if theirs != forecast_version():
        raise InputError(
            "--ray: a node of the cluster has another version of Orcast or numpy than this "
            "machine, and would give other answers: install the same there"
        )
    return result


def _done_there(work: Callable[[Given], Result], task: Given, folder: str) -> tuple[str, Result]:
    """On a node: the result, and what it was computed with. Relative paths are as they were."""
    with suppress(OSError):
        os.chdir(folder)
    return forecast_version(), work(task)


def _why(error: Exception) -> str:
    """The cluster's reason in one line; InputError where no point could do better."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ModuleNotFoundError) or "ModuleNotFoundError" in str(error):
        raise InputError(
            "--ray: the cluster's nodes lack a package that Orcast needs: install Orcast there"
        )
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"Ray: {type(error).__name__}: {line.strip()}"
