"""Table folders: what is written reads back, and what is broken is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from sim.latency.table_folder import TableError, read_table
from tests.sim.latency.tables import META, small_table, small_table_folder


def test_a_table_reads_back_as_it_was_written(tmp_path: Path) -> None:
    table, made = read_table(small_table_folder(tmp_path / "table")), small_table()
    assert table.parts.keys() == made.parts.keys()
    for name, part in made.parts.items():
        np.testing.assert_allclose(
            np.sort(table.parts[name].time_s), np.sort(part.time_s), rtol=1e-5
        )
    assert table.source == META["source"] and table.tensor_parallel == 1


def edit(name: str, change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / f"{name}.csv"
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")

    return apply


def meta(key: str, value: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "meta.yaml"
        content = yaml.safe_load(path.read_text())
        if value is None:
            del content[key]
        else:
            content[key] = value
        path.write_text(yaml.safe_dump(content))

    return apply


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (lambda folder: (folder / "linear.csv").unlink(), r"linear\.csv: missing"),
        (lambda folder: (folder / "meta.yaml").unlink(), r"meta\.yaml: missing"),
        (edit("logits", lambda rows: rows[:1]), r"logits\.csv: no points"),
        (edit("logits", lambda rows: [*rows, "lm_head,99,-3"]), r"logits\.csv:9: time_us is '-3'"),
        (
            edit("logits", lambda rows: [*rows, "lm_head,99,nan"]),
            r"logits\.csv:9: time_us is 'nan'",
        ),
        (edit("logits", lambda rows: [*rows, "lm_head,99,x"]), r"logits\.csv:9: time_us is 'x'"),
        (
            edit("logits", lambda rows: [*rows, "lm_head,1.5,3"]),
            r"logits\.csv:9: sequences is '1.5'",
        ),
        (edit("logits", lambda rows: [*rows, rows[1]]), r"logits\.csv:9: the same point as line 2"),
        (edit("logits", lambda rows: [*rows, "lm_head,99"]), r"logits\.csv:9: 2 cells"),
        (edit("logits", lambda rows: [*rows, "lm_head,99,9e12"]), r"logits\.csv:9: .* unit is µs"),
        (
            edit("logits", lambda rows: [rows[0].replace("time_us", "time_ms"), *rows[1:]]),
            r"logits\.csv:1: no column 'time_us'; it has time_ms: times are in µs",
        ),
        (meta("schema_version", 9), r"meta\.yaml: schema_version 9 is not known"),
        (meta("source", None), r"meta\.yaml: source is missing"),
        (meta("tensor_parallel", "two"), r"meta\.yaml: tensor_parallel is 'two'"),
        (meta("model", {"num_layers": 2}), r"meta\.yaml: model\.hidden_size is missing"),
        (meta("host_overhead_us", {"per_iteration": 1}), r"host_overhead_us needs"),
        (meta("host_overhead_us", {"per_iteration": -1, "per_sequence": 0}), r"expected µs >= 0"),
        (lambda folder: (folder / "meta.yaml").write_text("a: ["), r"meta\.yaml: not YAML"),
        (lambda folder: (folder / "meta.yaml").write_text("[1]"), r"expected a mapping"),
    ],
)
def test_a_broken_table_is_refused_in_one_line(
    tmp_path: Path, breakage: Callable[[Path], None], message: str
) -> None:
    folder = small_table_folder(tmp_path / "table")
    breakage(folder)
    with pytest.raises(TableError, match=message) as refusal:
        read_table(folder)
    assert "\n" not in str(refusal.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no such folder"):
        read_table(tmp_path / "nowhere")


def test_a_model_with_experts_needs_their_times(tmp_path: Path) -> None:
    folder = small_table_folder(
        tmp_path / "table", model={**META["model"], "num_experts": 8, "experts_per_token": 2}
    )
    with pytest.raises(TableError, match=r"moe\.csv: missing; the model has experts"):
        read_table(folder)
