"""Plans and sizings on a Ray cluster: the same answers, whoever dies meanwhile."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from scenarios.errors import InputError
from scenarios.plan.plan import plan
from scenarios.sweep.ray_workers import RayTasks
from tests import needs
from tests.scenarios.plan.planning import small

pytestmark = needs.ray

ASKED = (
    "plan.candidates={gpus: [h100-sxm, a100-80gb]}",
    *("plan.seeds=3", "plan.requests=100", "plan.tolerance=0.3", "plan.load.request_rate=45"),
)


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def doubled_by_who_survives(task: tuple[int, str]) -> int:
    """The worker of task 3 is killed the first time."""
    number, folder = task
    try:
        Path(folder, str(number)).touch(exist_ok=number != 3)
    except FileExistsError:
        return 2 * number
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def refused(task: str) -> str:
    raise InputError(f"{task}: no such thing")


def test_a_killed_worker_loses_nothing(two_workers: None, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    with RayTasks() as workers:
        found = workers.run(
            doubled_by_who_survives,
            [(number, str(tmp_path)) for number in range(8)],
            progress=lambda *told: done.append(told),
        )
    assert found == [0, 2, 4, 6, 8, 10, 12, 14]
    assert done == [(number, 8) for number in range(1, 9)]


def test_what_a_task_refuses_is_refused_here(two_workers: None) -> None:
    with RayTasks() as workers, pytest.raises(InputError, match="one: no such thing"):
        workers.run(refused, ["one"])


def test_a_plan_on_a_cluster_is_the_same_to_the_byte(two_workers: None) -> None:
    assert json.dumps(plan(small(*ASKED), workers=RayTasks())) == json.dumps(plan(small(*ASKED)))
