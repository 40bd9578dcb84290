"""Run folders are read back whole, or refused in one clear line."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from reports.run.folder import load_run, write_run_report


@pytest.fixture
def folder(tmp_path, make_batched_run):
    run = make_batched_run([6, 8, 4], rows=2)
    run.requests["finished_s"][2] = np.nan
    pq.write_table(pa.table(run.requests), tmp_path / "requests.parquet")
    pq.write_table(pa.table(run.iterations), tmp_path / "iterations.parquet")
    (tmp_path / "summary.json").write_text(json.dumps(run.summary))
    (tmp_path / "scenario.yaml").write_text(yaml.safe_dump(run.scenario))
    return tmp_path


def test_folder_comes_back_as_it_was_written(folder, make_batched_run):
    run = make_batched_run([6, 8, 4], rows=2)
    records, scenario, summary = load_run(folder)
    assert scenario == run.scenario
    assert summary == run.summary
    for name, column in run.iterations.items():
        np.testing.assert_array_equal(records.iterations[name], column)
    assert np.isnan(records.requests["finished_s"][2])
    assert records.requests["rejected"].dtype == bool
    assert len(records.preemptions["request"]) == 0


def test_columns_with_nulls_texts_or_no_rows_are_read(folder):
    table = pq.read_table(folder / "requests.parquet")
    names = pa.array(["a", "<b>", None])
    columns = {"request": pa.array([], pa.int64()), "preempted_s": pa.array([], pa.float64())}
    columns["resumed_s"] = pa.array([], pa.float64())
    pq.write_table(pa.table(columns), folder / "preemptions.parquet")
    index = table.column_names.index("finished_s")
    unknown = pa.array([0.5, None, 0.7])
    table = table.set_column(index, "finished_s", unknown).append_column("request_id", names)
    pq.write_table(table, folder / "requests.parquet")
    records, _, _ = load_run(folder)
    assert records.requests["request_id"].tolist() == ["a", "<b>", None]
    np.testing.assert_array_equal(records.requests["finished_s"], [0.5, np.nan, 0.7])
    assert records.preemptions["resumed_s"].dtype == np.float64
    assert write_run_report(folder).is_file()


def test_preemptions_are_read_where_they_are(folder):
    columns = {"request": [1], "preempted_s": [0.1], "resumed_s": [0.2]}
    pq.write_table(pa.table(columns), folder / "preemptions.parquet")
    records, _, _ = load_run(folder)
    assert records.preemptions["resumed_s"].tolist() == [0.2]


def test_report_is_rebuilt_in_place(folder):
    path = write_run_report(folder)
    assert path == folder / "report.html"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not [file for file in folder.iterdir() if "partial" in file.name]
    assert write_run_report(str(folder)) == path


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("requests.parquet", b"PAR", "not a Parquet file"),
        ("summary.json", b"{", "not JSON"),
        ("summary.json", b"[" * 100_000, "not JSON"),
        ("summary.json", b"[]", "expected a mapping, found list"),
        ("scenario.yaml", b"a: [", "not YAML"),
        ("scenario.yaml", b"[" * 5_000, "not YAML"),
        ("scenario.yaml", b"\xff\xfe\xff", "not YAML"),
        ("scenario.yaml", b"", "expected a mapping, found NoneType"),
    ],
)
def test_damaged_file_is_named_in_one_line(folder, name, content, words):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        load_run(folder)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_folder_that_is_no_run_says_what_it_lacks(folder, tmp_path):
    (folder / "summary.json").unlink()
    (folder / "scenario.yaml").unlink()
    with pytest.raises(ValueError, match=r"lacks summary\.json, scenario\.yaml"):
        write_run_report(folder)
    assert not (folder / "report.html").exists()
    with pytest.raises(ValueError, match="no such directory"):
        load_run(tmp_path / "nowhere")


def test_foreign_parquet_file_is_refused_by_its_missing_column(folder):
    pq.write_table(pa.table({"x": [1]}), folder / "requests.parquet")
    with pytest.raises(ValueError, match="lacks the column 'request'"):
        load_run(folder)


def test_yaml_cannot_run_code(folder):
    (folder / "scenario.yaml").write_text("a: !!python/object/apply:os.system ['true']")
    with pytest.raises(ValueError, match="not YAML"):
        load_run(folder)


def test_reading_a_folder_imports_no_pandas(folder):
    import subprocess
    import sys
    from pathlib import Path

    code = (
        "import sys; from reports.run.folder import load_run; load_run(sys.argv[1]); "
        "assert 'pandas' not in sys.modules"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=root, check=True)
