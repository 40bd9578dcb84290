"""Composed tables on disk: read back as they were, and composed anew whenever that fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibrate.tables.kept_tables import kept_folder, kept_table
from sim.latency.table_data import LatencyTable
from sim.latency.table_folder import table_of

META = {"source": "test", "parts": {"linear": {"origin": "measured", "by": "vllm"}}, "share": 0.1}
ROWS = {
    "linear": [("qkv_proj", 1, 0.1), ("qkv_proj", 16, 1 / 3)],
    "moe": [(1, 8, 3.0), (4, 8, 4.0)],
}


class Composer:
    """Counts how often it was asked."""

    def __init__(self, table: LatencyTable | None) -> None:
        self.table, self.asked = table, 0

    def __call__(self) -> LatencyTable | None:
        self.asked += 1
        return self.table


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "orcast" / "tables"


def test_a_table_is_composed_once_and_read_back_to_the_last_bit(cache: Path) -> None:
    compose = Composer(table_of(META, ROWS))
    first, second = (kept_table({"model": "a"}, compose) for _ in range(2))
    assert compose.asked == 1 and kept_folder() == cache
    assert first is not None and second is not None and first is not second
    assert second.meta == first.meta
    for name, part in first.parts.items():
        again = second.parts[name]
        assert (again.time_s == part.time_s).all()
        assert again.coordinates.keys() == part.coordinates.keys()
        assert all((again.coordinates[c] == part.coordinates[c]).all() for c in part.coordinates)
        assert (again.operation is None) == (part.operation is None)
    assert second.parts["linear"].operation is not None
    assert list(second.parts["linear"].operations()) == ["qkv_proj"]
    assert [path.suffix for path in cache.iterdir()] == [".npz"], "nothing half-written is left"


def test_what_goes_into_a_table_is_in_its_name() -> None:
    compose = Composer(table_of(META, ROWS))
    for model in ("a", "b", "a"):
        kept_table({"model": model}, compose)
    assert compose.asked == 2


def test_that_nothing_is_measured_is_kept_too() -> None:
    compose = Composer(None)
    assert [kept_table({"model": "a"}, compose) for _ in range(2)] == [None, None]
    assert compose.asked == 1


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a whole archive", b"text"])
def test_a_broken_file_is_composed_anew_and_replaced(cache: Path, content: bytes) -> None:
    compose = Composer(table_of(META, ROWS))
    kept_table({"model": "a"}, compose)
    (path,) = cache.iterdir()
    path.write_bytes(content)
    found = kept_table({"model": "a"}, compose)
    assert compose.asked == 2 and found is compose.table
    kept_table({"model": "a"}, compose)
    assert compose.asked == 2, "it was replaced"


def test_a_file_that_lacks_its_head_is_composed_anew(cache: Path) -> None:
    compose = Composer(table_of(META, ROWS))
    kept_table({"model": "a"}, compose)
    (path,) = cache.iterdir()
    with path.open("wb") as file:
        np.savez(file, other=np.zeros(3))
    kept_table({"model": "a"}, compose)
    assert compose.asked == 2


def test_a_folder_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compose = Composer(table_of(META, ROWS))
    assert kept_table({"model": "a"}, compose) is compose.table
