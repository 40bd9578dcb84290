"""Trace readers on small files and, where the data folder is there, on the real ones."""

import json

import numpy as np
import pytest

from sim.workload import read_trace
from sim.workload.lengths import empirical
from sim.workload.source import RequestSource
from sim.workload.trace_file import TraceError
from sim.workload.traces import read_column
from tests import needs

DATA = needs.SHARED

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:00,12,7
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,GPT-4,1087,0,1087,API log
45,ChatGPT,417,276,693,Conversation log
"""
MOONCAKE = [
    {"timestamp": 27482, "input_length": 655, "output_length": 52, "hash_ids": [46, 47]},
    {"timestamp": 30535, "input_length": 672, "output_length": 26, "hash_ids": [46, 48]},
]
SHAREGPT = [
    {
        "input_toks": 4,
        "output_toks": 2,
        "arrival_time_ns": 1_700_000_000_000_000_001,
        "input_tok_ids": [1, 2, 3, 4],
        "output_tok_ids": [5, 6],
    },
    {
        "input_toks": 6,
        "output_toks": 1,
        "arrival_time_ns": 1_700_000_000_500_000_001,
        "input_tok_ids": [1, 2, 3, 4, 5, 6],
        "output_tok_ids": [9],
    },
]
REQUESTS = [
    {"request_id": "b", "input_toks": 8, "output_toks": 3, "arrival_time": 9.0, "queued_ts": 102.5},
    {"request_id": "a", "input_toks": 7, "output_toks": 4, "arrival_time": 9.5, "queued_ts": 100.0},
]
BENCH = {
    "backend": "vllm",
    "duration": 3.0,
    "max_concurrency": None,
    "input_lens": [10, 20, 30],
    "output_lens": [5, 0, 7],
    "ttfts": [0.1, 0.0, 0.2],
    "itls": [[0.01] * 4, [], [0.01] * 6],
    "start_times": [50.0, 51.0, 50.25],
}


@pytest.fixture
def write(tmp_path):
    """A function that writes a trace: text as it is, a list as JSONL, a dict as JSON."""

    def write_trace(content, name="trace"):
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(f"{json.dumps(row)}\n" for row in content)
        elif isinstance(content, dict):
            content = json.dumps(content)
        path.write_bytes(content.encode())
        return path

    return write_trace


def real(name):
    path = DATA / name
    if not path.exists():
        needs.skip("data", name)
    return path


def test_azure_times_are_read_to_the_seventh_digit(write):
    workload = read_trace(write(AZURE, "azure.csv"))
    assert workload.arrival_s.tolist() == [0.0, 4.314579, 13.31941]
    assert workload.prompt_tokens.tolist() == [374, 396, 12]
    assert workload.output_tokens.tolist() == [44, 109, 7]
    assert workload.max_tokens.tolist() == [44, 109, 7]
    assert workload.name == "azure"
    assert workload.content is None
    assert workload.notes == ()


@pytest.mark.parametrize(
    "text",
    [
        AZURE.replace("\n", "\r\n"),
        AZURE.rstrip("\n"),
        "\ufeff" + AZURE,
        "\n" + AZURE.replace("\n", "\n\n"),
        AZURE.replace(" 18", "T18"),
        AZURE.replace(",3", "+00:00,3").replace(",12", "+00:00,12"),
        AZURE.replace(",3", "Z,3").replace(",12", "Z,12"),
        AZURE.replace(",3", ", 3").replace(",44", ',"44"'),
    ],
    ids=[
        "crlf",
        "no last newline",
        "bom",
        "blank lines",
        "T",
        "utc offset",
        "zulu",
        "blanks, quotes",
    ],
)
def test_azure_files_are_read_however_they_were_saved(write, text):
    workload = read_trace(write(text))
    assert workload.arrival_s.tolist() == [0.0, 4.314579, 13.31941]
    assert workload.prompt_tokens.tolist() == [374, 396, 12]


def test_columns_are_found_by_name_in_any_order(write):
    workload = read_trace(
        write("GeneratedTokens,Who,TIMESTAMP,ContextTokens\n7,me,2024-05-10 00:00:00.5,9\n")
    )
    assert workload.prompt_tokens.tolist() == [9]
    assert workload.output_tokens.tolist() == [7]


def test_burstgpt_drops_failed_requests_and_says_how_many(write):
    workload = read_trace(write(BURSTGPT, "burst.csv"))
    assert workload.arrival_s.tolist() == [0.0, 40.0]
    assert workload.prompt_tokens.tolist() == [472, 417]
    assert workload.output_tokens.tolist() == [18, 276]
    assert workload.notes == (
        "burst.csv: 1 of 3 requests left out: no prompt or no output token (failed requests)",
    )


def test_commas_inside_quotes_separate_nothing(write):
    quoted = BURSTGPT.replace("API log", '"API, log"')
    assert quoted != BURSTGPT
    workload = read_trace(write(quoted, "burst.csv"))
    assert workload.prompt_tokens.tolist() == [472, 417]


def test_mooncake_times_are_milliseconds_and_ids_stand_for_512_tokens(write):
    path = write(MOONCAKE)
    assert read_trace(path).content is None
    workload = read_trace(path, content=True)
    assert workload.arrival_s.tolist() == pytest.approx([0.0, 3.053])
    assert workload.prompt_tokens.tolist() == [655, 672]
    assert workload.output_tokens.tolist() == [52, 26]
    first, second = (
        workload.content.block_hashes(i, 16, int(workload.prompt_tokens[i])) for i in range(2)
    )
    assert (len(first), len(second)) == (40, 42)
    assert first[:32] == second[:32]
    assert not set(first[32:]) & set(second[32:])


def test_mooncake_prompts_whose_last_part_has_no_id_share_up_to_the_last_one(write):
    rows = [{**row, "hash_ids": row["hash_ids"][:1]} for row in MOONCAKE]
    content = read_trace(write(rows), content=True).content
    assert len(content.block_hashes(0, 16, 655)) == 32


def test_sharegpt_token_ids_become_content_when_asked(write):
    path = write(SHAREGPT)
    assert read_trace(path).content is None
    workload = read_trace(path, content=True)
    assert workload.arrival_s.tolist() == [0.0, 0.5]
    first, second = (workload.content.block_hashes(request, 2, 6) for request in range(2))
    assert first == second[:2]  # four prompt tokens; the answer is not content
    assert len(second) == 3


def test_sharegpt_answers_are_content_only_on_request(write):
    content = read_trace(write(SHAREGPT), output_content=True).content
    assert content.block_hashes(0, 2, 6) == content.block_hashes(1, 2, 6)


def test_rows_out_of_order_are_sorted_and_take_their_content_along(write):
    swapped = read_trace(write(SHAREGPT[::-1], "a"), content=True)
    assert swapped.prompt_tokens.tolist() == [4, 6]
    in_order = read_trace(write(SHAREGPT, "b"), content=True)
    assert swapped.content.ids.tolist() == in_order.content.ids.tolist()


def test_equal_times_keep_the_order_of_the_file(write):
    rows = [{**REQUESTS[0], "request_id": str(i), "queued_ts": 5.0 - i // 10} for i in range(50)]
    ids = read_trace(write(rows)).request_ids
    assert ids == [str(i) for tens in (40, 30, 20, 10, 0) for i in range(tens, tens + 10)]


def test_vllm_requests_arrive_when_they_were_queued(write):
    workload = read_trace(write(REQUESTS))
    assert workload.request_ids == ["a", "b"]
    assert workload.arrival_s.tolist() == [0.0, 2.5]
    assert workload.prompt_tokens.tolist() == [7, 8]
    assert workload.output_tokens.tolist() == [4, 3]


@pytest.mark.parametrize("indent", [None, 2])
def test_vllm_bench_results_arrive_when_they_were_sent(write, indent):
    workload = read_trace(write(json.dumps(BENCH, indent=indent)))
    assert workload.arrival_s.tolist() == [0.0, 0.25]
    assert workload.prompt_tokens.tolist() == [10, 30]
    assert workload.output_tokens.tolist() == [5, 7]
    assert "1 of 3 requests left out" in workload.notes[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("azure", AZURE),
        ("burstgpt", BURSTGPT),
        ("mooncake", MOONCAKE),
        ("sharegpt", SHAREGPT),
        ("vllm-requests", REQUESTS),
        ("vllm-bench", BENCH),
    ],
)
def test_the_format_detected_is_the_format_named(write, name, content):
    path = write(content)
    detected, named = read_trace(path), read_trace(path, format=name)
    assert detected.arrival_s.tobytes() == named.arrival_s.tobytes()
    assert detected.prompt_tokens.tolist() == named.prompt_tokens.tolist()


def test_a_files_column_feeds_the_empirical_lengths(write):
    values = read_column(write(AZURE), "ContextTokens")
    assert values.tolist() == [374, 396, 12]
    drawn = empirical(np.random.default_rng(0), 100, values)
    assert set(drawn.tolist()) == {374, 396, 12}


def test_the_azure_conversation_trace_is_read_whole():
    workload = read_trace(real("azure/AzureLLMInferenceTrace_conv.csv"))
    assert len(workload) == 19_366
    assert workload.arrival_s[0] == 0.0
    assert workload.arrival_s[-1] == 3501.721937  # 18:15:46.6805900 to 19:14:08.4025270
    assert workload.prompt_tokens.sum() == 22_361_870
    assert workload.output_tokens.sum() == 4_088_665


def test_the_azure_code_trace_is_read_whole():
    assert len(read_trace(real("azure/AzureLLMInferenceTrace_code.csv"))) == 8_819


def test_the_recorded_vllm_run_and_its_workload_are_the_same_requests():
    recorded = read_trace(real("vllm-rtx4090/run/requests.jsonl"))
    workload = read_trace(real("vllm-rtx4090/workload.jsonl"), content=True)
    assert len(recorded) == len(workload) == 300
    assert recorded.prompt_tokens.tolist() == workload.prompt_tokens.tolist()
    assert recorded.output_tokens.tolist() == workload.output_tokens.tolist()
    assert recorded.request_ids[0] == "bench-0"


def test_the_recorded_prompts_share_exactly_their_common_prefixes():
    path = real("vllm-rtx4090/workload.jsonl")
    workload = read_trace(path, content=True)
    prefix_of, hash_of = {}, {}
    for request, line in enumerate(path.read_text().splitlines()):
        tokens = json.loads(line)["input_tok_ids"]
        chain = workload.content.block_hashes(request, 16, len(tokens))
        parent = None
        for block, block_hash in enumerate(chain):
            prefix = (parent, tuple(tokens[block * 16 : block * 16 + 16]))
            assert prefix_of.setdefault(block_hash, prefix) == prefix
            assert hash_of.setdefault(prefix, block_hash) == block_hash
            parent = block_hash


TURNS = [
    {"session_id": "a", "timestamp": 0, "input_length": 1024, "output_length": 50},
    {"session_id": "b", "timestamp": 1000, "input_length": 700, "output_length": 20},
    {"session_id": "a", "delay": 5000, "input_length": 1536, "output_length": 50},
    {"session_id": "a", "delay": 250.5, "input_length": 1600, "output_length": 9},
    {"session_id": "b", "timestamp": 9000, "input_length": 800, "output_length": 20},
]


def test_a_turn_with_a_delay_follows_the_answer_before_it(write):
    workload = read_trace(write(TURNS))
    assert workload.prompt_tokens.tolist() == [1024, 1536, 1600, 700, 800]
    assert workload.follows.tolist() == [-1, 0, 1, -1, -1]
    assert workload.think_s.tolist() == [0.0, 5.0, 0.2505, 0.0, 0.0]
    source = RequestSource(workload, block_size=16, prefix_caching=False)
    first = source.take()
    assert source.next_arrival_s == 1.0
    source.release([first], 0.75)
    assert [source.take().arrival_s for _ in range(2)] == [1.0, 0.75 + 5.0]
    assert source.next_arrival_s == 9.0


def test_a_turn_after_one_that_failed_follows_the_one_before(write):
    rows = [TURNS[0], TURNS[2] | {"output_length": 0}, TURNS[3]]
    assert read_trace(write(rows)).follows.tolist() == [-1, 0]
    assert read_trace(write([TURNS[0] | {"output_length": 0}, TURNS[2]])).follows.tolist() == [-1]


def test_a_delay_after_nothing_is_refused(write):
    path = write([TURNS[0], {**TURNS[2], "session_id": "c"}])
    with pytest.raises(TraceError, match=":2: a delay and no timestamp, and no row before it"):
        read_trace(path)
