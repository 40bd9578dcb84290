"""Points on a Ray cluster: its scheduler, its failure handling, our answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from scenarios.errors import InputError
from scenarios.sweep.point_answer import Task, answer, failure
from scenarios.sweep.point_key import forecast_version
from scenarios.sweep.point_workers import Answers, Workers

_AHEAD = 3  # tasks handed out for each core of the cluster


def ray_workers(address: str | None = None) -> Workers:
    """The Ray cluster at `address`; without one, one that is started on this machine.

    Its nodes need the same Orcast, and see the files that the scenario names. Raises InputError
    where Ray is not installed or not reached.
    """
    try:
        import ray  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise InputError(
            "--ray needs the package ray: pip install 'orcast[cluster]', or leave it out to use "
            "this machine's cores"
        ) from None

    def run(tasks: Sequence[Task]) -> Answers:
        mine = not ray.is_initialized()
        if mine:
            _connect(ray, address)
        try:
            yield from _on_cluster(ray, tasks)
        finally:
            if mine:
                ray.shutdown()

    return run


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


def _on_cluster(ray: Any, tasks: Sequence[Task]) -> Answers:
    remote = ray.remote(_answer_there)
    todo = list(reversed(tasks))
    running: dict[Any, Task] = {}
    version, folder = forecast_version(), str(Path.cwd())
    while todo or running:
        ahead = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while todo and len(running) < ahead:
            task = todo.pop()
            running[remote.remote(task, folder)] = task
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            task = running.pop(reference)
            try:
                theirs, text = ray.get(reference)
            except ray.exceptions.RayError as error:
                yield task, failure(_why(error))
                continue
            if theirs != version:
                raise InputError(
                    "--ray: a node of the cluster has another version of Orcast or numpy than this "
                    "machine, and would give other answers: install the same there"
                )
            yield task, text


def _answer_there(task: Task, folder: str) -> tuple[str, str]:
    """On a node: the answer, and what it was computed with. Relative paths are as they were."""
    with suppress(OSError):
        os.chdir(folder)
    return forecast_version(), answer(task)


def _why(error: Exception) -> str:
    """The cluster's reason in one line; InputError where no point could do better."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ModuleNotFoundError) or "ModuleNotFoundError" in str(error):
        raise InputError(
            "--ray: the cluster's nodes lack a package that Orcast needs: install Orcast there"
        )
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"Ray: {type(error).__name__}: {line.strip()}"
