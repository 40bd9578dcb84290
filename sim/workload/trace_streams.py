"""What a client saw of each answer, chunk by chunk, as requests: genai-perf's profile_export.json.

Perf Analyzer writes, experiment by experiment, a request's ``timestamp``, its ``request_inputs``,
and ``response_timestamps`` beside ``response_outputs``, all times in ns. A row becomes flat:
``timestamp``, ``ttft_ns``, ``e2e_ns``, ``prompt_tokens``, ``output_tokens``, ``failed``. As
genai-perf computes them, responses without text do not count: the first with text is the first
token, the last with text the end.

Lengths are those of a ``usage`` that the engine sent; else a tokenizer's, where one is given; else
a prompt is estimated from its text, and an answer has a token in every chunk with text, as engines
stream, or is estimated where it came whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sim.workload.trace_entries import Entry, entries
from sim.workload.trace_file import TraceFile, shown
from sim.workload.trace_formats import TraceFormat

BYTES_PER_TOKEN = 4
CountTokens = Callable[[str], int]


def estimated_tokens(text: str) -> int:
    """Tokens of a text, at four bytes each."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)


def streamed(file: TraceFile, format: TraceFormat, count: CountTokens | None) -> Iterator[Entry]:
    """The requests of a profile, in the order in which they were sent."""
    found = list(entries(file, format.rows))
    found.sort(key=lambda entry: entry.number("timestamp"))
    for entry in found:
        yield Entry(file, entry.line, _flat(entry, count), entry.place)


def _flat(entry: Entry, count: CountTokens | None) -> dict[str, Any]:
    began = entry.row["timestamp"]
    times, outputs = entry.get("response_timestamps"), entry.get("response_outputs")
    if not isinstance(times, list) or not isinstance(outputs, list) or len(times) != len(outputs):
        raise entry.error(
            f"response_timestamps {shown(times)}, response_outputs {shown(outputs)}: expected "
            "lists of equally many"
        )
    pieces: list[str] = []
    with_text: list[int] = []
    usage: Mapping[str, Any] = {}
    whole = False
    for at, output in enumerate(outputs):
        for one in _objects(entry, output):
            if isinstance(one.get("usage"), dict):
                usage = one["usage"]
            text, complete = _text(one)
            if text:
                whole |= complete
                pieces.append(text)
                with_text.append(at)
    row: dict[str, Any] = {"timestamp": began, "failed": not pieces}
    if not pieces:
        return row
    first, last = (
        Entry(entry.file, entry.line, {name: times[at]}, entry.place).number(name)
        for at in (with_text[0], with_text[-1])
        for name in (f"response_timestamps[{at}]",)
    )
    told = count or estimated_tokens
    answer, asked = "".join(pieces), _asked(entry)
    by_chunk = count is None and not whole and len(pieces) > 1
    row |= {
        "ttft_ns": first - began,
        "e2e_ns": last - began,
        "prompt_tokens": usage.get("prompt_tokens") or max(told(asked), 1),
        "output_tokens": usage.get("completion_tokens")
        or (len(pieces) if by_chunk else max(told(answer), 1)),
    }
    return row


def _objects(entry: Entry, output: Any) -> Iterator[Mapping[str, Any]]:
    """What a response holds: Triton's own object, a JSON answer, or events of a stream."""
    if not isinstance(output, dict):
        raise entry.error(f"response_outputs holds {shown(output)}, expected objects")
    text = output.get("response")
    if not isinstance(text, str):
        yield output
        return
    for line in text.splitlines():
        data = line.strip().removeprefix("data:").strip()
        if data and data != "[DONE]" and data[:1] == "{":
            try:
                found = json.loads(data)
            except (ValueError, RecursionError):
                raise entry.error(f"response_outputs holds {shown(data)}, no JSON") from None
            if isinstance(found, dict):
                yield found


def _text(one: Mapping[str, Any]) -> tuple[str, bool]:
    """What of an answer is in a response, and whether it is all of it at once."""
    if isinstance(one.get("text_output"), str):
        return one["text_output"], False
    choices = one.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return "", False
    for key in ("delta", "message"):
        inner = choice.get(key)
        if isinstance(inner, dict):
            said = "".join(
                inner[name]
                for name in ("reasoning_content", "content")
                if isinstance(inner.get(name), str)
            )
            return said, key == "message"
    text = choice.get("text")
    return (text if isinstance(text, str) else ""), False


def _asked(entry: Entry) -> str:
    """The text of a prompt, as far as the profile has it."""
    given = entry.get("request_inputs")
    if not isinstance(given, dict):
        return ""
    payload = given.get("payload")
    if isinstance(payload, str):
        try:
            payload = json.loads(payload)
        except (ValueError, RecursionError):
            return ""
    asked = payload if isinstance(payload, dict) else given
    if isinstance(asked.get("messages"), list):
        said = [one.get("content") for one in asked["messages"] if isinstance(one, dict)]
        parts = [
            part.get("text", "") if isinstance(part, dict) else part
            for content in said
            for part in (content if isinstance(content, list) else [content])
        ]
        return "".join(part for part in parts if isinstance(part, str))
    text = asked.get("prompt", asked.get("text_input", ""))
    if isinstance(text, list):
        text = "".join(part for part in text if isinstance(part, str))
    return text if isinstance(text, str) else ""
