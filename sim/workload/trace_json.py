"""Traces in JSON: Mooncake, ShareGPT with token ids, and what vLLM writes about its requests."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.workload.trace_file import TraceFile, TraceRows, shown
from sim.workload.workload import Workload

MOONCAKE_UNIT_TOKENS = 512
_MOST_TOKENS = 2**31 - 1
_LARGEST_ID = 2**63 - 1

Row = dict[str, Any]


def read_mooncake(file: TraceFile, *, content: bool) -> Workload:
    """Mooncake (Qin et al., FAST'25): `timestamp` in ms, lengths, a hash id per 512 prompt tokens.

    With content, `hash_ids` must be there: one id for every 512 tokens of the prompt, the rest of
    which may have one too (as in the published traces) or not. A row with a `delay` (ms) in place
    of a timestamp, as AIPerf writes, comes that long after the answer to the row before it of its
    `session_id`.
    """
    arrival_ms, prompt, output = [], [], []
    ids: list[list[int]] = []
    known: list[int] = []
    turns = _Turns()
    for line, row in _rows(file):
        arrival_ms.append(turns.arrival_ms(file, line, row))
        prompt.append(_count(file, line, row, "input_length"))
        output.append(_count(file, line, row, "output_length"))
        if content:
            hash_ids = _ids(file, line, row, "hash_ids")
            fewest, rest = divmod(prompt[-1], MOONCAKE_UNIT_TOKENS)
            if not fewest <= len(hash_ids) <= fewest + (rest > 0):
                raise file.error(
                    line,
                    f"{len(hash_ids)} hash_ids for an input_length of {prompt[-1]}, expected "
                    f"{fewest + (rest > 0)}: one for every {MOONCAKE_UNIT_TOKENS} tokens",
                )
            ids.append(hash_ids)
            known.append(min(prompt[-1], len(hash_ids) * MOONCAKE_UNIT_TOKENS))
    return TraceRows(
        np.array(arrival_ms, np.float64) / 1e3,
        np.array(prompt, np.int64),
        np.array(output, np.int64),
        content_ids=ids if content else None,
        unit_tokens=MOONCAKE_UNIT_TOKENS,
        known_tokens=known if content else None,
        follows=turns.follows,
        think_s=[delay_ms / 1e3 for delay_ms in turns.delay_ms],
    ).workload(file)


class _Turns:
    """Which row follows whose answer, and how long after it."""

    def __init__(self) -> None:
        self.follows: list[int] = []  # by row; -1: none
        self.delay_ms: list[float] = []
        self._last: dict[str, tuple[int, float]] = {}  # of each session: a row, and its earliest ms

    def arrival_ms(self, file: TraceFile, line: int, row: Row) -> float:
        """When the next row comes at the earliest."""
        session = row.get("session_id")
        before = self._last.get(str(session)) if session is not None else None
        delayed = "delay" in row and "timestamp" not in row
        if delayed and before is None:
            raise file.error(
                line,
                f"a delay and no timestamp, and no row before it of session_id {shown(session)}, "
                "expected a timestamp in a session's first row",
            )
        self.follows.append(before[0] if delayed and before is not None else -1)
        self.delay_ms.append(_number(file, line, row, "delay") if delayed else 0.0)
        at_ms = before[1] if delayed and before else _number(file, line, row, "timestamp")
        if session is not None:
            self._last[str(session)] = len(self.follows) - 1, at_ms
        return at_ms


def read_sharegpt(file: TraceFile, *, content: bool, output_content: bool) -> Workload:
    """Requests with token ids: input_toks, output_toks, arrival_time_ns, input_tok_ids.

    With output_content, output_tok_ids follow the prompt's ids in the content.
    """
    arrival_ns, prompt, output = [], [], []
    ids: list[list[int]] = []
    for line, row in _rows(file):
        arrival_ns.append(_number(file, line, row, "arrival_time_ns"))
        prompt.append(_count(file, line, row, "input_toks"))
        output.append(_count(file, line, row, "output_toks"))
        if content or output_content:
            ids.append(_ids(file, line, row, "input_tok_ids", count=prompt[-1]))
        if output_content:
            ids[-1] = ids[-1] + _ids(file, line, row, "output_tok_ids", count=output[-1])
    return TraceRows(
        # the difference first: nanoseconds since 1970 do not fit a float64 exactly
        np.array([value - arrival_ns[0] for value in arrival_ns], np.float64) / 1e9,
        np.array(prompt, np.int64),
        np.array(output, np.int64),
        content_ids=ids if content or output_content else None,
    ).workload(file)


def read_vllm_requests(file: TraceFile) -> Workload:
    """What a vLLM engine recorded, a request a line: request_id, input_toks, output_toks, times.

    A request arrives at `queued_ts`, when the engine's core took it in: the moment from which its
    scheduler can know of it. Time spent in the server's front end before is not part of it.
    """
    arrival_s, prompt, output = [], [], []
    names: list[str] = []
    for line, row in _rows(file):
        arrival_s.append(_number(file, line, row, "queued_ts"))
        prompt.append(_count(file, line, row, "input_toks"))
        output.append(_count(file, line, row, "output_toks"))
        names.append(str(row.get("request_id", f"line-{line}")))
    return TraceRows(
        np.array(arrival_s, np.float64),
        np.array(prompt, np.int64),
        np.array(output, np.int64),
        request_ids=names,
    ).workload(file)


def read_vllm_bench(file: TraceFile) -> Workload:
    """The result of vLLM's `bench serve --save-result --save-detailed`: one JSON object of lists.

    A request arrives when the client sent it (`start_times`), also where the client held it back
    for its --max-concurrency: replaying the times needs no closed loop.
    """
    result = json_object(file)
    if "input_lens" not in result or "output_lens" not in result:
        raise file.error(
            1, "a vLLM bench result without input_lens and output_lens, expected --save-detailed"
        )
    prompt = _list(file, result, "input_lens", whole=True)
    output = _list(file, result, "output_lens", whole=True)
    if not result.get("start_times"):
        raise file.error(
            1,
            "a vLLM bench result without start_times, expected them as recent versions write with "
            "--save-detailed: without them there are lengths but no arrivals",
        )
    arrival_s = _list(file, result, "start_times", whole=False)
    if not len(prompt) == len(output) == len(arrival_s):
        raise file.error(
            1,
            f"{len(prompt)} input_lens, {len(output)} output_lens and {len(arrival_s)} "
            "start_times, expected equally many",
        )
    return TraceRows(arrival_s, prompt.astype(np.int64), output.astype(np.int64)).workload(file)


def json_object(file: TraceFile) -> Row:
    """The whole file as one JSON object; TraceError with the line where it is not."""
    try:
        value = json.loads(file.text)
    except (ValueError, RecursionError) as error:
        line, message = getattr(error, "lineno", 1), getattr(error, "msg", "nested too deeply")
        raise file.error(line, f"not JSON ({message}), expected one JSON object") from None
    if not isinstance(value, dict):
        raise file.error(1, f"a JSON {type(value).__name__}, expected one JSON object")
    return value


def _rows(file: TraceFile) -> Iterator[tuple[int, Row]]:
    """The JSON objects of a file that has one a line, each with its line number."""
    for line, text in enumerate(file.lines(), start=1):
        if not text or text.isspace():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            message = getattr(error, "msg", "nested too deeply")
            raise file.error(line, f"not JSON ({message}), expected an object a line") from None
        if not isinstance(row, dict):
            raise file.error(line, f"{shown(row)} is not a JSON object, expected an object a line")
        yield line, row


def _number(file: TraceFile, line: int, row: Row, key: str) -> float:
    """A finite number of at least 0."""
    value = row.get(key)
    if type(value) is int or type(value) is float:
        try:
            if value >= 0 and math.isfinite(value):
                return value
        except OverflowError:
            pass
    raise file.error(line, f"{_given(row, key)}, expected a number of at least 0")


def _count(file: TraceFile, line: int, row: Row, key: str) -> int:
    """A whole number of tokens."""
    value = row.get(key)
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int and 0 <= value <= _MOST_TOKENS:
        return value
    raise file.error(line, f"{_given(row, key)}, expected a whole number of at least 0")


def _ids(file: TraceFile, line: int, row: Row, key: str, *, count: int | None = None) -> list[int]:
    """A list of content ids, `count` of them where given."""
    values = row.get(key)
    if not isinstance(values, list):
        raise file.error(line, f"{_given(row, key)}, expected a list of ids")
    if count is not None and len(values) != count:
        raise file.error(line, f"{len(values)} {key} for {count} tokens, expected as many")
    if values and not (
        all(type(value) is int for value in values)
        and min(values) >= 0
        and max(values) <= _LARGEST_ID
    ):
        raise file.error(line, f"{_given(row, key)}, expected whole numbers from 0 to 2^63 - 1")
    return values


def _list(file: TraceFile, result: Row, key: str, *, whole: bool) -> NDArray[np.float64]:
    """A list of numbers of at least 0, whole ones where asked."""
    values = result[key]
    if not isinstance(values, list):
        raise file.error(1, f"{_given(result, key)}, expected a list of numbers")
    check = _count if whole else _number
    return np.array(
        [
            check(file, 1, {f"{key}[{at}]": value}, f"{key}[{at}]")
            for at, value in enumerate(values)
        ],
        np.float64,
    )


def _given(row: Row, key: str) -> str:
    """What a row says about a key, for an error message."""
    return f"{key} is {shown(row[key])}" if key in row else f"no {key} in {shown(list(row))}"
