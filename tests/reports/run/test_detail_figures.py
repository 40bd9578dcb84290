"""What the run report draws beyond the records: numbers equal to the records', small, escaped."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reports.page.figures import TimeAxis
from reports.page.style import PALETTE
from reports.page.timeline import chart_edges, run_end_s
from reports.run.block_view import BlockView
from reports.run.details import FILE, folded, load_details
from reports.run.operator_figures import CLASSES, of_parts, operator_totals, operators_over_time
from reports.run.prompt_scatter import MAX_POINTS, prompt_scatter
from reports.run.replica_figures import Replicas, replica_bars, replica_load, replicas_up
from reports.run.report import run_report, run_sections
from reports.run.request_lanes import MAX_KEPT, MAX_ROWS, request_lanes
from reports.run.roofline_figure import roofline
from scenarios.forecast.forecast import Forecast, forecast
from scenarios.forecast.run_details import run_details
from scenarios.forecast.saturation import saturation_warning
from scenarios.schema.load import load_scenario
from sim.latency.protocol import OPERATORS
from tests.reports.run.test_report import EVIL, Checker, figures_of

SMALL = {
    "workload.num_requests": 40,
    "engine.num_gpu_blocks_override": 160,
    "engine.max_num_seqs": 8,
    "engine.enable_prefix_caching": "true",
    "workload.shared_prefixes": "{num_prefixes: 2, tokens: 64}",
    "workload.lengths.prompt": "{distribution: uniform, min: 80, max: 300}",
    "workload.lengths.output": "{distribution: uniform, min: 5, max: 60}",
}


def run(scenario: str, settings: dict[str, Any] | None = None) -> tuple[Forecast, dict[str, Any]]:
    overrides = [f"{path}={value}" for path, value in (settings or {}).items()]
    loaded, origin = load_scenario(scenario, overrides)
    found = forecast(loaded, origin=origin)
    # As a reader of details.json gets them.
    return found, json.loads(json.dumps(folded(found.records, run_details(found))))


def axis_of(found: Forecast) -> TimeAxis:
    return TimeAxis(run_end_s(found.records.requests, found.records.iterations))


@pytest.fixture(scope="module")
def small() -> tuple[Forecast, dict[str, Any]]:
    return run("quickstart", SMALL)


@pytest.fixture(scope="module")
def cluster() -> tuple[Forecast, dict[str, Any]]:
    return run("replica-failure", {"workload.num_requests": 4000})


# -- where the time goes ------------------------------------------------------------------------


def test_every_class_of_operation_has_a_name_and_a_colour() -> None:
    assert set(CLASSES) == set(OPERATORS)
    assert {thing for _, thing in CLASSES.values()} <= set(PALETTE)


@pytest.mark.parametrize("requests", [10, 600])
def test_operators_over_time_integrate_to_their_totals(requests: int) -> None:
    found, details = run("tensor-parallel", {"workload.num_requests": requests})
    operators, axis = details["operators"], axis_of(found)
    duration_s = found.records.iterations["duration_s"].sum()
    assert sum(operators["total_s"].values()) == pytest.approx(duration_s, rel=1e-5)
    figure = operators_over_time(operators, axis, lanes=1)
    assert figure is not None
    width_s = np.diff(operators["edges_s"])
    for trace, key in zip(figure.data, figure.keys, strict=True):
        assert trace["name"] == key.label
        name = next(n for n, (label, _) in CLASSES.items() if label == key.label)
        drawn_s = float((np.array(trace["y"][:-1]) / 100 * width_s).sum())
        assert drawn_s == pytest.approx(operators["total_s"][name], rel=5e-3)
    bars = operator_totals(operators["total_s"], replicas=1)
    assert bars is not None
    assert sum(bars.data[0]["x"]) == pytest.approx(100, abs=0.1)
    assert bars.data[0]["x"] == sorted(bars.data[0]["x"], reverse=True)


def test_without_details_the_summarys_parts_are_drawn() -> None:
    total_s = of_parts({"linear": 2.0, "communication": 0.5, "swap": 1.0, "copy": 0.5, "nil": 0.0})
    assert total_s == {"layers": 2.0, "all_reduce": 0.5, "swap": 1.5}
    figure = operator_totals({**total_s, "<b>odd</b>": 1.0}, replicas=1)
    assert figure is not None
    assert "&lt;b&gt;odd" in json.dumps(figure.layout)
    assert operator_totals({}, replicas=1) is None


# -- roofline -------------------------------------------------------------------------------------


def test_roofline_draws_what_was_done_over_what_it_took(
    small: tuple[Forecast, dict[str, Any]],
) -> None:
    found, details = small
    iterations, work = found.records.iterations, details["work"]
    figure = roofline(work, iterations)
    assert figure is not None
    names = [trace["name"] for trace in figure.data]
    assert names == ["Prefill", "Mixed", "Decode", "h200-sxm"]
    points = sum(len(trace["x"]) for trace in figure.data[:3])
    assert points == len(work["rows"]) == len(iterations["start_s"])
    mine = [at for at, kind in enumerate(work["kind"]) if kind == 2]
    rows = np.array(work["rows"])[mine]
    flops, moved = np.array(work["flops"])[mine], np.array(work["bytes"])[mine]
    decode = figure.data[2]
    assert decode["x"] == pytest.approx((flops / moved).tolist(), rel=1e-3)
    rate = flops / iterations["duration_s"][rows] / 1e12
    assert decode["y"] == pytest.approx(rate.tolist(), rel=1e-3)
    roof = figure.data[3]
    assert roof["y"][-1] == pytest.approx(989, rel=2e-3)
    assert roof["y"][0] / roof["x"][0] == pytest.approx(4.8, rel=1e-2)
    assert "FLOP/byte" in figure.layout["xaxis"]["title"]["text"]
    assert "TFLOP/s" in figure.layout["yaxis"]["title"]["text"]


def test_details_of_another_run_are_refused(small: tuple[Forecast, dict[str, Any]]) -> None:
    found, details = small
    few = {name: column[:3] for name, column in found.records.iterations.items()}
    with pytest.raises(ValueError, match="not of these iterations"):
        roofline(details["work"], few)


# -- TTFT against prompts -----------------------------------------------------------------------


def test_every_request_of_a_small_run_is_a_point(small: tuple[Forecast, dict[str, Any]]) -> None:
    requests = small[0].records.requests
    figure = prompt_scatter(requests)
    assert figure is not None
    assert "Every request is a point." in figure.caption
    drawn = {
        number: (tokens, ttft)
        for trace in figure.data
        for number, tokens, ttft in zip(trace["customdata"], trace["x"], trace["y"], strict=True)
    }
    ttft_ms = 1e3 * (requests["first_token_s"] - requests["arrival_s"])
    assert len(drawn) == len(ttft_ms)
    for row, number in enumerate(requests["request"].tolist()):
        assert drawn[number][0] == requests["prompt_tokens"][row]
        assert drawn[number][1] == pytest.approx(ttft_ms[row], rel=1e-3)
    queued = requests["scheduled_s"] - requests["arrival_s"] > ttft_ms / 2e3
    by_name = {trace["name"]: len(trace["x"]) for trace in figure.data}
    assert by_name.get("Mostly queued", 0) == queued.sum()


def test_a_large_run_is_sampled_and_says_so(make_large_run: Any) -> None:
    figure = prompt_scatter(make_large_run(9_000, 20_000).requests)
    assert figure is not None
    points = [trace for trace in figure.data if trace["mode"] == "markers"]
    lines = [trace for trace in figure.data if trace["mode"] != "markers"]
    assert sum(len(trace["x"]) for trace in points) == MAX_POINTS
    assert "2,000 of 9,000 requests are drawn" in figure.caption
    assert [line["name"] for line in lines] == ["Median", "p95"]
    assert (np.array(lines[0]["y"]) <= np.array(lines[1]["y"])).all()


# -- requests over time ---------------------------------------------------------------------------


def lane_times(figure: Any) -> dict[int, tuple[float, ...]]:
    """Request -> arrival, in a batch, first token, last token, returned (units of the axis)."""
    lanes = figure.lanes
    columns = [np.array(column) for column in lanes["columns"]]
    columns[0] = np.cumsum(columns[0])
    numbers = (np.cumsum(lanes["numbers"]) - 1).tolist()
    times = np.cumsum(columns, axis=0).T * lanes["tick"]
    return dict(zip(numbers, map(tuple, times.tolist()), strict=True))


@pytest.mark.parametrize("policy", ["chunked", "static"])
def test_lanes_hold_the_times_of_the_records(policy: str) -> None:
    found, _ = run("quickstart", {**SMALL, "engine.scheduler": policy})
    requests, axis = found.records.requests, axis_of(found)
    figure = request_lanes(requests, found.records.preemptions, axis)
    assert figure is not None and figure.lanes is not None
    names = ["arrival_s", "scheduled_s", "first_token_s", "last_token_s"]
    if policy == "static":
        names.append("finished_s")
        assert "Finished, held by its batch" in figure.lanes["names"]
    times = lane_times(figure)
    for row, number in enumerate(requests["request"].tolist()):
        expected = [float(requests[name][row]) / axis.unit[1] for name in names]
        assert times[number] == pytest.approx(expected, abs=3e-7 * axis.end_s / axis.unit[1])
    decode = next(trace for trace in figure.data if trace["name"] == "Decode")
    of = {number: at for at, number in enumerate(decode["customdata"])}
    for number, at in of.items():
        assert decode["base"][at] == pytest.approx(times[number][2], rel=1e-4)
        assert decode["x"][at] == pytest.approx(times[number][3] - times[number][2], rel=1e-3)


def test_preemptions_are_laid_over_the_lanes() -> None:
    settings = {**SMALL, "engine.num_gpu_blocks_override": 60}
    found, _ = run("quickstart", settings)
    preemptions = found.records.preemptions
    assert len(preemptions["request"]) > 3
    axis = axis_of(found)
    figure = request_lanes(found.records.requests, preemptions, axis)
    assert figure is not None and figure.lanes is not None
    assert figure.data[-1]["name"] == "Preempted"
    away = np.array(figure.lanes["away"], dtype=float)
    numbers = np.cumsum(figure.lanes["numbers"]) - 1
    assert sorted(numbers[away[:, 0].astype(int)]) == sorted(preemptions["request"])
    lasted = (away[:, 2] - away[:, 1]).sum() * figure.lanes["tick"] * axis.unit[1]
    expected = (preemptions["resumed_s"] - preemptions["preempted_s"]).sum()
    assert lasted == pytest.approx(expected, rel=1e-3)


def test_very_many_requests_are_thinned_out_evenly(make_large_run: Any) -> None:
    made = make_large_run(MAX_KEPT + 5_000, 9_000)
    figure = request_lanes(
        made.requests, made.preemptions, TimeAxis(run_end_s(made.requests, made.iterations))
    )
    assert figure is not None and figure.lanes is not None
    assert len(figure.lanes["numbers"]) == MAX_KEPT
    assert "keeps 20,000 of the 25,000 requests" in figure.caption
    rows = {row for trace in figure.data for row in trace["y"]}
    assert max(rows) == MAX_ROWS - 1


# -- replicas -------------------------------------------------------------------------------------


def test_unfinished_requests_of_each_replica_integrate_to_the_records(
    cluster: tuple[Forecast, dict[str, Any]],
) -> None:
    found, _ = cluster
    records, axis = found.records, axis_of(found)
    iterations = records.iterations
    replicas = Replicas.of(found.scenario, found.summary, iterations)
    edges_s = chart_edges(records.requests, iterations)
    figure = replica_load(replicas, iterations, edges_s, axis)
    heat = figure.data[0]
    width_s = np.diff(np.array(heat["x"], dtype=float)) * axis.unit[1]
    for replica, row in enumerate(heat["z"]):
        mine = iterations["replica"] == replica
        unfinished = (iterations["running"] + iterations["waiting"])[mine]
        expected = float((unfinished * iterations["duration_s"][mine]).sum())
        assert float((np.array(row) * width_s).sum()) == pytest.approx(expected, rel=5e-3)


def test_a_failure_is_marked_on_its_replica_for_as_long_as_it_lasts(
    cluster: tuple[Forecast, dict[str, Any]],
) -> None:
    found, _ = cluster
    (failure,) = found.scenario["cluster"]["failures"]
    axis = axis_of(found)
    iterations = found.records.iterations
    replicas = Replicas.of(found.scenario, found.summary, iterations)
    edges_s = chart_edges(found.records.requests, iterations)
    marked = replica_load(replicas, iterations, edges_s, axis).data[1]
    assert marked["y"] == [failure["replica"]] * 2 + [None]
    ends = min(failure["at_s"] + failure["recover_after_s"], axis.end_s)
    assert marked["x"][:2] == pytest.approx(
        [failure["at_s"] / axis.unit[1], ends / axis.unit[1]], rel=1e-5
    )
    up = replicas_up(replicas, axis)
    assert up is not None
    assert min(up.data[0]["y"]) == len(replicas.names) - 1


def test_bars_by_replica_are_the_summarys_and_the_records(
    cluster: tuple[Forecast, dict[str, Any]],
) -> None:
    found, _ = cluster
    requests, iterations = found.records.requests, found.records.iterations
    replicas = Replicas.of(found.scenario, found.summary, iterations)
    busy, tokens, e2e = replica_bars(replicas, requests, iterations)
    shares = found.summary["cluster"]["busy_share"]
    assert busy.data[0]["y"] == pytest.approx([100 * share for share in shares], rel=1e-3)
    decode, prefill = tokens.data
    assert sum(prefill["y"]) == pytest.approx(iterations["prefill_tokens"].sum(), rel=1e-3)
    assert sum(decode["y"]) == pytest.approx(iterations["decode_seqs"].sum(), rel=1e-3)
    mine = requests["replica"] == 2
    expected = float((requests["finished_s"] - requests["arrival_s"])[mine].mean())
    assert e2e.data[0]["y"][2] == pytest.approx(expected, rel=1e-3)


def test_replicas_that_an_autoscaler_never_started_are_left_out() -> None:
    found, _ = run("autoscaling", {"workload.num_requests": 600})
    records, summary = found.records, found.summary
    up = max(number for _, number in summary["cluster"]["replicas_over_time"])
    assert summary["cluster"]["replicas"] == 6 and 1 < up < 6
    replicas = Replicas.of(found.scenario, summary, records.iterations)
    assert len(replicas.names) == up and replicas.never_started == 6 - up
    busy, *_ = replica_bars(replicas, records.requests, records.iterations)
    assert len(busy.data[0]["y"]) == up and busy.data[0]["y"][0] > 0
    page = run_report(records, scenario=found.scenario, summary=summary)
    assert f"up to {up} of 6 replicas of h100-sxm" in page
    assert f"{6 - up} of 6 replicas never started." in page


def test_rows_of_the_latency_table_have_one_unit_each(make_batched_run: Any) -> None:
    run = make_batched_run([6, 8, 4, 7], rows=2)
    run.summary |= {"mean_ttft_ms": 10_500, "p90_ttft_ms": 7_751, "p99_ttft_ms": 23_200}
    page = run_report(run, scenario=run.scenario, summary=run.summary)
    row = re.search(r'<th scope="row">TTFT.*?</tr>', page)
    assert row is not None and "\u00a0ms" not in row[0]
    assert "10.5\u00a0s" in row[0] and "7.75\u00a0s" in row[0]


def test_roles_of_a_disaggregated_cluster_are_named_and_coloured() -> None:
    found, _ = run("disaggregated", {"workload.num_requests": 60})
    replicas = Replicas.of(found.scenario, found.summary, found.records.iterations)
    assert replicas.names == ("prefill 0", "prefill 1", "decode 2", "decode 3")
    things = [replicas.thing(replica) for replica in range(4)]
    assert things == ["prefill", "prefill", "decode", "decode"]


# -- blocks ---------------------------------------------------------------------------------------


def test_block_map_draws_every_hold_and_what_is_shared(
    small: tuple[Forecast, dict[str, Any]],
) -> None:
    found, details = small
    blocks, axis = details["blocks"], axis_of(found)
    view = BlockView.of(blocks, found.records.requests, ["replica 0"])
    figure = view.map(axis)
    assert figure is not None
    bars = [trace for trace in figure.data if trace["name"].startswith("Requests")]
    assert sum(len(trace["x"]) for trace in bars) == len(blocks["holds"])
    iterations = found.records.iterations
    block_s = sum(sum(trace["x"]) for trace in bars) * axis.unit[1]
    held_s = 0.0
    for at, (start_s, end_s) in enumerate(
        zip(blocks["starts_s"][0], blocks["ends_s"][0], strict=True)
    ):
        holds = [hold for hold in blocks["holds"] if hold[3] <= at < hold[4]]
        next_s = blocks["starts_s"][0][at + 1] if at + 1 < len(blocks["starts_s"][0]) else end_s
        goes_on = sum(hold[4] > at + 1 for hold in holds)
        held_s += len(holds) * (end_s - start_s) + goes_on * (next_s - end_s)
    assert block_s == pytest.approx(held_s, rel=1e-3)
    shared = sum(
        (blocks["ends_s"][0][last - 1] - blocks["starts_s"][0][first])
        for _, _, first, last in view.shared_spans()
    )
    drawn = next(trace for trace in figure.data if trace["name"] == "Shared")
    assert sum(drawn["x"]) * axis.unit[1] == pytest.approx(shared, rel=1e-3)
    at_once = [
        len({hold[2] for hold in blocks["holds"] if hold[3] <= at < hold[4]})
        for at in range(len(iterations["start_s"]))
    ]
    assert max(at_once) <= 160


def test_a_run_too_large_for_blocks_says_so_in_the_report() -> None:
    found, details = run("quickstart", {"workload.num_requests": 200})
    page = run_report(
        found.records, scenario=found.scenario, summary=found.summary, details=details
    )
    assert "Drawn for runs of up to 64 requests; this one has 200." in page
    assert 'id="block-map"' not in page


# -- the page -------------------------------------------------------------------------------------


def test_page_with_details_is_whole_valid_and_in_order(
    small: tuple[Forecast, dict[str, Any]],
) -> None:
    from plotly.graph_objects import Figure

    found, details = small
    page = run_report(
        found.records, scenario=found.scenario, summary=found.summary, details=details
    )
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    order = ["latency", "ttft-by-prompt", "throughput", "operator-totals", "operators-over-time"]
    order += ["roofline", "request-lanes", "block-map", "block-tables", "scenario", "provenance"]
    places = [page.index(f'id="{name}"') for name in order]
    assert places == sorted(places)
    for figure in figures_of(checker):
        drawn = Figure(data=figure["data"], layout=figure["layout"])
        assert drawn.layout.xaxis.title.text, f"{figure['name']} has no unit on x"
        if figure["name"] not in ("operator-totals", "replica-load"):
            assert drawn.layout.yaxis.title.text, f"{figure['name']} has no unit on y"
    assert "(hopper kernels)" in page


def test_everything_over_time_zooms_together(cluster: tuple[Forecast, dict[str, Any]]) -> None:
    found, details = cluster
    sections = run_sections(
        found.records, scenario=found.scenario, summary=found.summary, details=details
    )
    over_time = {
        figure.name
        for section in sections
        for figure in section.figures
        if str(figure.layout["xaxis"]["title"]["text"]).startswith("Time since")
    }
    linked = {
        figure.name for section in sections for figure in section.figures if figure.group == "time"
    }
    assert over_time == linked
    assert {"operators-over-time", "replica-load", "replicas-up", "request-lanes"} <= linked


def test_names_from_outside_stay_text_in_lanes_blocks_and_provenance(
    small: tuple[Forecast, dict[str, Any]],
) -> None:
    found, details = small
    records = found.records
    count = len(records.requests["request"])
    named = {**records.requests, "request_id": np.array([EVIL] * count)}

    class Named:
        requests = named
        iterations, preemptions = records.iterations, records.preemptions

    roofs = [{**roof, "gpu": EVIL} for roof in details["work"]["roofs"]]
    evil = {
        **details,
        "work": {**details["work"], "roofs": roofs},
        "origins": [[EVIL, False, EVIL]],
    }
    page = run_report(Named(), scenario=found.scenario, summary=found.summary, details=evil)
    checker = Checker()
    checker.feed(page)
    checker.close()
    scripts = [text for kind, text in checker.scripts if kind != "application/json"]
    assert not any("alert(1)" in text for text in scripts)
    assert "".join(checker.text).count("alert(1)") >= 2
    figures = {figure["name"]: figure for figure in figures_of(checker)}
    for name in ("block-map", "roofline"):
        text = json.dumps(figures[name])
        assert "&lt;script&gt;" in text
        assert "<script>" not in text


def test_twenty_thousand_requests_with_details_stay_under_six_megabytes() -> None:
    found, details = run("quickstart", {"workload.num_requests": 20_000})
    page = run_report(
        found.records, scenario=found.scenario, summary=found.summary, details=details
    )
    assert len(page.encode()) < 6_000_000
    assert len(json.dumps(details)) < 500_000


# -- details.json ---------------------------------------------------------------------------------


def test_details_are_optional_and_a_damaged_file_says_so(tmp_path: Path) -> None:
    assert load_details(tmp_path) is None
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ValueError, match=r"details\.json: not JSON"):
        load_details(tmp_path)
    (tmp_path / FILE).write_text('{"version": 99}')
    with pytest.raises(ValueError, match="delete it to do without"):
        load_details(tmp_path)


# -- saturation -----------------------------------------------------------------------------------


def test_a_load_beyond_capacity_is_called_saturated_and_one_within_is_not() -> None:
    for rate, saturated in ((400, True), (10, False)):
        settings = {"workload.num_requests": 1500, "workload.arrivals.request_rate": rate}
        found, _ = run("quickstart", settings)
        said = saturation_warning(found.records.requests, found.records.preemptions)
        assert (said is not None) == saturated
        page = run_report(found.records, scenario=found.scenario, summary=found.summary)
        top = page[: page.index('class="cards"')]
        assert ("Saturated: the queue grew" in top) == saturated


def test_a_batch_job_and_clients_that_wait_are_not_called_saturated() -> None:
    found, _ = run("quickstart", {"workload.num_requests": 1500,
                                  "workload.arrivals": "{process: all_at_once}"})  # fmt: skip
    assert saturation_warning(found.records.requests, found.records.preemptions) is None
    found, _ = run("quickstart", {"workload.num_requests": 1500,
                                  "workload.arrivals.request_rate": 400})  # fmt: skip
    requests = found.records.requests
    assert saturation_warning(requests, found.records.preemptions, closed_loop=True) is None
