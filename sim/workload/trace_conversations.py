"""Conversations in text as traces: ShareGPT, WildChat, LMSYS-Chat, and others of their kind.

Every answer is a request, whose prompt is all that was said before it. Text is counted by a
tokenizer where one is given; else at four bytes of UTF-8 a token, which holds for English within a
tenth or two, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sim.workload.trace_entries import Entry, entries, unit_by_size
from sim.workload.trace_file import TraceFile, TraceRows
from sim.workload.trace_formats import PER_S, TraceFormat, Unit
from sim.workload.trace_streams import BYTES_PER_TOKEN, CountTokens, estimated_tokens
from sim.workload.workload import Workload

TURNS = ("conversations", "conversation", "messages")
SPEAKERS, TEXTS = ("from", "role"), ("value", "content", "text")
ANSWERING = {"gpt", "assistant", "chatgpt", "bing", "bard", "model", "bot"}


def read_conversations(
    file: TraceFile, format: TraceFormat, *, content: bool, count: CountTokens | None
) -> Workload:
    """The answers of all conversations; a turn after the first follows the answer before it.

    The first turn of each comes at the conversation's time; where none has one, all begin at once.
    """
    assert format.arrival is not None
    arrival_s, prompt, output, topic = [], [], [], []
    follows: list[int] = []
    labels: list[str] | None = None if file.labels is None else []
    timed = unanswered = conversations = 0
    for number, entry in enumerate(entries(file)):
        at_s = _time_s(entry, format.arrival.keys)
        timed += at_s is not None
        conversations += 1
        said, before, turns = 0, -1, 0
        for answering, text in _messages(entry):
            tokens = (count or estimated_tokens)(text)
            if answering and said:
                arrival_s.append(at_s or 0.0)
                prompt.append(said)
                output.append(tokens)
                topic.append(number)
                follows.append(before)
                if labels is not None and file.labels is not None:
                    labels.append(file.labels[number])
                before, turns = len(prompt) - 1, turns + 1
            said += tokens
        unanswered += not turns
    if 0 < timed < conversations:
        raise file.error(
            1, f"{timed} of {conversations} conversations have a time, expected all or none"
        )
    if not prompt:
        raise file.error(1, f"none of the {conversations} conversations has an answer")
    known = [a + b for a, b in zip(prompt, output, strict=True)]
    return TraceRows(
        np.array(arrival_s),
        np.array(prompt, np.int64),
        np.array(output, np.int64),
        content_ids=[[one] for one in topic] if content else None,
        unit_tokens=max(known),
        known_tokens=known if content else None,
        follows=follows,
        think_s=[0.0] * len(prompt),
        notes=_notes(conversations, len(prompt), unanswered, timed > 0, count is not None),
    ).workload(replace(file, labels=labels))


def _notes(
    conversations: int, answers: int, unanswered: int, timed: bool, counted: bool
) -> tuple[str, ...]:
    notes = [f"{conversations} conversations, {answers} answers, each of them a request"]
    if unanswered:
        notes[0] += f"; {unanswered} conversations without an answer left out"
    if not counted:
        notes.append(
            f"text without token counts: lengths are estimated at {BYTES_PER_TOKEN} bytes a token; "
            "workload.tokenizer counts them"
        )
    if not timed:
        notes.append("no times in it: all conversations begin at once, unless arrivals are given")
    if answers > conversations - unanswered:
        notes.append("how long users read is not recorded: turns follow their answers at once")
    return tuple(notes)


def _messages(entry: Entry) -> list[tuple[bool, str]]:
    """Who answers, and what is said, turn by turn."""
    key = entry.first(TURNS)
    turns = entry.get(key)
    if not isinstance(turns, list):
        raise entry.error(f"{entry.given(key)}, expected a list of messages")
    found = []
    for number, turn in enumerate(turns):
        row = turn if isinstance(turn, Mapping) else {}
        speaker = next((row[one] for one in SPEAKERS if isinstance(row.get(one), str)), None)
        text = next((row[one] for one in TEXTS if one in row), "")
        if isinstance(text, list):  # OpenAI's parts of a message
            text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
        if speaker is None or not isinstance(text, str | None):
            raise entry.error(
                f"{key}[{number}] is no message, expected who speaks (from, role) and what (value, "
                "content)"
            )
        found.append((speaker.lower() in ANSWERING, text or ""))
    return found


def _time_s(entry: Entry, keys: tuple[str, ...]) -> float | None:
    key = entry.first(keys)
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, int | float):
        number = entry.number(key)
        unit: Unit | None = unit_by_size(number)
        if unit is None:
            raise entry.error(f"{entry.given(key)}, expected a date, or a time since 1970")
        return number / PER_S[unit]
    return entry.date_s(key)
