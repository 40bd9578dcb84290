"""Prometheus' range queries of vLLM's metrics as a trace."""

import json
import re

import numpy as np
import pytest

from sim.workload import TraceError, read_trace
from sim.workload.trace_file import TraceFile
from sim.workload.trace_prometheus import quantile, read_metrics

S0, STEP = 1_700_000_000, 15
DONE = [100, 104, 110, 118, 130, 130]  # answered until each scrape


def series(name, values, **labels):
    samples = [[S0 + STEP * at, str(value)] for at, value in enumerate(values)]
    return {"metric": {"__name__": f"vllm:{name}", "engine": "0", **labels}, "values": samples}


def answer(*found):
    return {"status": "success", "data": {"resultType": "matrix", "result": list(found)}}


def histogram(name, mean, bounds):
    """Half of the values up to the first bound, all of them up to the second."""
    return [
        series(f"{name}_bucket", [done // 2 for done in DONE], le=str(bounds[0])),
        series(f"{name}_bucket", DONE, le=str(bounds[1])),
        series(f"{name}_bucket", DONE, le="+Inf"),
        series(f"{name}_sum", [done * mean for done in DONE]),
        series(f"{name}_count", DONE),
    ]


ANSWERED = [
    series("request_success_total", [done - 7 for done in DONE], finished_reason="stop"),
    series("request_success_total", [7] * 6, finished_reason="length"),
]
COUNTERS = [
    series("prompt_tokens_total", [done * 200 for done in DONE]),
    series("generation_tokens_total", [done * 50 for done in DONE]),
]
LENGTHS = [
    *histogram("request_prompt_tokens", 90.0, (100.0, 200.0)),
    *histogram("request_generation_tokens", 40.0, (20.0, 50.0)),
]


@pytest.fixture
def write(tmp_path):
    def write_trace(value):
        path = tmp_path / "metrics.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write_trace


def test_a_step_has_as_many_requests_as_were_answered_in_it(write):
    workload = read_trace(write(answer(*ANSWERED, *COUNTERS)))
    assert len(workload) == 30
    first_s = workload.arrival_s + S0  # the first request is at 0: no more than a step is lost
    assert np.histogram(first_s - S0, [0, 15, 30, 45, 75])[0].sum() == 30
    assert set(workload.prompt_tokens.tolist()) == {200}
    assert set(workload.output_tokens.tolist()) == {50}
    assert "where they were answered, not where they came" in workload.notes[0]
    assert read_trace(write(answer(*ANSWERED, *COUNTERS))).arrival_s.tolist() == (
        workload.arrival_s.tolist()
    )


def test_what_is_in_flight_tells_when_requests_came(write):
    gauges = [series("num_requests_running", [2, 12, 6, 3, 2, 2]),
              series("num_requests_waiting", [0] * 6)]  # fmt: skip
    workload = read_trace(write(answer(*ANSWERED, *COUNTERS, *gauges)))
    assert len(workload) == 30
    came = np.histogram(workload.arrival_s, [0, 14, 90])[0]
    assert came[0] >= 12  # 4 were answered in the first step, 10 more were on their way
    assert "where they came" not in workload.notes[0]


def test_lengths_are_those_of_the_histograms(write):
    workload = read_trace(write(answer(*ANSWERED, *LENGTHS)))
    assert workload.prompt_tokens.mean() == pytest.approx(90, abs=0.5)
    assert workload.output_tokens.mean() == pytest.approx(40, abs=0.5)
    assert len(set(workload.prompt_tokens.tolist())) > 20
    assert "prompts by their histogram" in workload.notes[1]


@pytest.mark.parametrize("written", [
    lambda parts: [answer(part) for part in parts],
    lambda parts: "".join(json.dumps(answer(part)) + "\n" for part in parts),
    lambda parts: json.dumps(answer(*parts), indent=2),
    lambda parts: answer(*parts)["data"],
])  # fmt: skip
def test_answers_come_one_by_one_or_together(write, written):
    assert len(read_trace(write(written([*ANSWERED, *COUNTERS])), format="prometheus")) == 30


def test_rates_by_their_queries_are_counts_again(write):
    parts = {
        "sum(rate(vllm:request_success_total[1m]))": 0.4,
        "sum(increase(vllm:prompt_tokens_total[1m]))": 0.4 * 60 * 200,
        "sum(rate(vllm:generation_tokens_total[1m]))": 0.4 * 50,
    }
    given = {
        query: answer({"metric": {}, "values": [[S0 + 15 * at, str(value)] for at in range(6)]})
        for query, value in parts.items()
    }
    workload = read_trace(write(given), format="prometheus")
    assert len(workload) == 30  # 0.4 a second over 75 s
    assert set(workload.prompt_tokens.tolist()) == {200}


def test_a_counter_that_begins_anew_is_no_loss(write):
    again = [100, 104, 3, 9, 20, 20]
    metrics = read_metrics(TraceFile.read(write(answer(series("request_success_total", again)))))
    assert metrics.increase("request_success_total").tolist() == [4, 3, 6, 11, 0]
    found = quantile((np.array([0.1, 0.5, np.inf]), np.array([5.0, 10.0, 10.0])), 0.75)
    assert found == pytest.approx(0.3)


ONE = answer(ANSWERED[0])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"status": "error", "errorType": "bad_data", "error": "parse error", "data": {
            "resultType": "matrix"}}, ":1: Prometheus refused the query (bad_data: parse error)"),
        (answer(*COUNTERS), ":1: no count of requests among"),
        (answer(*ANSWERED), ":1: neither request_prompt_tokens nor prompt_tokens_total"),
        ({"status": "success", "data": {"resultType": "vector", "result": []}},
         ":1: resultType is 'vector', expected matrix"),
        (answer({"metric": {}, "values": [[S0, "1"], [S0 + 1, "2"]]}), "which metric it is of"),
        (json.dumps(ONE).replace('"104"', 'null').replace('"97"', "{}"),
         ":1: vllm:request_success_total: values[1] is"),
        (json.dumps(ONE)[:-3], ":1: not JSON"),
        (answer({"metric": {"__name__": "vllm:request_success_total"}, "values": [[S0, "1"]]}),
         ":1: samples of one time alone"),
        (answer({"metric": {"__name__": "up"}, "values": [[S0, "1"], [S0 + 1, "1"]]}),
         ":1: no series of an engine's metrics"),
    ],
)  # fmt: skip
def test_what_is_no_range_query_is_refused_in_one_line(write, value, message):
    with pytest.raises(TraceError, match=re.escape(message)) as caught:
        read_trace(write(value))
    assert "\n" not in str(caught.value)
