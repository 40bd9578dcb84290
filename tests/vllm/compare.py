"""One workload through vLLM and through Orcast."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from tests.vllm.schedule import Schedule, difference
from tests.vllm.simulated import simulated
from tests.vllm.workloads import Workload

RECORD = Path(__file__).with_name("record.py")


class Vllm:
    """A process with vLLM's scheduler, which takes seconds to start and then milliseconds."""

    def __init__(self, python: str) -> None:
        """`python`: one that has vLLM."""
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by __exit__
        self._process = subprocess.Popen(
            [python, "-P", str(RECORD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> Vllm:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()
        self._errors.close()

    def schedule(self, workload: Workload) -> Schedule:
        """vLLM's schedule. Raises RuntimeError with what it says where it has none."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps(workload.for_vllm()), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError("vLLM's scheduler ended:\n" + self._errors.read()[-4000:])
        return Schedule.from_vllm(json.loads(line))


def orcast_differs(workload: Workload, vllm: Schedule) -> str | None:
    """Where Orcast's schedule of a workload parts from vLLM's, in words; None where nowhere."""
    try:
        orcast = simulated(workload)
    except Exception as error:  # one workload of many: whatever it is, it is a difference
        return f"Orcast raises {type(error).__name__}: {error}"
    return difference(vllm, orcast, ticks_per_s=workload.ticks_per_s)
