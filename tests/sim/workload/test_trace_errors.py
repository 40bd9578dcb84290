"""What is wrong with a trace is one line: PATH:LINE: what is wrong, what is expected."""

import gzip
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.workload import TraceError, Workload, read_trace
from sim.workload.traces import read_column
from tests import needs

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,m,9,9,18,l\n"
MOONCAKE = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}
SHAREGPT = {
    "input_toks": 2,
    "output_toks": 1,
    "arrival_time_ns": 5,
    "input_tok_ids": [1, 2],
    "output_tok_ids": [3],
}
REQUEST = {"request_id": "a", "input_toks": 8, "output_toks": 3, "queued_ts": 2.5}
BENCH = {"input_lens": [1, 2], "output_lens": [3, 4], "start_times": [0.0, 1.0], "ttfts": [1, 1]}


def message_of(tmp_path, text, **options):
    """The error's message after the path, of a trace with this text or these bytes."""
    path = tmp_path / "trace"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TraceError) as caught:
        read_trace(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}:")
    return message.removeprefix(f"{path}:")


def jsonl(*rows):
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TraceError, match=re.escape(f"{tmp_path / 'no'}: no such file")):
        read_trace(tmp_path / "no")


def test_a_folder_is_not_a_trace(tmp_path):
    with pytest.raises(TraceError, match=r"cannot be read: Is a directory"):
        read_trace(tmp_path)


@needs.not_root
def test_an_unreadable_file_is_named(tmp_path):
    path = tmp_path / "secret"
    path.write_text(AZURE)
    path.chmod(0)
    with pytest.raises(TraceError, match=r"secret: cannot be read: Permission denied"):
        read_trace(path)


@pytest.mark.parametrize("content", [b"", b"  \n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(tmp_path, content):
    assert message_of(tmp_path, content) == "1: the file is empty, expected a trace"


def test_what_is_not_utf8_is_named_with_its_line(tmp_path):
    message = message_of(tmp_path, AZURE.encode() + b"2023,\xff,1\n")
    assert message == "3: byte 0xff is not UTF-8, expected a text file"


def test_a_gzipped_trace_is_unpacked_and_a_damaged_one_said_to_be(tmp_path):
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(AZURE.encode()))
    assert len(read_trace(path)) == 1
    assert message_of(tmp_path, gzip.compress(AZURE.encode())[:-9]).startswith(
        " a damaged gzip file ("
    )


def test_a_git_lfs_pointer_is_called_that(tmp_path):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4bb3\nsize 52283111\n"
    assert message_of(tmp_path, text).startswith("1: a Git LFS pointer, not the data")


@pytest.mark.parametrize(
    "content",
    ["time,tokens\n1,2\n", "hello", '{"prompt": "hi"}\n', "{}", "[1, 2]", "\x00\x01", "a\rb,c"],
)
def test_an_unknown_format_says_how_to_name_its_columns(tmp_path, content):
    message = message_of(tmp_path, content)
    assert message.startswith("1: unknown format, first line ")
    assert "workload.columns: {arrival: NAME" in message
    assert len(message) <= 300


def test_an_unknown_format_name_is_refused(tmp_path):
    assert "unknown format 'azur', expected auto, orcast, azure" in message_of(
        tmp_path, AZURE, format="azur"
    )


ROWS = [
    ("2023-11-16 18:15:47,374", "2 columns in '2023-11-16 18:15:47,374', expected TIMESTAMP"),
    ("2023-11-16 18:15:47,374,4,1", "4 columns in "),
    ("2023-11-16 18:15:47,-3,4", "ContextTokens is '-3', expected a whole number of at least 0"),
    ("2023-11-16 18:15:47,3,nan", "GeneratedTokens is 'nan', expected a whole number"),
    ("2023-11-16 18:15:47,3,inf", "GeneratedTokens is 'inf', expected a whole number"),
    ("2023-11-16 18:15:47,3.5,4", "ContextTokens is '3.5', expected a whole number"),
    ("2023-11-16 18:15:47,,4", "ContextTokens is '', expected a whole number"),
    ("2023-11-16 18:15:47,many,4", "ContextTokens is 'many', expected a whole number"),
    ("2023-11-16 18:15:47,1_0,4", "ContextTokens is '1_0', expected a whole number"),
    ("2023-11-16 18:15:47,99999999999,4", "ContextTokens is '99999999999', expected a whole"),
    ("2023-13-16 18:15:47,3,4", "TIMESTAMP is '2023-13-16 18:15:47', expected a date and time"),
    ("2023-11-16 25:15:47,3,4", "TIMESTAMP is '2023-11-16 25:15:47', expected a date and time"),
    ("2023-11-16,3,4", "TIMESTAMP is '2023-11-16', expected a date and time like 2023"),
    ("today,3,4", "TIMESTAMP is 'today', expected a date and time"),
    ("NaT,3,4", "TIMESTAMP is 'NaT', expected a date and time"),
    ("12.5,3,4", "TIMESTAMP is '12.5', expected a date and time"),
    ("2023-11-16 18:15:47.1234567890,3,4", "TIMESTAMP is '2023-11-16 18:15:47.1234567890', exp"),
    ("2023-11-16 18:15:47-07:00,3,4", "TIMESTAMP is '2023-11-16 18:15:47-07:00', expected a"),
    ('"2023-11-16 18:15:47,3,4', "1 columns in "),
    (" 2023-11-16 18:15:47,3,4", "TIMESTAMP is ' 2023-11-16 18:15:47', expected a date and time"),
]


@pytest.mark.parametrize(("row", "expected"), ROWS)
def test_a_bad_azure_row_is_named_by_its_line(tmp_path, row, expected):
    good = "2023-11-16 18:15:48,5,6\n"
    assert message_of(tmp_path, f"{AZURE}\n{good}{row}\n{good}").startswith(f"5: {expected}")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("-1,m,9,9,18,l", "Timestamp is '-1', expected a number of seconds of at least 0"),
        ("nan,m,9,9,18,l", "Timestamp is 'nan', expected a number of seconds"),
        ("1,m,9", "3 columns in '1,m,9', expected Timestamp,Model,"),
        ("1,m,9,-9,18,l", "Response tokens is '-9', expected a whole number"),
    ],
)
def test_a_bad_burstgpt_row_is_named_by_its_line(tmp_path, row, expected):
    assert message_of(tmp_path, f"{BURSTGPT}{row}\n").startswith(f"3: {expected}")


def test_a_header_alone_is_an_error(tmp_path):
    assert message_of(tmp_path, AZURE.splitlines()[0]).startswith("1: the header is all there is")


def test_a_named_format_that_the_file_does_not_have_is_an_error(tmp_path):
    assert message_of(tmp_path, AZURE, format="burstgpt").startswith("1: no column 'Timestamp' in")
    assert message_of(tmp_path, AZURE, format="mooncake").startswith("2: no timestamp in [")
    assert message_of(tmp_path, BURSTGPT, format="vllm-bench").startswith("1: not JSON")


def test_a_trace_of_failed_requests_only_is_an_error(tmp_path):
    text = "Timestamp,Request tokens,Response tokens\n1,5,0\n2,5,0\n"
    assert message_of(tmp_path, text).startswith("1: none of the 2 requests has both prompt and")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (MOONCAKE, "{", "not JSON ("),
        (MOONCAKE, "[1]", "[1] is not a JSON object, expected an object a line"),
        (MOONCAKE, MOONCAKE | {"timestamp": -1}, "timestamp is -1, expected a number of at least"),
        (MOONCAKE, MOONCAKE | {"timestamp": float("nan")}, "timestamp is nan, expected a number"),
        (MOONCAKE, MOONCAKE | {"timestamp": 10**400}, "timestamp is 1000"),
        (MOONCAKE, MOONCAKE | {"timestamp": None}, "timestamp is None, expected a number"),
        (MOONCAKE, MOONCAKE | {"input_length": -4}, "input_length is -4, expected a whole number"),
        (MOONCAKE, MOONCAKE | {"input_length": 2.5}, "input_length is 2.5, expected a whole"),
        (MOONCAKE, MOONCAKE | {"output_length": True}, "output_length is True, expected a whole"),
        (MOONCAKE, MOONCAKE | {"output_length": "7"}, "output_length is '7', expected a whole"),
        (MOONCAKE, {"timestamp": 1}, "no input_length in ['timestamp'], expected a whole number"),
        (MOONCAKE, MOONCAKE | {"hash_ids": [1]}, None),
        (
            MOONCAKE,
            MOONCAKE | {"hash_ids": []},
            "0 hash_ids for an input_length of 600, expected 2",
        ),
        (MOONCAKE, MOONCAKE | {"hash_ids": [1, 2, 3]}, "3 hash_ids for an input_length of 600"),
        (MOONCAKE, MOONCAKE | {"hash_ids": [1, -2]}, "hash_ids is [1, -2], expected whole numbers"),
        (
            MOONCAKE,
            MOONCAKE | {"hash_ids": [1, 2**63]},
            "hash_ids is [1, 9223372036854775808], exp",
        ),
        (MOONCAKE, MOONCAKE | {"hash_ids": "no"}, "hash_ids is 'no', expected a list of ids"),
        (
            SHAREGPT,
            SHAREGPT | {"arrival_time_ns": "x"},
            "arrival_time_ns is 'x', expected a number",
        ),
        (SHAREGPT, SHAREGPT | {"input_toks": 3}, "2 input_tok_ids for 3 tokens, expected as many"),
        (SHAREGPT, SHAREGPT | {"input_tok_ids": [1, 2.0]}, "input_tok_ids is [1, 2.0], expected w"),
        (REQUEST, REQUEST | {"queued_ts": float("inf")}, "queued_ts is inf, expected a number"),
        (REQUEST, REQUEST | {"input_toks": None}, "input_toks is None, expected a whole number"),
    ],
)
def test_a_bad_json_line_is_named_by_its_number(tmp_path, first, second, expected):
    text = jsonl(first, "", second)
    if expected is None:
        path = tmp_path / "fine"
        path.write_text(text)
        assert len(read_trace(path, content=True)) == 2
    else:
        assert message_of(tmp_path, text, content=True).startswith(f"3: {expected}")


def test_recorded_answers_must_be_there_when_asked_for(tmp_path):
    row = {key: value for key, value in SHAREGPT.items() if key != "output_tok_ids"}
    message = message_of(tmp_path, jsonl(SHAREGPT, row), output_content=True)
    assert message.startswith("2: no output_tok_ids in [")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"start_times": None}, "1: a vLLM bench result without start_times, expected them"),
        ({"input_lens": None}, "1: input_lens is None, expected a list of numbers"),
        ({"output_lens": [3]}, "1: 2 input_lens, 1 output_lens and 2 start_times, expected equal"),
        ({"output_lens": [3, -4]}, "1: output_lens[1] is -4, expected a whole number"),
        ({"start_times": [0.0, float("nan")]}, "1: start_times[1] is nan, expected a number"),
    ],
)
def test_a_bad_bench_result_says_what_is_wrong(tmp_path, changes, expected):
    assert message_of(tmp_path, json.dumps(BENCH | changes)).startswith(expected)


def test_a_bench_result_without_details_says_how_to_get_them(tmp_path):
    message = message_of(tmp_path, json.dumps({"request_throughput": 4.0}))
    assert message.startswith("1: a vLLM bench result without input_lens and output_lens")
    assert message.endswith("expected --save-detailed")


def test_a_broken_bench_result_is_named_by_line(tmp_path):
    text = json.dumps(BENCH, indent=1)
    assert message_of(tmp_path, text[:-3]).startswith(f"{text.count(chr(10))}: not JSON")
    appended = json.dumps(BENCH) + "\n" + json.dumps(BENCH)
    assert message_of(tmp_path, appended).startswith("2: not JSON (Extra data)")


def test_deeply_nested_json_is_refused(tmp_path):
    assert "not JSON" in message_of(tmp_path, '{"a":' * 100_000)


def test_a_column_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(AZURE)
    with pytest.raises(TraceError, match=r"trace.csv:1: no column 'tokens' in 'TIMESTAMP,"):
        read_column(path, "tokens")
    with pytest.raises(TraceError, match=r"trace.csv:2: TIMESTAMP is '2023-11-16 18:15:46.68"):
        read_column(path, "TIMESTAMP")


CHAT = {"conversations": [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}]}
GUIDELLM = {
    "benchmarks": [
        {
            "requests": {
                "successful": [
                    {"info": {"timings": {"request_start": 5.5}}, "prompt_tokens": 3,
                     "output_tokens": 4}
                ]
            }
        }
    ]
}  # fmt: skip
SUMMARY = {"completed": 3, "total_input_tokens": 9, "total_output_tokens": 9, "request_rate": 2,
           "request_throughput": 1.0}  # fmt: skip
SOURCES = [
    AZURE * 2,
    BURSTGPT,
    jsonl(MOONCAKE, MOONCAKE),
    jsonl(SHAREGPT),
    jsonl(REQUEST),
    json.dumps([CHAT, CHAT], indent=1),
    json.dumps(GUIDELLM),
    json.dumps(SUMMARY),
    json.dumps(BENCH),
    "time_ms;prompt_tokens;output_tokens;session\n1;2;3;a\n2;9;3;a\n",
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SOURCES), st.data())
def test_a_damaged_trace_is_read_or_refused_in_one_line(tmp_path_factory, source, data):
    start = data.draw(st.integers(0, len(source)))
    stop = data.draw(st.integers(start, min(len(source), start + 6)))
    damage = data.draw(
        st.text(st.characters(max_codepoint=300, exclude_categories=["Cs"]), max_size=4)
    )
    path = tmp_path_factory.mktemp("damaged") / "trace"
    path.write_bytes((source[:start] + damage + source[stop:]).encode())
    try:
        workload = read_trace(path, content=True)
    except TraceError as error:
        assert str(error).startswith(f"{path}:")
        assert "\n" not in str(error)
    else:
        assert isinstance(workload, Workload)
        assert workload.arrival_s[0] == 0.0
