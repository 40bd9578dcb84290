"""Traces of one request a row: whatever the format, its fields become a workload's columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.workload.sessions import topics
from sim.workload.trace_entries import Entry, unit_by_size
from sim.workload.trace_file import TraceFile, TraceRows, shown
from sim.workload.trace_formats import PER_S, Keys, Time, TraceFormat
from sim.workload.trace_spans import requests_of
from sim.workload.trace_streams import BYTES_PER_TOKEN, CountTokens
from sim.workload.workload import Workload

BLOCKS = (512, 16, 32, 64, 128, 256, 1024, 2048, 4096)  # that traces are hashed in, commonly


def read_requests(
    file: TraceFile,
    format: TraceFormat,
    *,
    content: bool,
    output_content: bool,
    count: CountTokens | None = None,
) -> Workload:
    """The requests of a file, a row each, with the content that the format knows of where asked.

    With output_content, the answers' ids follow the prompts' in the content. `count` counts the
    tokens of a text, where a format has text in place of lengths.
    """
    assert format.arrival is not None
    found = list(requests_of(file, format, count))
    if not found:
        raise file.error(1, "no request in it, expected at least one")
    counted = [entry for entry in found if entry.counts_in(format)]
    notes = []
    if format.streams and count is None:
        notes.append(
            "lengths without the engine's usage: prompts are estimated at "
            f"{BYTES_PER_TOKEN} bytes a token, answers have a token a chunk; workload.tokenizer "
            "counts them"
        )
    if len(counted) < len(found) and format.left_out is not None:
        key, value = format.left_out
        notes.append(
            f"{len(found) - len(counted)} of {len(found)} requests left out: {key} {value}"
        )
    if file.labels is not None:
        kept = {id(entry) for entry in counted}
        pairs = zip(found, file.labels, strict=True)
        file = replace(file, labels=[label for one, label in pairs if id(one) in kept])
    if not counted:
        raise file.error(1, f"none of the {len(found)} requests counts ({notes[0]})")
    turns = _Turns(format)
    arrival = [turns.arrival(entry) for entry in counted]
    failed = np.array([any(entry.get(key) for key in format.failed) for entry in counted], bool)
    prompt, output = (
        np.array(
            [_tokens(one, keys, bad) for one, bad in zip(counted, failed.tolist(), strict=True)],
            np.int64,
        )
        for keys in (format.prompt, format.output)
    )
    if format.whole_units and not turns.sessions:
        _check_whole(counted, arrival, format.arrival)
    rows = TraceRows(
        _arrival_s(arrival, format.arrival),
        prompt,
        output,
        request_ids=_names(counted, format),
        follows=turns.follows,
        think_s=turns.think_s,
        failed=failed if failed.any() else None,
        notes=tuple(notes),
    )
    if content or output_content:
        rows = _with_content(rows, counted, format, output_content=output_content)
    return rows.workload(file)


def _tokens(entry: Entry, keys: Keys, failed: bool) -> int:
    """A length, which a request that failed may not have."""
    if failed and entry.get(entry.first(keys)) is None:
        return 0
    return entry.tokens(keys)


def _names(found: Sequence[Entry], format: TraceFormat) -> list[str] | None:
    if not format.request_id:
        return None
    names = [entry.get(entry.first(format.request_id)) for entry in found]
    return [
        f"line-{entry.line}" if name is None else str(name)
        for entry, name in zip(found, names, strict=True)
    ]


def _arrival_s(arrival: Sequence[float], time: Time) -> NDArray[np.float64]:
    """The difference first: nanoseconds since 1970 do not fit a float64 exactly."""
    since = np.array([value - arrival[0] for value in arrival], np.float64)
    return since / PER_S.get(time.unit, 1.0)


def _check_whole(found: Sequence[Entry], arrival: Sequence[float], time: Time) -> None:
    """Fractions of a unit that has none are those of a larger one: seconds, most likely."""
    for entry, value in zip(found, arrival, strict=True):
        if float(value) != int(value):
            raise entry.error(
                f"{time.keys[0]} is {value}, expected whole {time.unit}; where it is seconds, say "
                "workload.columns: {unit: s}, where it is ms, {unit: ms}"
            )


class _Turns:
    """When each row comes, or which row's answer it follows, and how long after it."""

    def __init__(self, format: TraceFormat) -> None:
        assert format.arrival is not None
        self._format, self._time = format, format.arrival
        self.follows: list[int] = []  # by row; -1: none
        self.think_s: list[float] = []
        self.sessions = False
        self._last: dict[str, tuple[int, float]] = {}  # of each session: a row, and its earliest

    def arrival(self, entry: Entry) -> float:
        """When the next row comes at the earliest, in the format's unit."""
        name, delay = self._format.session, self._format.delay
        session = entry.get(name) if name is not None else None
        before = self._last.get(str(session)) if session is not None else None
        has_time = any(key in entry.row for key in self._time.keys)
        delayed = delay is not None and delay.keys[0] in entry.row and not has_time
        self.sessions |= session is not None
        if delayed and before is None:
            raise entry.error(
                f"a delay and no timestamp, and no row before it of {name} {shown(session)}, "
                "expected a timestamp in a session's first row"
            )
        self.follows.append(before[0] if delayed and before is not None else -1)
        self.think_s.append(entry.time_s(delay) if delayed else 0.0)
        at = before[1] if delayed and before else entry.time(self._time)
        if session is not None:
            self._last[str(session)] = len(self.follows) - 1, at
        return at


def _with_content(
    rows: TraceRows, found: Sequence[Entry], format: TraceFormat, *, output_content: bool
) -> TraceRows:
    """The rows with what their prompts hold, where the file says so; else with a note."""
    if format.ids is None:
        name = format.session
        if name is None or format.delay is not None or not any(one.get(name) for one in found):
            return rows
        return _as_conversations(rows, found, name)
    have = [format.ids in entry.row for entry in found]
    if not any(have):
        note = f"no {format.ids}: prompts share nothing"
        if output_content and format.output_ids:
            raise found[0].error(f"{found[0].given(format.ids)}, expected a list of ids")
        return replace(rows, notes=(*rows.notes, note))
    notes = rows.notes
    if not all(have):
        without = len(have) - sum(have)
        notes = (*notes, f"{without} of {len(have)} requests have no {format.ids}: they share none")
    prompt = rows.prompt_tokens.tolist()
    if format.unit_tokens == 1:
        ids = [
            entry.ids(format.ids, count=tokens) if known else []
            for entry, tokens, known in zip(found, prompt, have, strict=True)
        ]
        if output_content and format.output_ids:
            counts = rows.output_tokens.tolist()
            ids = [
                one + entry.ids(format.output_ids, count=count) if known else []
                for entry, one, count, known in zip(found, ids, counts, have, strict=True)
            ]
        return replace(rows, content_ids=ids, notes=notes)
    ids = [entry.ids(format.ids) if known else [] for entry, known in zip(found, have, strict=True)]
    unit = _block_tokens(ids, prompt, have, format.unit_tokens)
    for entry, one, tokens, known in zip(found, ids, prompt, have, strict=True):
        fewest, rest = divmod(tokens, unit)
        if known and not fewest <= len(one) <= fewest + (rest > 0):
            raise entry.error(
                f"{len(one)} {format.ids} for an {format.prompt[0]} of {tokens}, expected "
                f"{fewest + (rest > 0)}: one for every {unit} tokens"
            )
    if unit != format.unit_tokens:
        notes = (*notes, f"{format.ids} stand for {unit} tokens each, by their number")
    lengths = [min(tokens, len(one) * unit) for one, tokens in zip(ids, prompt, strict=True)]
    return replace(rows, content_ids=ids, unit_tokens=unit, known_tokens=lengths, notes=notes)


def _block_tokens(
    ids: Sequence[Sequence[int]], prompt: Sequence[int], have: Sequence[bool], usual: int
) -> int:
    """The tokens an id stands for: the size that the most rows agree with, the usual one first."""
    counts = np.array([len(one) for one, known in zip(ids, have, strict=True) if known])
    tokens = np.array([one for one, known in zip(prompt, have, strict=True) if known])
    longest = int(np.argmax(counts))
    exact = -(-int(tokens[longest]) // max(1, int(counts[longest])))
    best, most = usual, -1
    for size in dict.fromkeys((usual, *BLOCKS, exact)):
        if size < 1:
            continue
        whole, begun = counts == tokens // size, counts == -(-tokens // size)
        # A file gives the rest of a prompt an id, or does not; only the usual size may do both.
        both = (whole | begun).sum() if size == usual else 0
        agree = int(max(whole.sum(), begun.sum(), both))
        if agree > most:
            best, most = size, agree
    return best


def _as_conversations(rows: TraceRows, found: Sequence[Entry], session: str) -> TraceRows:
    """Rows of one session repeat what was said before, where their prompts are long enough."""
    names: list[Any] = [entry.get(session) for entry in found]
    order = np.argsort(rows.arrival_s, kind="stable")
    topic = topics(names, rows.prompt_tokens, rows.output_tokens, order)
    shared = len(topic) - len(set(topic))
    known = (rows.prompt_tokens + rows.output_tokens).tolist()
    note = (
        f"{len(set(names))} sessions by {session}: {shared} requests are taken to begin with what "
        "was said before in theirs, as their lengths allow"
    )
    return replace(
        rows,
        content_ids=[[one] for one in topic],
        unit_tokens=max(known),
        known_tokens=known,
        notes=(*rows.notes, note),
    )


def sure_unit(found: Sequence[Entry], format: TraceFormat) -> TraceFormat:
    """A table's format with the unit of its times, by what they look like.

    Dates, and times since 1970, tell their unit. Raises TraceError for others.
    """
    assert format.arrival is not None
    key = format.arrival.keys[0]
    entry = found[0]
    try:
        value = entry.number(key)
    except ValueError:
        entry.date_s(key)
        return replace(format, arrival=Time((key,), "date"))
    unit = unit_by_size(value)
    if unit is None:
        raise entry.error(
            f"{key} is {value:g}, in which unit is not said; say workload.columns: {{unit: s}}, "
            "or ms, us, ns"
        )
    return replace(format, arrival=Time((key,), unit))
