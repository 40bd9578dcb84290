"""Traces packed with zstd or as Parquet, tokenizers, and a scenario's `columns`."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from scenarios.errors import InputError
from scenarios.forecast.requests import draw_workload
from scenarios.forecast.trace_opening import open_trace, read_scenario_trace, token_counter
from scenarios.schema.load import parse_scenario
from sim.workload import TraceError, read_trace
from tests import needs

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"


def test_a_trace_packed_with_zstd_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.zst"
    with pa.output_stream(path, compression="zstd") as stream:
        stream.write(AZURE.encode())
    assert read_scenario_trace(str(path)).prompt_tokens.tolist() == [374]
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(TraceError, match=r"t\.csv\.zst: a damaged zstd file"):
        open_trace(path)


def test_a_parquet_table_is_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table(
        {
            "arrival_s": [0.0, 1.5],
            "prompt_tokens": [7, 8],
            "output_tokens": [3, 4],
            "kind": ["a", "b"],
        }
    )
    parquet.write_table(table, path)
    workload = read_trace(open_trace(path), label="kind")
    assert workload.arrival_s.tolist() == [0.0, 1.5]
    assert workload.labels == ["a", "b"]
    path.write_bytes(b"PAR1" + bytes(20))
    with pytest.raises(TraceError, match="a damaged Parquet file"):
        open_trace(path)


def test_a_tokenizer_is_a_file_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none/x\.json: no such file, expected a tokenizer\.json"):
        token_counter("none/x.json")


def test_a_tokenizer_counts_a_traces_text(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason=needs.TOKENIZERS)
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    assert token_counter(str(tmp_path))("a b c d") == 4
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TraceError, match=r"tokenizer\.json: no tokenizer of Hugging Face's"):
        token_counter(str(tmp_path))


SCENARIO = {"name": "t", "model": "llama-3.1-8b", "hardware": {"gpu": "h100-sxm"}}


def test_a_scenario_names_its_traces_columns_and_unit(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"t": at, "in": 9, "out": 5}) + "\n" for at in (0, 250)))
    columns = {"arrival": "t", "prompt": "in", "output": "out", "unit": "ms"}
    said = SCENARIO | {"workload": {"trace": str(path), "columns": columns}}
    scenario = parse_scenario(said, origin="t")
    workload = draw_workload(scenario.workload, scenario.engine)
    assert workload.arrival_s.tolist() == [0.0, 0.25]
    with pytest.raises(InputError, match="unit"):
        said = SCENARIO | {"workload": {"trace": "x", "columns": {"unit": "min"}}}
        parse_scenario(said, origin="t")


@pytest.mark.parametrize("rate", ["inf", float("inf")])
def test_an_infinite_rate_is_all_at_once(rate: object) -> None:
    length = {"distribution": "fixed", "tokens": 9}
    said = {
        "arrivals": {"request_rate": rate},
        "lengths": {"prompt": length, "output": length},
        "num_requests": 3,
    }
    scenario = parse_scenario(SCENARIO | {"workload": said}, origin="t")
    workload = draw_workload(scenario.workload, scenario.engine)
    assert workload.arrival_s.tolist() == [0.0, 0.0, 0.0]


def test_arrivals_follow_a_profile() -> None:
    length = {"distribution": "fixed", "tokens": 9}
    arrivals = {"process": "constant", "request_rate": 2.0, "profile": [[0, 1], [5, 1], [5, 2]]}
    said = {
        "arrivals": arrivals,
        "lengths": {"prompt": length, "output": length},
        "num_requests": 15,
    }
    scenario = parse_scenario(SCENARIO | {"workload": said}, origin="t")
    drawn = draw_workload(scenario.workload, scenario.engine)
    assert drawn.arrival_s.tolist() == pytest.approx([*np.arange(10) / 2, 5, 5.25, 5.5, 5.75, 6])
    for wrong in ({"profile": [[0, 1]]}, {"profile": [[0, 1], [1, 0]]}, {"repeat": True}):
        changed = said | {"arrivals": {"request_rate": 2.0} | wrong}
        with pytest.raises(InputError, match="profile"):
            parse_scenario(SCENARIO | {"workload": changed}, origin="t")
