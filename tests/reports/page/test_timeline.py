"""Binning iterations over time keeps totals and time-weighted means."""

import numpy as np
import pytest

from reports.page.timeline import Timeline, even_edges, iteration_edges, run_end_s
from sim.waits import Waits


@pytest.mark.parametrize("bins", [1, 7, 300])
def test_tokens_in_all_bins_add_up_to_the_tokens_of_all_iterations(make_large_run, bins):
    run = make_large_run(500, 20_000)
    end_s = run_end_s(run.requests, run.iterations)
    timeline = Timeline.over(run.iterations, even_edges(end_s, bins))
    for column in ("prefill_tokens", "decode_seqs", "num_tokens"):
        total = timeline.amount(column).sum()
        assert total == pytest.approx(run.iterations[column].sum(), rel=1e-12)
    assert timeline.count().sum() == pytest.approx(20_000, rel=1e-12)


def test_time_weighted_kv_mean_survives_the_binning(make_large_run):
    run = make_large_run(500, 20_000)
    end_s = run_end_s(run.requests, run.iterations)
    timeline = Timeline.over(run.iterations, even_edges(end_s, 300))
    shares = timeline.kv_shares()
    slots = sum(
        run.iterations[f"kv_{kind}_tokens"][0]
        for kind in ("used", "reserved", "fragmentation", "free")
    )
    used = run.iterations["kv_used_tokens"] * run.iterations["duration_s"]
    binned = (shares["used"] * timeline.width_s).sum() * slots
    assert binned == pytest.approx(used.sum(), rel=1e-11)
    assert sum(shares.values()) == pytest.approx(np.ones(300))


def test_an_iteration_cut_by_an_edge_is_shared_in_proportion():
    iterations = {
        "start_s": np.array([0.0, 2.0]),
        "duration_s": np.array([1.0, 2.0]),
        "replica": np.zeros(2, dtype=int),
        "decode_seqs": np.array([10, 40]),
    }
    timeline = Timeline.over(iterations, np.array([0.0, 0.5, 2.5, 4.0]))
    assert timeline.amount("decode_seqs") == pytest.approx([5, 5 + 10, 30])
    assert timeline.mean("decode_seqs") == pytest.approx([10, (5 + 20) / 2, 40])
    assert timeline.count() == pytest.approx([0.5, 0.75, 0.75])


def test_replicas_are_added_up_and_need_no_order():
    iterations = {
        "start_s": np.array([1.0, 0.0, 0.0]),
        "duration_s": np.array([1.0, 1.0, 2.0]),
        "replica": np.array([0, 0, 1]),
        "running": np.array([4, 2, 10]),
    }
    timeline = Timeline.over(iterations, np.array([0.0, 1.0, 2.0]))
    assert timeline.mean("running") == pytest.approx([12, 14])


def test_batches_in_flight_together_do_not_count_twice():
    iterations = {
        "start_s": np.array([0.0, 1.0, 2.0]),
        "duration_s": np.array([2.0, 2.0, 2.0]),
        "replica": np.zeros(3, dtype=int),
        "running": np.array([3, 3, 3]),
        "decode_seqs": np.array([1, 2, 3]),
    }
    timeline = Timeline.over(iterations, np.array([0.0, 2.0, 4.0]))
    assert timeline.mean("running") == pytest.approx([3, 3])
    assert timeline.amount("decode_seqs").sum() == pytest.approx(6)


def test_kv_slots_are_free_while_nothing_runs():
    iterations = {
        "start_s": np.array([1.0]),
        "duration_s": np.array([1.0]),
        "replica": np.zeros(1, dtype=int),
        "kv_used_tokens": np.array([60]),
        "kv_reserved_tokens": np.array([20]),
        "kv_fragmentation_tokens": np.array([10]),
        "kv_free_tokens": np.array([10]),
    }
    shares = Timeline.over(iterations, np.array([0.0, 1.0, 2.0])).kv_shares()
    assert shares["free"] == pytest.approx([1.0, 0.1])
    assert shares["used"] == pytest.approx([0.0, 0.6])


def test_waiting_integrates_to_the_sum_of_queue_times(make_large_run):
    run = make_large_run(800, 5_000)
    end_s = run_end_s(run.requests, run.iterations)
    edges_s = even_edges(end_s, 100)
    mean = Waits.of(run.requests, run.preemptions).mean(edges_s)
    queue_s = (run.requests["scheduled_s"] - run.requests["arrival_s"]).sum()
    assert (mean * np.diff(edges_s)).sum() == pytest.approx(queue_s, rel=1e-9)


def test_preempted_requests_wait_and_rejected_ones_do_not():
    requests = {
        "arrival_s": np.array([0.0, 0.0, 0.5]),
        "scheduled_s": np.array([0.0, np.nan, 1.0]),
        "rejected": np.array([False, True, False]),
    }
    preemptions = {
        "request": np.array([0]),
        "preempted_s": np.array([2.0]),
        "resumed_s": np.array([3.0]),
    }
    waits = Waits.of(requests, preemptions)
    assert waits.mean(np.array([0.0, 1.0, 2.0, 3.0, 4.0])) == pytest.approx([0.5, 0, 1, 0])
    assert waits.peak() == 1


def test_peak_of_waiting_counts_simultaneous_arrivals():
    requests = {
        "arrival_s": np.zeros(5),
        "scheduled_s": np.array([0.0, 0.0, 1.0, 2.0, 3.0]),
        "rejected": np.zeros(5, dtype=bool),
    }
    assert Waits.of(requests, {}).peak() == 3


def test_iteration_edges_merge_what_rounding_split():
    iterations = {"start_s": np.array([0.0, 0.1 + 0.2]), "duration_s": np.array([0.3, 0.7])}
    assert iteration_edges(iterations, 1.0) == pytest.approx([0.0, 0.3, 1.0])
