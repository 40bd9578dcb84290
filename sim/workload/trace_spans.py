"""Spans of OpenTelemetry's as requests: of the calls of a model, with the tokens they used.

Spans come as OTLP's JSON (one object, or one a line as the collector's file exporter writes them),
as a tracing store gives them out (Tempo, Jaeger, Zipkin), or as an SDK's console exporter prints
them. Whatever they come as, a span becomes a flat row: its attributes under their own names, and
`start_ns`, `e2e_s`, `first_token_s`, `failed`, `span_id`, `name`.

A span counts where it is a request to a model (OpenTelemetry's semantic conventions for generative
AI: `gen_ai.operation.name` is that of an inference, or is not there) and has token counts. Where
several libraries recorded one request, one span inside the other, the outermost counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sim.workload.trace_entries import Entry, Row, entries, json_objects, unit_by_size
from sim.workload.trace_file import TraceFile, shown
from sim.workload.trace_formats import FORMATS, PER_S, Keys, TraceFormat
from sim.workload.trace_streams import CountTokens, streamed

INFERENCES = {"chat", "text_completion", "generate_content", "completion", "completions"}
FIRST_TOKENS = ("first_token", "first token", "first chunk", "first_chunk", "completion.chunk")
_OPERATION = "gen_ai.operation.name"
_SCOPES = ("scopeSpans", "scope_spans", "instrumentationLibrarySpans")
_STARTS = ("startTimeUnixNano", "start_time_unix_nano", "start_time", "startTime", "timestamp")
_ENDS = ("endTimeUnixNano", "end_time_unix_nano", "end_time")


def requests_of(
    file: TraceFile, format: TraceFormat, count: CountTokens | None = None
) -> Iterator[Entry]:
    """The requests of a file of a format, in the file's order; `count` counts their text."""
    if format.spans:
        yield from _requests(file)
    elif format.streams:
        yield from streamed(file, format, count)
    else:
        yield from entries(file, format.rows)


def _requests(file: TraceFile) -> Iterator[Entry]:
    """A row a span; `span` says of those that are no request of their own that they are none."""
    format = FORMATS["opentelemetry"]
    assert format.left_out is not None
    found = [_flat(entry, service) for entry, service in _spans(file)]
    parents = {one.row["span_id"]: one.row["parent_id"] for one in found}
    calls = {one.row["span_id"] for one in found if _is_call(one, format)}
    for one in found:
        above, outermost = one.row["parent_id"], one.row["span_id"] in calls
        seen = {one.row["span_id"]}
        while outermost and above in parents and above not in seen:
            seen.add(above)
            outermost = above not in calls
            above = parents[above]
        if outermost:
            yield one
        else:
            key, value = format.left_out
            yield Entry(file, one.line, {**one.row, key: value}, one.place)


def _is_call(span: Entry, format: TraceFormat) -> bool:
    operation = span.row.get(_OPERATION)
    if operation is not None and str(operation).lower() not in INFERENCES:
        return False
    return any(_has(span, keys) for keys in (format.prompt, format.output))


def _has(span: Entry, keys: Keys) -> bool:
    return span.row.get(span.first(keys)) is not None


def _spans(file: TraceFile) -> Iterator[tuple[Entry, Row]]:
    """Every span where it lies, and the attributes of what sent it."""
    if file.table is not None:
        for number, row in enumerate(file.table, start=1):
            yield Entry(file, number, row), {}
        return
    if file.text.lstrip()[:1] == "[":
        for entry in entries(file):
            yield from _inside(entry)
        return
    for line, value in json_objects(file):
        if not isinstance(value, dict):
            raise file.error(line, f"{shown(value)} is not a JSON object, expected spans")
        yield from _inside(Entry(file, line, value))


def _inside(entry: Entry) -> Iterator[tuple[Entry, Row]]:
    """The spans of one JSON object, which may be one itself."""
    row = entry.row
    batches = row.get("resourceSpans", row.get("resource_spans", row.get("batches")))
    if batches is None and isinstance(row.get("trace"), Mapping):  # Tempo's second API
        batches = row["trace"].get("resourceSpans")
    if batches is not None:
        for at, batch in _each(entry, batches, "resourceSpans"):
            resource = batch.get("resource") or {}
            service = _attributes(entry, resource) if isinstance(resource, Mapping) else {}
            name = next((one for one in _SCOPES if one in batch), _SCOPES[0])
            for within, scope in _each(entry, batch.get(name), f"{at}.{name}"):
                for place, span in _each(entry, scope.get("spans"), f"{within}.spans"):
                    yield Entry(entry.file, entry.line, span, f"{place}: "), service
    elif isinstance(row.get("data"), list):  # Jaeger
        for at, trace in _each(entry, row["data"], "data"):
            for place, span in _each(entry, trace.get("spans"), f"{at}.spans"):
                yield Entry(entry.file, entry.line, span, f"{place}: "), {}
    else:
        yield entry, {}


def _each(entry: Entry, value: Any, place: str) -> Iterator[tuple[str, Row]]:
    if not isinstance(value, list):
        raise entry.error(f"{place} is {shown(value)}, expected a list")
    for number, one in enumerate(value):
        if not isinstance(one, Mapping):
            raise entry.error(f"{place}[{number}] is {shown(one)}, expected an object")
        yield f"{place}[{number}]", one


def _flat(span: Entry, service: Row) -> Entry:
    """A span as a row of its attributes, and of what all kinds of spans have."""
    row = span.row
    context = row.get("context")
    ids = {**row, **context} if isinstance(context, Mapping) else row
    number = next((ids[one] for one in ("spanId", "span_id", "spanID", "id") if one in ids), None)
    start_ns = _time_ns(span, _STARTS)
    if any(row.get(one) is not None for one in _ENDS):
        e2e_s = (_time_ns(span, _ENDS) - start_ns) / 1e9
        if e2e_s < 0:
            raise span.error("it ends before it begins, expected times in this order")
    else:
        e2e_s = span.number("duration") / 1e6  # Jaeger's and Zipkin's, in us
    found = {**service, **_attributes(span, row)}
    found |= {
        "name": row.get("name", row.get("operationName", "")),
        "span_id": str(number) if number is not None else f"{span.line} {span.place}",
        "parent_id": _parent(row),
        "start_ns": start_ns,
        "e2e_s": e2e_s,
        "failed": _failed(row, found),
    }
    first_ns = _first_token_ns(span)
    if first_ns is not None:
        found["first_token_s"] = (first_ns - start_ns) / 1e9
    return Entry(span.file, span.line, found, span.place)


def _time_ns(span: Entry, keys: Keys) -> int:
    """A time since 1970 in ns: a number whose unit its size tells, or a date."""
    key = span.first(keys)
    value = span.get(key)
    if isinstance(value, str) and value.strip().isdecimal():  # OTLP: 64-bit numbers are text
        value = int(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        unit = unit_by_size(value)
        if unit is None:
            raise span.error(f"{span.given(key)}, expected a time since 1970")
        return round(value * (10**9 // int(PER_S[unit])))
    return round(span.date_s(key) * 1e6) * 1000


def _attributes(span: Entry, holder: Row) -> dict[str, Any]:
    """Attributes by name: a mapping, OTLP's list of keys and typed values, or Jaeger's tags."""
    given = holder.get("attributes", holder.get("tags"))
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {str(key): _value(value) for key, value in given.items()}
    if not isinstance(given, list):
        raise span.error(f"attributes are {shown(given)}, expected a list or a mapping")
    found = {}
    for one in given:
        if not isinstance(one, Mapping) or "key" not in one:
            raise span.error(f"{shown(one)} is no attribute, expected a key and a value")
        found[str(one["key"])] = _value(one.get("value"))
    return found


def _value(given: Any) -> Any:
    """An attribute's value; OTLP says its type, and writes whole numbers as text."""
    if isinstance(given, Mapping) and len(given) == 1:
        kind, value = next(iter(given.items()))
        if kind in ("intValue", "int_value") and isinstance(value, str):
            return int(value) if value.lstrip("-").isdecimal() else value
        if str(kind).lower().replace("_", "").endswith("value"):
            return value
    if isinstance(given, str) and given.isdecimal() and len(given) < 19:
        return int(given)  # Zipkin's tags are texts, all of them
    return given


def _parent(row: Row) -> str:
    for key in ("parentSpanId", "parent_span_id", "parentId", "parent_id"):
        if row.get(key):
            return str(row[key])
    for one in row.get("references") or ():  # Jaeger's
        if isinstance(one, Mapping) and one.get("refType") == "CHILD_OF":
            return str(one.get("spanID"))
    return ""


def _failed(row: Row, attributes: Row) -> bool:
    status = row.get("status")
    if isinstance(status, Mapping):
        code = status.get("code", status.get("status_code"))
        if code == 2 or str(code).endswith("ERROR"):
            return True
    told = attributes.get("error.type", attributes.get("error"))
    return told not in (None, False, "false", "")


def _first_token_ns(span: Entry) -> int | None:
    """When the first event that tells of a token was; None where none is recorded."""
    events = span.row.get("events") or ()
    for one in events if isinstance(events, list) else ():
        if not isinstance(one, Mapping):
            continue
        name = str(one.get("name", "")).lower()
        if any(word in name for word in FIRST_TOKENS):
            event = Entry(span.file, span.line, one, span.place)
            return _time_ns(event, ("timeUnixNano", "time_unix_nano", "timestamp", "time"))
    return None
