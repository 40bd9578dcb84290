"""Who does a command's work: so many processes of this machine, or a Ray cluster."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated

import typer

from scenarios.errors import InputError

if TYPE_CHECKING:
    from scenarios.sweep.point_workers import Workers
    from scenarios.sweep.processes import TaskWorkers

HERE = "this machine"  # --ray without an address
_ADDRESS = re.compile(r"auto|local|ray://\S+|[\w.-]+:\d+")

RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Run on the Ray cluster at this address; without one, on a local one.",
    ),
]


def with_ray_address(arguments: list[str]) -> list[str]:
    """``--ray`` may stand alone: then the cluster is one on this machine."""
    given = list(arguments)
    for at, argument in enumerate(given):
        if argument == "--ray" and not _ADDRESS.fullmatch(" ".join(given[at + 1 : at + 2])):
            given[at] = f"--ray={HERE}"
    return given


def task_workers(jobs: int | None, ray: str | None) -> TaskWorkers:
    """For a command's tasks; raises InputError where both are said."""
    _check_one(jobs, ray)
    if ray is None:
        from scenarios.sweep.processes import Processes

        return Processes(jobs or available_cores())
    from scenarios.sweep.ray_workers import RayTasks

    return RayTasks(None if ray == HERE else ray)


def point_workers(jobs: int | None, ray: str | None) -> Workers:
    """For a sweep's points; raises InputError where both are said."""
    _check_one(jobs, ray)
    if ray is None:
        from scenarios.sweep.point_workers import local_workers

        return local_workers(jobs)
    from scenarios.sweep.ray_workers import ray_workers

    return ray_workers(None if ray == HERE else ray)


def _check_one(jobs: int | None, ray: str | None) -> None:
    if ray is not None and jobs is not None:
        raise InputError("--jobs and --ray: a cluster says itself how many run at once; keep one")


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
