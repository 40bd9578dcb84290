"""What a table is fitted to, on made-up measurements."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests import needs

pytest.importorskip("torch", reason=needs.KERNELS)

from calibrate.measure.measured_table import MeasuredTable
from calibrate.measure.rig import Limits
from calibrate.measure.service import Iteration
from scenarios import library
from sim.latency.protocol import HostOverhead
from sim.latency.table import TableLatency
from sim.latency.table_data import LatencyTable
from sim.model.hardware import Interconnect
from tests.sim.latency.tables import small_table

LIMITS = Limits(max_tokens=2048, max_seqs=64, max_context=4096, cache_tokens=65536)
EAGER_US = 40_000.0  # longer than any of the batches below computes


class Measured(MeasuredTable):
    """Its points are a made-up table's."""

    def table(self, *, isolated: bool = False) -> LatencyTable:
        return small_table()


@pytest.mark.parametrize(
    ("decodes", "prefills", "is_eager"),
    [(8, (), False), (16, (), False), (17, (), True), (4, ((64, 0),), True)],
)
def test_parts_wait_for_the_launch_where_the_reader_of_the_table_waits(
    decodes: int, prefills: tuple[Any, ...], is_eager: bool
) -> None:
    """Beyond the largest graph decodes are launched kernel by kernel, as prompts are."""
    model = library.model("llama-3.1-8b")
    journal: Any = SimpleNamespace(records={"eager_launch": [{"eager_us": EAGER_US}]})
    table = Measured(journal, (), None, {"cudagraph_capture_sizes": [8, 16]})  # type: ignore[arg-type]
    iteration = Iteration(decodes, 100 * decodes, 100, prefills, 1.0)
    (whole,) = table._wholes([iteration], model, LIMITS)
    assert ("launch" in whole.parts_us) == is_eager

    reader = TableLatency(
        small_table(),
        model,
        interconnect=Interconnect(1.0, 0.0, 1.0, 0.0),
        host=HostOverhead(0.0, 0.0, "left out"),
        capture_sizes=(8, 16),
        launch_s=EAGER_US / 1e6,
        skew=False,
    )
    expected_us = reader.iteration_s(iteration.features((8, 16))) * 1e6
    assert whole.predicted_us == pytest.approx(expected_us, rel=1e-9)


def test_what_launching_takes_is_told_even_where_the_device_takes_longer() -> None:
    """A fast host behind a large model: a forecast with eager launches needs the figure too."""
    ceilings = {"copy_bytes_per_s": 4e12, "matrix_flops_per_s": 8e14}
    launch = {"eager_us": 4010.0, "graph_us": 4000.0}
    journal: Any = SimpleNamespace(records={"eager_launch": [launch], "ceilings": [ceilings]})
    table = Measured(journal, (), None, {})  # type: ignore[arg-type]
    table._tell()
    assert table.meta["eager_launch_us"] == 4010.0
