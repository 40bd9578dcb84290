"""Records kept on disk are those kept in memory, byte for byte; so are the figures made of them."""

import gc
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from scenarios.forecast.forecast import Forecast, forecast
from scenarios.schema.load import load_scenario
from sim import records, scratch

OF_THE_CLOCK = {"wall_s", "simulated_requests_per_s"}


def run(name: str, *settings: str) -> Forecast:
    scenario, origin = load_scenario(name, ["workload.num_requests=60", *settings])
    return forecast(scenario, origin=origin)


def figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """All of a run's but those of the clock."""
    return {name: value for name, value in summary.items() if name not in OF_THE_CLOCK}


@pytest.mark.parametrize("name", ["quickstart", "replica-failure", "disaggregated", "speculation"])
def test_records_on_disk_are_those_in_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records._Table, "KEPT_BYTES", 1 << 10)
    for module in (records, scratch):  # many parts, of one engine or of several
        monkeypatch.setattr(module, "WINDOW", 100)
    kept, stored = run(name), run(name, "metrics.records=disk")
    told = figures(kept.summary)  # sums over pieces differ in their last bits
    told["time_parts_s"] = pytest.approx(told["time_parts_s"], rel=1e-12)
    assert figures(stored.summary) == told
    for table in ("requests", "iterations", "preemptions"):
        one, other = getattr(kept.records, table), getattr(stored.records, table)
        assert list(one) == list(other)
        for column in one:
            assert one[column].dtype == other[column].dtype
            assert one[column].tobytes() == other[column].tobytes(), column
    pieces = list(scratch.windows(stored.records.iterations))
    assert len(pieces) > 1 and all(len(piece["start_s"]) <= 100 for piece in pieces)
    whole = np.concatenate([piece["start_s"] for piece in pieces])
    assert (whole == kept.records.iterations["start_s"]).all()
    assert kept.records.gaps_s.tobytes() == stored.records.gaps_s.tobytes()


def test_a_file_is_closed_when_its_last_user_is_gone(recwarn: pytest.WarningsRecorder) -> None:
    table = scratch.StoredColumns(scratch.Scratch())
    file = table._scratch._file
    assert not file.closed
    del table
    gc.collect()
    assert file.closed and not recwarn.list


def test_a_table_on_disk_is_a_mapping_of_columns() -> None:
    table = scratch.StoredColumns(scratch.Scratch())
    table.append({"number": np.arange(3), "name": np.array(["a", "bc", ""])})
    table.append({"number": np.arange(3, 5), "name": np.array(["d", "ef"])})
    table["half"] = table["number"] / 2
    assert list(table) == ["number", "name", "half"] and "other" not in table
    assert table["name"].tolist() == ["a", "bc", "", "d", "ef"]
    assert {name: values.tolist() for name, values in table.rows(2, 4).items()} == {
        "number": [2, 3],
        "name": ["", "d"],
        "half": [1.0, 1.5],
    }
    assert table.pop("half").tolist() == [0.0, 0.5, 1.0, 1.5, 2.0] and len(table) == 2
    assert scratch.Rows(table, table["number"] > 3)["name"].tolist() == ["ef"]
