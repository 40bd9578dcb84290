"""Spans of OpenTelemetry's, however they were written down, are requests to a model."""

import json
import re
from datetime import UTC, datetime

import pytest

from sim.workload import TraceError, read_trace

S0 = 1_700_000_000


def call(number, at_s, prompt, output, *, parent="", failed=False, **attributes):
    """What a span is about, whatever it is written as."""
    names = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": prompt,
        "gen_ai.usage.output_tokens": output,
    } | {key.replace("__", "."): value for key, value in attributes.items()}
    return {
        "id": f"{number:016x}",
        "parent": parent,
        "start_ns": int((S0 + at_s) * 1e3) * 10**6,
        "attributes": {key: value for key, value in names.items() if value is not None},
        "failed": failed,
    }


CALLS = [
    call(1, 0.0, None, None, gen_ai__operation__name="invoke_agent"),
    call(2, 0.0, 40, 5, parent=f"{1:016x}", gen_ai__conversation__id="c"),
    call(3, 0.1, 40, 5, parent=f"{2:016x}"),  # the same call, as another library saw it
    call(4, 3.057, 50, 6, gen_ai__conversation__id="c"),
    call(5, 4.0, 9, None, failed=True),
]


def typed(value):
    return {"stringValue": value} if isinstance(value, str) else {"intValue": str(value)}


def otlp(calls, *, lines=True):
    spans = [
        {
            "traceId": "ab" * 16, "spanId": one["id"], "parentSpanId": one["parent"],
            "name": "chat m", "kind": 3, "startTimeUnixNano": str(one["start_ns"]),
            "endTimeUnixNano": str(one["start_ns"] + 10**9),
            "attributes": [{"key": key, "value": typed(value)}
                           for key, value in one["attributes"].items()],
            "status": {"code": 2} if one["failed"] else {},
        }
        for one in calls
    ]  # fmt: skip
    batches = [[span] for span in spans] if lines else [spans]
    return "".join(
        json.dumps({"resourceSpans": [{"resource": {"attributes": []},
                                       "scopeSpans": [{"scope": {}, "spans": each}]}]}) + "\n"
        for each in batches
    )  # fmt: skip


def date(ns):
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def console(calls):
    """One pretty object after the other, as the Python SDK's ConsoleSpanExporter prints them."""
    return "".join(
        json.dumps({
            "name": "chat m",
            "context": {"trace_id": "0x" + "ab" * 16, "span_id": one["id"], "trace_state": "[]"},
            "kind": "SpanKind.CLIENT", "parent_id": one["parent"] or None,
            "start_time": date(one["start_ns"]), "end_time": date(one["start_ns"] + 10**9),
            "status": {"status_code": "ERROR" if one["failed"] else "UNSET"},
            "attributes": one["attributes"], "events": [], "links": [], "resource": {},
        }, indent=4) + "\n"
        for one in calls
    )  # fmt: skip


def jaeger(calls):
    spans = [
        {
            "traceID": "ab" * 16, "spanID": one["id"], "operationName": "chat m",
            "references": [{"refType": "CHILD_OF", "spanID": one["parent"]}],
            "startTime": one["start_ns"] // 1000, "duration": 1_000_000,
            "tags": [{"key": key, "type": "int64", "value": value}
                     for key, value in (one["attributes"] | {"error": one["failed"]}).items()],
        }
        for one in calls
    ]  # fmt: skip
    return json.dumps({"data": [{"traceID": "ab" * 16, "spans": spans, "processes": {}}]})


def zipkin(calls):
    return json.dumps([
        {"traceId": "ab" * 16, "id": one["id"], "parentId": one["parent"], "name": "chat m",
         "timestamp": one["start_ns"] // 1000, "duration": 1_000_000,
         "tags": {key: str(value) for key, value in one["attributes"].items()}
         | ({"error": "timeout"} if one["failed"] else {})}
        for one in calls
    ])  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write_trace(text):
        path = tmp_path / "spans"
        path.write_text(text)
        return path

    return write_trace


@pytest.mark.parametrize("text", [
    otlp(CALLS), otlp(CALLS, lines=False), console(CALLS), jaeger(CALLS), zipkin(CALLS),
])  # fmt: skip
def test_calls_of_a_model_are_requests_however_the_spans_were_written(write, text):
    workload = read_trace(write(text), content=True)
    assert workload.arrival_s.tolist() == pytest.approx([0.0, 3.057])
    assert workload.prompt_tokens.tolist() == [40, 50]
    assert workload.output_tokens.tolist() == [5, 6]
    assert workload.request_ids == [f"{2:016x}", f"{4:016x}"]
    assert workload.notes[0] == "spans: 1 of 3 requests left out: no prompt or no output token " \
        "(failed requests)"  # fmt: skip
    assert workload.notes[1].startswith("spans: 2 of 5 requests left out: span of no request")
    first, second = (workload.content.block_hashes(row, 5, 45) for row in (0, 1))
    assert first == second  # of one conversation


def test_an_engine_s_own_spans_are_read_by_its_names(write):
    row = call(7, 0.0, None, None, gen_ai__operation__name=None,
               gen_ai__usage__prompt_tokens=40, gen_ai__usage__completion_tokens=5)  # fmt: skip
    workload = read_trace(write(otlp([row])), label="gen_ai.request.model")
    assert (workload.prompt_tokens[0], workload.output_tokens[0]) == (40, 5)
    assert workload.labels == ["m"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (otlp(CALLS).replace('"intValue": "50"', '"intValue": "many"'),
         ":4: resourceSpans[0].scopeSpans[0].spans[0]: gen_ai.usage.input_tokens is 'many'"),
        (otlp(CALLS[1:2]).replace('"startTimeUnixNano": "17', '"startTimeUnixNano": "7'),
         ":1: resourceSpans[0].scopeSpans[0].spans[0]: startTimeUnixNano is"),
        (otlp(CALLS[1:2]).replace('"spans": [{', '"spans": [7, {'),
         ":1: resourceSpans[0].scopeSpans[0].spans[0] is 7, expected an object"),
        (otlp(CALLS[:1]), ":1: none of the 1 requests counts"),
        (console(CALLS)[:-4], ": not JSON"),
        (otlp(CALLS)[:-9], ":5: not JSON"),
        (jaeger(CALLS).replace('"duration": 1000000', '"duration": null', 1),
         ":1: data[0].spans[0]: duration is None"),
    ],
)  # fmt: skip
def test_a_span_that_cannot_be_read_is_named_in_one_line(write, text, message):
    with pytest.raises(TraceError, match=re.escape(message)) as caught:
        read_trace(write(text))
    assert len(str(caught.value)) <= 300
    assert "\n" not in str(caught.value)
