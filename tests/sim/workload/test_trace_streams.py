"""genai-perf's profile_export.json: what a client saw, chunk by chunk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from calibrate.recordings.measurement import read_measurement
from sim.workload import read_trace
from sim.workload.trace_file import TraceError

MS = 1_000_000


def event(text: str | None, **further: Any) -> dict[str, str]:
    delta = {"role": "assistant"} if text is None else {"content": text}
    one = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}
    return {"response": f"data: {json.dumps(one | further)}\n\n"}


def profile(*requests: dict[str, Any]) -> dict[str, Any]:
    experiment = {"mode": "concurrency", "value": 10}
    return {
        "version": "2.40.0",
        "service_kind": "openai",
        "endpoint": "v1/chat/completions",
        "experiments": [{"experiment": experiment, "requests": list(requests)}],
    }


def request(at_ms: int, texts: list[str | None], *, step_ms: int = 10) -> dict[str, Any]:
    payload = {"messages": [{"role": "user", "content": "x" * 80}], "stream": True}
    outputs = [*map(event, texts), {"response": "data: [DONE]\n\n"}]
    return {
        "timestamp": (1_700_000_000_000 + at_ms) * MS,
        "request_inputs": {"payload": json.dumps(payload)},
        "response_timestamps": [
            (1_700_000_000_000 + at_ms + 40 + step_ms * number) * MS
            for number in range(len(outputs))
        ],
        "response_outputs": outputs,
    }


def written(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_responses_without_text_are_no_tokens(tmp_path: Path) -> None:
    """The first and the last have no text: 50 ms to the first token, 10 ms between two of them."""
    file = written(
        tmp_path / "profile_export.json",
        profile(request(500, [None, "a", "b"]), request(0, [None, "a", "b", "c", ""])),
    )
    workload = read_trace(file)
    assert workload.arrival_s.tolist() == [0.0, 0.5]
    assert workload.prompt_tokens.tolist() == [20, 20]
    assert workload.output_tokens.tolist() == [3, 2]
    assert any("estimated" in note for note in workload.notes)
    measured = read_measurement(file)
    assert measured.ttft_s.tolist() == pytest.approx([0.05, 0.05])
    assert measured.tpot_s.tolist() == pytest.approx([0.01, 0.01])
    assert read_trace(file, count_tokens=len).output_tokens.tolist() == [3, 2]


def test_several_events_in_a_response_and_the_engines_usage(tmp_path: Path) -> None:
    both = request(0, ["a", "b"])
    first, second, done = both["response_outputs"]
    usage = event("c", usage={"prompt_tokens": 33, "completion_tokens": 5})
    merged = {"response": first["response"] + second["response"]}
    both |= {
        "response_outputs": [merged, usage, done],
        "response_timestamps": both["response_timestamps"],
    }
    workload = read_trace(written(tmp_path / "p.json", profile(both)))
    assert (workload.prompt_tokens[0], workload.output_tokens[0]) == (33, 5)


def test_tritons_own_answers_and_those_that_failed(tmp_path: Path) -> None:
    triton = {
        "timestamp": 1,
        "request_inputs": {"text_input": "This is test"},
        "response_timestamps": [3, 5, 8],
        "response_outputs": [{"text_output": "I"}, {"text_output": " like"}, {"text_output": "."}],
    }
    failed = {
        "timestamp": 2, "request_inputs": {}, "response_timestamps": [9],
        "response_outputs": [{"response": ""}],
    }  # fmt: skip
    file = written(tmp_path / "p.json", profile(triton, failed))
    assert read_trace(file).output_tokens.tolist() == [3]
    assert read_measurement(file).completed.tolist() == [True, False]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"response_timestamps": [1]}, "expected lists of equally many"),
        ({"timestamp": "soon"}, "timestamp"),
        ({"response_outputs": [1, 2, 3]}, "expected objects"),
    ],
)
def test_what_is_no_profile_is_one_line(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    file = written(tmp_path / "p.json", profile(request(0, ["a", "b"]) | change))
    with pytest.raises(TraceError, match=words) as error:
        read_trace(file)
    assert "p.json:1: experiments[0].requests[0]" in str(error.value)
