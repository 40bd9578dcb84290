"""Every tool's own format on a few requests: recognised by what it holds, and counted."""

import json
import re

import pytest

from sim.workload import TraceError, read_trace
from sim.workload.trace_formats import FORMATS, guessed_columns, plain_unit
from sim.workload.traces import Columns, TraceFile, trace_format

S0 = 1_700_000_000


def jsonl(*rows):
    return "".join(f"{json.dumps(row)}\n" for row in rows)


BAILIAN = jsonl(
    {"chat_id": 0, "parent_chat_id": -1, "timestamp": 0.0, "input_length": 40, "output_length": 5,
     "type": "text", "turn": 1, "hash_ids": [1, 2, 3]},
    {"chat_id": 1, "parent_chat_id": 0, "timestamp": 3.057, "input_length": 50, "output_length": 6,
     "type": "text", "turn": 2, "hash_ids": [1, 2, 4, 5]},
)  # fmt: skip
BURSTGPT_2 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,a,1.5,ChatGPT,40,5,45,Conversation log\n8.057,,0.4,GPT-4,50,6,56,API log\n"
)
SERVING_SIM = jsonl(
    {"input_toks": 40, "output_toks": 5, "arrival_time_ns": 101_537_000},
    {"input_toks": 50, "output_toks": 6, "arrival_time_ns": 3_158_537_000},
)


def aiperf(start_s, prompt, output, **changes):
    metrics = {
        "time_to_first_token": {"value": 45.5, "unit": "ms"},
        "request_latency": {"value": 900.0, "unit": "ms"},
        "output_sequence_length": {"value": output, "unit": "tokens"},
        "input_sequence_length": {"value": prompt, "unit": "tokens"},
    }
    metadata = {
        "session_num": 0,
        "x_request_id": f"r{start_s}",
        "request_start_ns": int((S0 + start_s) * 10**9),
        "benchmark_phase": changes.pop("phase", "profiling"),
        "was_cancelled": False,
    }
    return {"metadata": metadata, "metrics": metrics, "error": None} | changes


AIPERF = jsonl(aiperf(0, 40, 5), aiperf(3.057, 50, 6))
GUIDELLM = {
    "metadata": {"version": 1},
    "args": {},
    "benchmarks": [
        {
            "type_": "generative_benchmark",
            "requests": {
                "successful": [
                    {
                        "request_id": f"r{at}",
                        "info": {"timings": {"request_start": S0 + at, "request_end": S0 + at + 1}},
                        "prompt_tokens": prompt,
                        "output_tokens": output,
                        "request_latency": 1.0,
                        "time_to_first_token_ms": 50.0,
                    }
                    for at, prompt, output in ((0.0, 40, 5), (3.057, 50, 6))
                ],
                "incomplete": [],
                "errored": [],
            },
        }
    ],
}
INFERENCE_PERF = [
    {
        "start_time": 100.0 + at,
        "end_time": 101.0 + at,
        "request": "{}",
        "response": "{}",
        "info": {
            "input_tokens": prompt,
            "output_tokens": output,
            "output_token_times": [100.1 + at, 101.0 + at],
        },
        "error": None,
    }
    for at, prompt, output in ((0.0, 40, 5), (3.057, 50, 6))
]
SGLANG = jsonl(
    {"backend": "sglang", "dataset_name": "random", "request_rate": float("inf"),
     "max_concurrency": 1, "duration": 10.0, "completed": 2, "total_input_tokens": 90,
     "total_output_tokens": 11, "request_throughput": 0.4, "mean_ttft_ms": 80,
     "input_lens": [40, 50], "output_lens": [5, 6], "ttfts": [0.1, 0.1],
     "itls": [[0.01] * 4, [0.01] * 5], "errors": ["", ""]},
)  # fmt: skip
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,40,5\n3.057,50,6\n"
SPLITWISE = (
    "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
    "0,2,0,1,1,40,5\n1,2,0,4.057,1,50,6\n"
)
TABLE = "when_ms;input_tokens;completion_tokens\n1000;40;5\n4057;50;6\n"

TIMED = {
    "bailian": BAILIAN,
    "burstgpt": BURSTGPT_2,
    "sharegpt": SERVING_SIM,
    "aiperf": AIPERF,
    "guidellm": json.dumps(GUIDELLM, indent=1),
    "inference-perf": json.dumps(INFERENCE_PERF, indent=1),
    "vidur": VIDUR,
    "splitwise": SPLITWISE,
    "table": TABLE,
}


@pytest.fixture
def write(tmp_path):
    def write_trace(text, name="trace"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_trace


@pytest.mark.parametrize("name", TIMED)
def test_a_format_is_recognised_and_its_times_are_in_its_unit(write, name):
    path = write(TIMED[name])
    assert trace_format(TraceFile.read(path))[0].name == name
    workload = read_trace(path, content=True)
    assert workload.arrival_s.tolist() == pytest.approx([0.0, 3.057])
    assert workload.prompt_tokens.tolist() == [40, 50]
    assert workload.output_tokens.tolist() == [5, 6]


def test_every_format_has_a_name_and_a_way_to_tell_it():
    assert all(one.known_by for name, one in FORMATS.items() if name != "table")


def test_bailian_prompts_share_blocks_of_16_tokens(write):
    content = read_trace(write(BAILIAN), content=True).content
    first, second = content.block_hashes(0, 16, 40), content.block_hashes(1, 16, 50)
    assert content.unit_tokens == 16
    assert first[:2] == second[:2]
    assert len(second) == 3


@pytest.mark.parametrize("size", [16, 48, 64, 512])
def test_the_size_of_a_block_is_told_from_the_number_of_ids(write, size):
    rows = [
        {"timestamp": at, "input_length": n, "output_length": 9,
         "hash_ids": list(range(-(-n // size)))}
        for at, n in enumerate((3000, 4500, 10_500))
    ]  # fmt: skip
    workload = read_trace(write(jsonl(*rows)), content=True)
    assert workload.content.unit_tokens == size
    assert any("by their number" in note for note in workload.notes) == (size != 512)


def test_prompts_without_ids_share_nothing_and_that_is_said(write):
    row = {"timestamp": 0, "input_length": 1000, "output_length": 50}
    workload = read_trace(write(jsonl(row, row)), content=True)
    assert workload.content is None
    assert workload.notes == ("trace: no hash_ids: prompts share nothing",)
    some = read_trace(write(jsonl(row, row | {"hash_ids": [1, 2]})), content=True)
    assert some.notes == ("trace: 1 of 2 requests have no hash_ids: they share none",)


def test_fractions_of_a_millisecond_are_doubted_and_not_replayed_too_fast(write):
    rows = [{"timestamp": at, "input_length": 9, "output_length": 5} for at in (0.0, 3.057)]
    path = write(jsonl(*rows))
    with pytest.raises(TraceError, match=r":2: timestamp is 3\.057, expected whole ms; where"):
        read_trace(path)
    assert read_trace(path, columns=Columns(unit="s")).arrival_s.tolist() == [0.0, 3.057]


def test_warm_up_and_failed_requests_of_aiperf_are_left_out_and_counted(write):
    rows = [
        aiperf(0, 1, 1, phase="warmup"),
        aiperf(1, 40, 5),
        aiperf(2, 9, 9, error={"code": 500}),
        aiperf(3, 50, 6),
        aiperf(4, 50, 6, error={"code": 499}, metrics={}),
    ]
    workload = read_trace(write(jsonl(*rows)))
    assert workload.request_ids == ["r1", "r3"]
    assert workload.notes == (
        "trace: 2 of 4 requests left out: 1 failed; 1 no prompt or no output token "
        "(failed requests)",
        "trace: 1 of 5 requests left out: metadata.benchmark_phase warmup",
    )


def test_a_result_without_arrivals_comes_as_its_client_sent_it(write):
    workload = read_trace(write(SGLANG))
    assert workload.arrival_s.tolist() == [0.0, 0.0]
    assert workload.max_concurrency == 1
    assert "all at once (request_rate inf), no more than 1 at once" in workload.notes[-1]
    rated = SGLANG.replace("Infinity", "4.0")
    drawn = read_trace(write(rated))
    assert drawn.arrival_s[-1] > 0
    assert "drawn (Poisson) at its 4 a second" in drawn.notes[-1]
    twice = read_trace(write(rated + SGLANG))
    assert twice.notes[0] == "trace: 2 results, of which the last is read"


def test_a_summary_has_requests_of_its_mean_lengths(write):
    summary = {
        "backend": "vllm", "num_prompts": 9, "request_rate": 30.0, "burstiness": 1.0,
        "max_concurrency": None, "duration": 40.57, "completed": 9, "total_input_tokens": 8991,
        "total_output_tokens": 100, "request_throughput": 22.18, "mean_ttft_ms": 73.2,
    }  # fmt: skip
    workload = read_trace(write(json.dumps(summary)))
    assert set(workload.prompt_tokens.tolist()) == {999}
    assert workload.output_tokens.sum() == 100
    assert set(workload.output_tokens.tolist()) == {11, 12}
    assert workload.notes[0].startswith("trace: a summary: its 9 requests all have its mean")


def test_aggregates_alone_come_evenly(write):
    figures = {"request_throughput": 2.0, "input_sequence_length": 550.5,
               "output_sequence_length": 100.0, "request_count": 4}  # fmt: skip
    text = json.dumps({name: {"avg": value} for name, value in figures.items()})
    workload = read_trace(write(text))
    assert workload.arrival_s.tolist() == [0.0, 0.5, 1.0, 1.5]
    assert workload.prompt_tokens.sum() == 2202


CHATS = [
    {"id": "c0", "conversations": [{"from": "human", "value": "a" * 40},
                                   {"from": "gpt", "value": "b" * 20},
                                   {"from": "human", "value": "c" * 8},
                                   {"from": "gpt", "value": "d" * 4}]},
    {"id": "c1", "conversations": [{"from": "human", "value": "only asked"}]},
]  # fmt: skip


def test_a_sharegpt_array_has_a_request_for_each_answer(write):
    workload = read_trace(write(json.dumps(CHATS)), content=True)
    assert workload.prompt_tokens.tolist() == [10, 17]  # 40 bytes; 40 + 20 + 8
    assert workload.output_tokens.tolist() == [5, 1]
    assert workload.follows.tolist() == [-1, 0]
    assert workload.content.block_hashes(0, 5, 15) == workload.content.block_hashes(1, 5, 15)
    assert "1 conversations without an answer left out" in workload.notes[0]
    assert "estimated at 4 bytes a token" in workload.notes[1]
    counted = read_trace(write(json.dumps(CHATS)), count_tokens=len)
    assert counted.prompt_tokens.tolist() == [40, 68]
    assert not any("estimated" in note for note in counted.notes)


def test_wildchat_lines_begin_at_their_times(write):
    rows = [
        {"conversation_hash": "a", "timestamp": f"2023-04-09T00:01:0{at}+00:00",
         "conversation": [{"role": "user", "content": "hello"},
                          {"role": "assistant", "content": "hi"}]}
        for at in (0, 3)
    ]  # fmt: skip
    workload = read_trace(write(jsonl(*rows)))
    assert workload.arrival_s.tolist() == [0.0, 3.0]
    assert read_trace(write(jsonl(*rows)), label="conversation_hash").labels == ["a", "a"]


def test_a_table_is_read_by_the_columns_that_are_said(write):
    path = write("t,who,in,out\n1700000000,a,9,5\n1700000002,a,30,5\n1700000003,b,8,5\n")
    said = Columns(arrival="t", prompt="in", output="out", session="who")
    workload = read_trace(path, columns=said, content=True)
    assert workload.arrival_s.tolist() == [0.0, 2.0, 3.0]
    assert workload.notes[0].startswith("trace: a table, arrivals from t (s), prompts from in")
    assert "2 sessions by who: 1 requests are taken to begin with" in workload.notes[1]
    first, second, third = (workload.content.block_hashes(row, 4, 14) for row in range(3))
    assert first[:3] == second[:3]
    assert first[0] != third[0]


def test_dates_of_a_table_are_told_by_themselves(write):
    rows = "2026-01-01T00:00:00Z,9,5\n2026-01-01T00:00:01.5Z,8,5\n"
    assert read_trace(
        write(f"time,prompt_tokens,completion_tokens\n{rows}")
    ).arrival_s.tolist() == [0.0, 1.5]


@pytest.mark.parametrize(
    ("text", "said", "message"),
    [
        ("t,in,out\n1,2,3\n", Columns(prompt="in", output="out", arrival="t"),
         ":2: t is 1, in which unit is not said; say workload.columns: {unit: s}"),
        ("t,in,out\n1,2,3\n", Columns(prompt="in", output="nope"), ":1: no column 'nope' in"),
        ("x,prompt_tokens,output_tokens\n1,2,3\n", None, ":1: which column has the arrival?"),
        (TABLE + "9000;x;5\n", None, ":4: input_tokens is 'x', expected a whole number"),
        (TABLE + "9000;5\n", None, ":4: 2 columns in '9000;5'"),
        (VIDUR + "-1,2,3\n", None, ":4: arrived_at is '-1', expected a number"),
        (json.dumps(INFERENCE_PERF, indent=1).replace("50", '"x"', 1), None,
         "element 1: info.input_tokens is 'x'"),
        (json.dumps(INFERENCE_PERF)[:-1], None, ":1: "),
        (json.dumps(GUIDELLM).replace('"prompt_tokens": 50', '"prompt_tokens": -1'), None,
         ":1: benchmarks[0].requests.successful[1]: prompt_tokens is -1"),
        (json.dumps(GUIDELLM).replace('"successful"', '"other"'), None,
         ":1: benchmarks[0].requests holds"),
        (AIPERF.replace('"value": 50', '"value": null'), None,
         ":2: no metrics.input_sequence_length.value"),
        (jsonl(CHATS[0], {"conversations": [1]}), None, ":2: conversations[0] is no message"),
        (jsonl({"conversations": []}), None, ":1: none of the 1 conversations has an answer"),
        (SGLANG.replace("[40, 50]", "[40]"), None, ":1: 1 input_lens and 2 output_lens"),
        (SPLITWISE.replace("4.057", "soon"), None, ":3: arrival_timestamp is 'soon'"),
    ],
)  # fmt: skip
def test_a_malformed_trace_is_one_line_that_names_the_place(write, text, said, message):
    with pytest.raises(TraceError, match=re.escape(message)) as caught:
        read_trace(write(text), columns=said, content=True)
    assert len(str(caught.value)) <= 300
    assert "\n" not in str(caught.value)


def test_names_of_columns_are_told_however_they_are_written():
    found = guessed_columns(["createdAt", "usage.prompt_tokens", "Completion Tokens", "sessionId"])
    assert found == Columns("createdAt", "usage.prompt_tokens", "Completion Tokens", "sessionId")
    assert [plain_unit(name) for name in ("arrival_ms", "start (ns)", "t_seconds", "time")] == [
        "ms", "ns", "s", None,
    ]  # fmt: skip
