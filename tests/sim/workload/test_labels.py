"""Classes of requests: from a column of a trace, or drawn by shares."""

from pathlib import Path

import numpy as np
import pytest

from sim.workload import TraceError, read_trace
from sim.workload.labels import drawn_labels

BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def test_labels_follow_their_requests_when_rows_are_sorted_and_failed_ones_left_out(
    tmp_path: Path,
) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(
        BURSTGPT
        + "5,ChatGPT,10,20,30,Conversation log\n"
        + "1,GPT-4,11,0,11,API log\n"  # failed
        + '3,GPT-4,12,5,17,"API log"\n'
        + "\n4,ChatGPT,13,6,19, Conversation log \n"
    )
    workload = read_trace(path, label="Log Type")
    assert workload.prompt_tokens.tolist() == [12, 13, 10]
    assert workload.labels == ["API log", "Conversation log", "Conversation log"]
    assert workload.slice(1).labels == ["Conversation log", "Conversation log"]
    assert read_trace(path, label="Model").labels == ["GPT-4", "ChatGPT", "ChatGPT"]
    assert read_trace(path).labels is None


def test_labels_come_from_a_key_of_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    path.write_text(
        '{"timestamp": 20, "input_length": 5, "output_length": 2, "kind": "b"}\n'
        '{"timestamp": 10, "input_length": 6, "output_length": 2, "kind": 7}\n'
    )
    assert read_trace(path, label="kind").labels == ["7", "b"]
    with pytest.raises(TraceError, match=r"mooncake\.jsonl:1: no key 'class', which names"):
        read_trace(path, label="class")


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(BURSTGPT + "5,ChatGPT,10,20,30,Conversation log\n")
    with pytest.raises(TraceError, match=r"burst\.csv:1: no column 'Class' in "):
        read_trace(path, label="Class")


def test_drawn_labels_have_their_shares_and_longer_draws_begin_the_same_way() -> None:
    shares = {"chat": 3.0, "report": 1.0}
    labels = drawn_labels(np.random.default_rng(1), 20_000, shares)
    assert labels.count("chat") / 20_000 == pytest.approx(0.75, abs=0.01)
    assert set(labels) == {"chat", "report"}
    assert drawn_labels(np.random.default_rng(1), 50, shares) == labels[:50]
