"""Figures are valid Plotly, keep totals and say what they show."""

import numpy as np
import pytest
from plotly.graph_objects import Scatter

from reports.page import gpu_looks
from reports.page.figures import RunCharts
from reports.page.records import Latencies, request_latencies
from reports.page.style import PALETTE, colour, dark_of_light
from reports.page.timeline import MAX_BINS
from reports.run.latency_figures import CDF_POINTS, cdf_points, latency_cdf
from reports.run.service_levels import Judgement, ServiceLevels
from scenarios.library import gpus


def charts_of(run):
    return RunCharts(run.requests, run.iterations, run.preemptions)


def integral(trace):
    return float(np.sum(np.diff(trace["x"]) * np.array(trace["y"][:-1])))


def test_throughput_integrates_to_the_tokens_of_the_run(make_large_run):
    run = make_large_run(2_000, 50_000)
    figure = charts_of(run).throughput()
    unit_s = charts_of(run).axis.unit[1]
    traces = {trace["name"]: integral(trace) * unit_s for trace in figure.data}
    assert traces["Prompt"] == pytest.approx(run.iterations["prefill_tokens"].sum(), rel=1e-3)
    emitted = run.iterations["decode_seqs"].sum() + len(run.requests["request"])
    assert traces["Output"] == pytest.approx(emitted, rel=1e-3)


def test_emitted_tokens_are_drawn_where_the_run_counts_them(make_batched_run):
    run = make_batched_run([6, 8, 4, 7], rows=4, static=True)
    charts = charts_of(run)
    output = charts.throughput().data[1]
    assert integral(output) * charts.axis.unit[1] == pytest.approx(25, rel=1e-3)


def test_rows_computed_for_finished_sequences_are_padding(make_batched_run):
    figure = charts_of(make_batched_run([2, 8], rows=2, static=True)).batches()
    assert [key.label for key in figure.keys] == ["Decode", "Prefill", "Padding"]
    figure = charts_of(make_batched_run([2, 8], rows=2)).batches()
    assert [key.label for key in figure.keys] == ["Decode", "Prefill"]


def test_kinds_of_kv_memory_stack_up_to_everything(make_batched_run):
    figure = charts_of(make_batched_run([9, 5, 7], rows=2, reserve_tokens=12)).kv_memory()
    assert np.sum([trace["y"] for trace in figure.data], axis=0) == pytest.approx(100, abs=0.1)


def test_long_runs_are_averaged_and_say_so(make_large_run):
    charts = charts_of(make_large_run(2_000, 30_000))
    assert "each point is the mean of 100 iterations" in charts.resolution()
    for figure in (charts.throughput(), charts.load(256), charts.batches(), charts.kv_memory()):
        for trace in figure.data:
            assert len(trace["x"]) == len(trace["y"]) <= MAX_BINS + 1


def test_short_runs_draw_every_iteration(make_batched_run):
    run = make_batched_run([4, 4], rows=1)
    charts = charts_of(run)
    assert charts.resolution() == "Every iteration is drawn."
    assert charts.load(1).data[1]["y"] == [1] * 9


def test_batch_limit_is_drawn_only_where_it_is_near(make_batched_run):
    charts = charts_of(make_batched_run([4, 4, 4], rows=2))
    assert "batch limit 2" in str(charts.load(2).layout)
    assert "batch limit" not in str(charts.load(256).layout)


def test_every_figure_is_valid_plotly(make_large_run, make_batched_run):
    from plotly.graph_objects import Figure

    from reports.run.request_chart import request_chart

    judgement = Judgement(limit_ms=50.0, within=0.9, percentile=99.0)
    small = make_batched_run([6, 8, 4], rows=2, reserve_tokens=9)
    figures = [request_chart(small.requests, small.iterations, small.preemptions, small.scenario)]
    for run in (small, make_large_run(500, 2_000)):
        charts = charts_of(run)
        figures += [charts.throughput(), charts.load(2), charts.batches(), charts.kv_memory()]
        latencies = request_latencies(run.requests)
        figures += [
            latency_cdf(metric, latencies, judgement) for metric in ("ttft", "tpot", "e2el")
        ]
    for figure in figures:
        Figure(data=figure.data, layout=figure.layout)
        for axis in ("xaxis", "yaxis"):
            title = figure.layout[axis]["title"]["text"]
            assert title in ("Iteration", "Request", "requests") or any(
                unit in title for unit in ("(s", "(ms", "(min", "%", "/s", "tokens")
            )


def test_templates_are_valid_plotly():
    from plotly.graph_objects import Figure

    from reports.page.style import template

    for dark in (False, True):
        Figure(layout={"template": template(dark=dark)})


@pytest.mark.parametrize("size", [1, 2, CDF_POINTS, CDF_POINTS + 1, 50_000])
def test_cdf_ends_at_everybody_in_few_points(size):
    values, share = cdf_points(np.sort(np.random.default_rng(size).exponential(size=size)))
    assert len(values) <= CDF_POINTS
    assert share[-1] == 100
    assert (np.diff(share) > 0).all()


def test_cdf_shares_are_those_of_the_sample():
    sample = np.sort(np.random.default_rng(3).lognormal(size=30_000))
    values, share = cdf_points(sample)
    exact = np.searchsorted(sample, values, side="right") / sample.size * 100
    assert share == pytest.approx(exact)


def test_cdf_states_the_share_within_the_slo():
    values = np.array([0.1, 0.2, 0.3, 0.9])
    latencies = Latencies(ttft_s=values, tpot_s=values, e2e_s=values, queue_s=values)
    levels = ServiceLevels({"ttft": 300.0}, percentile=75.0)
    judgement = levels.judge(latencies, "ttft", {})
    assert judgement.met
    assert levels.judge(latencies, "tpot", {}) is None
    figure = latency_cdf("ttft", latencies, judgement)
    assert "75\u00a0% within the SLO of 300\u00a0ms" in figure.caption
    assert figure.layout["shapes"][0]["x0"] == pytest.approx(300)


def test_one_token_answers_have_no_tpot_to_miss():
    slow = np.array([0.2])
    latencies = Latencies(ttft_s=np.ones(4), tpot_s=slow, e2e_s=np.ones(4), queue_s=np.zeros(4))
    levels = ServiceLevels({"tpot": 100.0})
    assert levels.judge(latencies, "tpot", {}).within == 0.75
    assert levels.judge(latencies, "tpot", {"slo_attainment": {"tpot": 0.5}}).within == 0.5


def test_axis_of_a_nearly_empty_kv_cache_is_drawn_closer_and_says_so(make_batched_run):
    figure = charts_of(make_batched_run([9, 5], rows=1)).kv_memory()
    assert figure.layout["yaxis"]["range"] == [0, 5]
    assert "The axis ends at 5\u00a0%." in figure.caption


def test_equal_and_zero_latencies_still_have_an_axis():
    for values in (np.zeros(5), np.full(5, 0.25)):
        latencies = Latencies(ttft_s=values, tpot_s=values, e2e_s=values, queue_s=values)
        low, high = latency_cdf("ttft", latencies, None).layout["xaxis"]["range"]
        assert low < high


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868],
                            [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968],
                              [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779],
                            [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip
TOGETHER = [
    ("prefill", "decode", "padding"),
    ("running", "waiting"),
    ("used", "reserved", "fragmentation", "free"),
    ("waiting", "prefill", "decode", "preempted", "stalled"),
    ("waiting", "prefill", "decode", "held"),
    ("prefill", "mixed", "decode"),
    ("contractions", "experts", "attention", "elementwise", "sampling", "all-reduce",
     "all-to-all", "gather", "swap", "draft", "host", "launch"),
    tuple(f"turn-{turn}" for turn in range(1, 7)),
    tuple(dict.fromkeys(thing for thing, _ in (*gpu_looks.LOOKS.values(), gpu_looks.OTHER))),
]  # fmt: skip


def linear(hex_colour):
    channels = np.array([int(hex_colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    lms = np.cbrt(
        np.array([[0.4122214708, 0.5363325363, 0.0514459929],
                  [0.2119034982, 0.6806995451, 0.1073969566],
                  [0.0883024619, 0.2817188376, 0.6299787005]]) @ np.clip(rgb, 0, 1)
    )  # fmt: skip
    return (
        np.array([[0.2104542553, 0.7936177850, -0.0040720468],
                  [1.9779984951, -2.4285922050, 0.4505937099],
                  [0.0259040371, 0.7827717662, -0.8086757660]]) @ lms
    )  # fmt: skip


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
@pytest.mark.parametrize("dark", [False, True])
def test_colours_of_one_chart_stay_apart_for_every_eye(deficiency, dark):
    seen = {
        thing: oklab(DEFICIENCIES[deficiency] @ linear(pair[dark]))
        for thing, pair in PALETTE.items()
    }
    for things in TOGETHER:
        for i, one in enumerate(things):
            for other in things[i + 1 :]:
                distance = float(np.linalg.norm(seen[one] - seen[other]))
                assert distance > 0.08, f"{one} and {other} look alike: {distance:.3f}"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("ink", ["ink", "muted", "good", "bad", "accent"])
def test_text_has_enough_contrast(dark, ink):
    weights = np.array([0.2126, 0.7152, 0.0722])
    for ground in ("surface", "ground"):
        one, other = (float(weights @ linear(PALETTE[name][dark])) for name in (ink, ground))
        ratio = (max(one, other) + 0.05) / (min(one, other) + 0.05)
        assert ratio >= 4.5, f"{ink} on {ground}: {ratio:.2f}"


def test_every_gpu_of_the_library_has_a_colour_and_a_marker_of_its_own():
    looks = {name: gpu_looks.gpu_look(name) for name in gpus()}
    looks["mine"] = gpu_looks.gpu_look("mine")
    assert set(gpus()) == set(gpu_looks.LOOKS)
    assert len({symbol for _, symbol in looks.values()}) == len(looks)
    assert len({thing for thing, _ in looks.values()}) > 13, "only relatives share a colour"
    for _, symbol in looks.values():
        Scatter(marker={"symbol": symbol})  # raises for a symbol that Plotly does not know


def test_every_light_colour_has_one_dark_one():
    assert len(dark_of_light()) == len(PALETTE)
    assert colour("decode") in dark_of_light()
