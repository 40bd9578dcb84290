"""The request × iteration chart shows the timetables of the continuous-batching papers."""

import numpy as np
import pytest

from reports.run.request_chart import STATES, cell_states, drawable, request_chart

OUTPUTS = [6, 8, 4, 7, 5, 3, 6]
LETTERS = {"": ".", "queue": "q", "prefill": "P", "decode": "d", "preempted": "x"}
LETTERS |= {"stalled": "s", "held": "h"}


def drawn(run, *, static=False):
    states = cell_states(run.requests, run.iterations, run.preemptions, request_level=static)
    return ["".join(LETTERS[STATES[cell]] for cell in row) for row in states]


def test_static_batching_holds_what_is_finished(make_batched_run):
    run = make_batched_run(OUTPUTS, rows=4, static=True)
    assert drawn(run, static=True) == [
        "Pdddddhh......",
        "Pddddddd......",
        "Pdddhhhh......",
        "Pddddddh......",
        "qqqqqqqqPddddh",
        "qqqqqqqqPddhhh",
        "qqqqqqqqPddddd",
    ]


def test_continuous_batching_refills_rows_at_once(make_batched_run):
    run = make_batched_run(OUTPUTS, rows=4)
    assert drawn(run) == [
        "Pddddd.......",
        "Pddddddd.....",
        "Pddd.........",
        "Pdddddd......",
        "qqqqPdddd....",
        "qqqqqqPdd....",
        "qqqqqqqPddddd",
    ]


def test_preempted_request_is_recomputed_when_it_returns(make_batched_run):
    run = make_batched_run([6, 6], rows=2)
    start_s = run.iterations["start_s"]
    run.preemptions = {
        "request": np.array([1]),
        "preempted_s": start_s[[2]],
        "resumed_s": start_s[[4]],
    }
    run.iterations["prefill_seqs"][4] = 1
    assert drawn(run) == ["Pddddd", "PdxxPd"]


def test_sequence_in_a_batch_of_prefills_only_is_stalled(make_batched_run):
    run = make_batched_run([4], rows=1)
    run.iterations["decode_seqs"][2] = 0
    run.iterations["prefill_seqs"][2] = 1
    assert drawn(run) == ["Pdsd"]


def test_rejected_request_has_an_empty_row(make_batched_run):
    run = make_batched_run([3, 3], rows=2)
    for name in ("scheduled_s", "first_token_s", "finished_s"):
        run.requests[name][1] = np.nan
    run.requests["rejected"][1] = True
    assert drawn(run)[1] == "..."


@pytest.mark.parametrize("rows", [7, 40, 64])
def test_bars_cover_each_cell_once(make_batched_run, rows):
    rng = np.random.default_rng(rows)
    run = make_batched_run([int(n) for n in rng.integers(1, 20, rows)], rows=5)
    assert drawable(run.requests, run.iterations)
    figure = request_chart(run.requests, run.iterations, run.preemptions, run.scenario)
    cells = sum(len(row) - row.count(".") for row in drawn(run))
    assert sum(sum(trace["x"]) for trace in figure.data) == cells
    assert len(figure.keys) == len(figure.data)


def test_large_runs_are_not_drawn_cell_by_cell(make_large_run):
    run = make_large_run(65, 300)
    assert not drawable(run.requests, run.iterations)


def test_request_names_cannot_mark_up_labels_or_hover(make_batched_run):
    run = make_batched_run([3, 3], rows=2)
    run.requests["request_id"] = np.array(["<b>bold</b>", "a&b"])
    figure = request_chart(run.requests, run.iterations, run.preemptions, run.scenario)
    text = str(figure.data) + str(figure.layout)
    assert "<b>" not in text
    assert "&lt;b&gt;" in text
