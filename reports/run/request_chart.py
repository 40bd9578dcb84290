"""The request × iteration chart of the continuous-batching papers, for small runs.

Rows are requests in arrival order, columns are iterations; a cell says what the iteration did for
the request, as in the figures of Orca (Yu et al., OSDI 2022).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from reports.page.page import Figure, Key, plotly_text
from reports.page.records import Columns
from reports.page.style import colour
from scenarios.quantity import seconds

MAX_REQUESTS = 64
MAX_ITERATIONS = 400
MAX_SPLIT_ITERATIONS = 60
MAX_LABEL_LETTERS = 8

STATES = ("", "queue", "prefill", "decode", "preempted", "stalled", "held")
QUEUE, PREFILL, DECODE, PREEMPTED, STALLED, HELD = range(1, 7)
LOOKS = {
    QUEUE: ("Queue", "waiting"),
    PREFILL: ("Prefill", "prefill"),
    DECODE: ("Decode", "decode"),
    PREEMPTED: ("Preempted", "preempted"),
    STALLED: ("In the batch, not computed", "stalled"),
    HELD: ("Finished, held by its batch", "held"),
}
REQUEST_LEVEL_SCHEDULERS = ("static", "dynamic")


def drawable(requests: Columns, iterations: Columns) -> bool:
    """Whether the run is small enough to be drawn cell by cell, and not empty."""
    return (
        0 < len(requests["request"]) <= MAX_REQUESTS
        and 0 < len(iterations["start_s"]) <= MAX_ITERATIONS
    )


def cell_states(
    requests: Columns, iterations: Columns, preemptions: Columns, *, request_level: bool
) -> npt.NDArray[np.int8]:
    """What each iteration does for each request: [requests, iterations], an index into STATES.

    `request_level` says that a batch stays whole until its longest sequence is done (static and
    dynamic batching), so finished sequences are held.
    """
    start_s = np.asarray(iterations["start_s"], dtype=np.float64)
    middle_s = start_s + 0.5 * np.asarray(iterations["duration_s"], dtype=np.float64)
    spare_s = 1e-9 * max(1.0, float(np.abs(middle_s).max()))
    prefills = np.asarray(iterations["prefill_seqs"]) > 0
    decodes = np.asarray(iterations["decode_seqs"]) > 0
    arrival_s, scheduled_s, first_s, finished_s = (
        np.asarray(requests[name], dtype=np.float64)
        for name in ("arrival_s", "scheduled_s", "first_token_s", "finished_s")
    )
    leaves_s = finished_s.copy()
    if request_level:
        for batch_s in np.unique(scheduled_s[np.isfinite(scheduled_s)]):
            together = np.abs(scheduled_s - batch_s) <= spare_s
            leaves_s[together] = np.nanmax(finished_s[together], initial=-np.inf)
    states = np.zeros((arrival_s.size, start_s.size), dtype=np.int8)
    for row in range(arrival_s.size):
        here = np.asarray(iterations["replica"]) == requests["replica"][row]
        until_s = scheduled_s[row] if np.isfinite(scheduled_s[row]) else arrival_s[row]
        queued = here & (start_s >= arrival_s[row] - spare_s) & (middle_s < until_s)
        in_batch = here & (middle_s >= scheduled_s[row]) & (middle_s < leaves_s[row])
        decoding = in_batch & (middle_s >= first_s[row])
        states[row, queued] = QUEUE
        states[row, in_batch & ~decoding] = np.where(
            prefills[in_batch & ~decoding], PREFILL, STALLED
        )
        states[row, decoding] = np.where(decodes[decoding], DECODE, STALLED)
        if request_level:
            _hold(states[row], int(requests["output_tokens"][row]) - 1)
    number = {int(request): row for row, request in enumerate(requests["request"])}
    for request, out_s, back_s in zip(
        *(preemptions.get(name, ()) for name in ("request", "preempted_s", "resumed_s")),
        strict=True,
    ):
        row = number[int(request)]
        here = np.asarray(iterations["replica"]) == requests["replica"][row]
        back = back_s if np.isfinite(back_s) else np.inf
        away = here & (middle_s > out_s) & (middle_s < back)
        states[row, away] = PREEMPTED
        again = np.flatnonzero(here & (middle_s > back))[:1]
        states[row, again[prefills[again]]] = PREFILL  # recomputes what it had lost
    return states


def _hold(cells: npt.NDArray[np.int8], tokens_to_decode: int) -> None:
    """Mark the cells after a sequence's own last token as held."""
    decoding = np.flatnonzero(cells == DECODE)
    own = decoding[:tokens_to_decode]
    rest = decoding[tokens_to_decode:]
    cells[rest] = HELD
    computing = own if own.size else np.flatnonzero(cells == PREFILL)
    after = computing[-1] if computing.size else -1
    stalled = np.flatnonzero(cells == STALLED)
    cells[stalled[stalled > after]] = HELD


def request_chart(
    requests: Columns, iterations: Columns, preemptions: Columns, scenario: Mapping[str, Any]
) -> Figure:
    """Draw the chart: a bar for each stretch of equal cells, single cells where they are few."""
    order = np.argsort(requests["arrival_s"], kind="stable")
    requests = {name: column[order] for name, column in requests.items()}
    by_time = np.argsort(iterations["start_s"], kind="stable")
    iterations = {name: column[by_time] for name, column in iterations.items()}
    engine = scenario.get("engine")
    scheduler = engine.get("scheduler") if isinstance(engine, Mapping) else None
    request_level = scheduler in REQUEST_LEVEL_SCHEDULERS
    states = cell_states(requests, iterations, preemptions, request_level=request_level)
    names = [str(name) for name in requests.get("request_id", requests["request"]).tolist()]
    labels = [plotly_text(name) for name in names]
    columns = states.shape[1]
    single = columns <= MAX_SPLIT_ITERATIONS
    present = [state for state in LOOKS if (states == state).any()]
    data = [_bars(states, state, labels, iterations, single=single) for state in present]
    rows = len(labels)
    row_px = 26 if rows <= 12 else 20 if rows <= 32 else 14
    shown = list(range(rows)) if rows <= 32 else list(range(0, rows, 2))
    longest = max(map(len, names))
    if longest > MAX_LABEL_LETTERS:  # the rows' numbers stand beside them, the names in the hover
        ticks, longest = [str(row + 1) for row in shown], 2
    else:
        ticks = [labels[row] for row in shown]
    layout: dict[str, Any] = {
        "height": rows * row_px + 64,
        "margin": {"l": 36 + 8 * longest, "r": 16, "t": 6, "b": 46},
        "barmode": "overlay",
        "bargap": 0.12,
        "hovermode": "closest",
        "xaxis": {
            "title": {"text": "Iteration"},
            "range": [0.5, columns + 0.5],
            "tickformat": "d",
            **({"dtick": 1} if columns <= 20 else {"nticks": 20}),
        },
        "yaxis": {
            "title": {"text": "Request"},
            "fixedrange": True,
            "range": [rows - 0.4, -0.6],
            "tickmode": "array",
            "tickvals": shown,
            "ticktext": ticks,
            "showgrid": False,
            "zeroline": False,
        },
    }
    replicas = np.unique(np.asarray(iterations["replica"])).size
    caption = "Rows are requests in arrival order; a cell is what an iteration did for a request."
    if replicas > 1:
        caption += f" The iterations of {replicas} replicas are numbered together."
    keys = tuple(Key(*LOOKS[state], (index,)) for index, state in enumerate(present))
    return Figure("request-chart", "Requests by iteration", caption, data, layout, keys)


def _bars(
    states: npt.NDArray[np.int8],
    state: int,
    labels: list[str],
    iterations: Columns,
    *,
    single: bool,
) -> dict[str, Any]:
    """One trace: the cells in `state`, as bars over stretches of iterations."""
    base: list[float] = []
    length: list[int] = []
    row_of: list[int] = []
    hover: list[str] = []
    start_s = iterations["start_s"]
    name = LOOKS[state][0].lower()
    for row, cells in enumerate(states == state):
        turns = np.flatnonzero(np.diff(np.concatenate([[False], cells, [False]]).astype(np.int8)))
        stretches = turns.reshape(-1, 2).tolist()
        for begin, end in stretches:
            when = f"{begin + 1}" if end - begin == 1 else f"{begin + 1} to {end}"
            stop_s = float(start_s[end - 1] + iterations["duration_s"][end - 1])
            text = (
                f"request {labels[row]}: {name}<br>iteration {when}, "
                f"{seconds(float(start_s[begin]))} to {seconds(stop_s)}"
            )
            cuts = range(begin, end) if single else (begin,)
            for cut in cuts:
                base.append(cut + 0.5)
                length.append(1 if single else end - begin)
                row_of.append(row)
                hover.append(text)
    return {
        "type": "bar",
        "orientation": "h",
        "name": LOOKS[state][0],
        "base": base,
        "x": length,
        "y": row_of,
        "customdata": hover,
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {
            "color": colour(LOOKS[state][1]),
            "line": {"color": colour("surface"), "width": 1.5 if single else 0},
        },
    }
