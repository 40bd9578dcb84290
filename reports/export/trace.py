"""A run as a Chrome trace, to be opened in Perfetto: iterations, counters, requests.

The format is the Trace Event Format's JSON: times in µs, one process a replica. Iterations are
complete events of thread 0, counters are running, waiting and KV use, and every request is a chain
of async events: queue, prefill, decode, preempted.
"""

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from reports.page.records import Columns, Floats, RunRecords
from scenarios.whole import whole_file

Event = dict[str, Any]

_ITERATION = {
    "prefill_tokens": "prompt tokens",
    "decode_seqs": "decodes",
    "context_tokens": "context tokens",
    "running": "running",
    "waiting": "waiting",
}
# What the recorded phases of an engine's iteration are called.
_PHASES = ("schedule_s", "prepare_s", "forward_s", "sample_s")


def write_trace(
    path: Path, records: RunRecords, *, start_s: float = 0.0, end_s: float = np.inf
) -> int:
    """Write what overlaps `start_s` to `end_s`; returns the number of events.

    A name that ends in .gz is compressed. Events are written as they are made, so that a long run
    needs no more memory than a short one.
    """
    written = 0
    with whole_file(path) as partial, _opened(partial, packed=path.suffix == ".gz") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        for event in _events(records, start_s, end_s):
            file.write((",\n" if written else "") + json.dumps(event, separators=(",", ":")))
            written += 1
        file.write("\n]}\n")
    return written


@contextmanager
def _opened(path: Path, *, packed: bool) -> Iterator[TextIO]:
    """A text file to be written, compressed without the time: equal runs have equal bytes."""
    with path.open("wb") as raw:
        inner = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if packed else raw
        with io.TextIOWrapper(inner, encoding="utf-8", newline="\n") as file:  # type: ignore[arg-type]
            yield file


def _events(records: RunRecords, start_s: float, end_s: float) -> Iterator[Event]:
    iterations = records.iterations
    replicas = np.unique(iterations["replica"]).tolist()
    for replica in replicas:
        yield _named("process_name", replica, f"replica {replica}")
        yield _named("thread_name", replica, "iterations")
    yield from _iteration_events(iterations, start_s, end_s)
    yield from _request_events(records, start_s, end_s)


def _named(kind: str, replica: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": replica, "tid": 0, "args": {"name": name}}


def _iteration_events(iterations: Columns, start_s: float, end_s: float) -> Iterator[Event]:
    begins_s = iterations["start_s"]
    ends_s = begins_s + iterations["duration_s"]
    rows = np.flatnonzero((ends_s > start_s) & (begins_s < end_s))
    slots = sum(
        iterations[f"kv_{kind}_tokens"] for kind in ("used", "reserved", "fragmentation", "free")
    )
    taken = 100.0 * (1.0 - iterations["kv_free_tokens"] / np.maximum(slots, 1))
    for row in rows.tolist():
        replica, at_us = int(iterations["replica"][row]), _us(begins_s[row])
        prefill, decode = iterations["prefill_tokens"][row] > 0, iterations["decode_seqs"][row] > 0
        name = "mixed" if prefill and decode else "prefill" if prefill else "decode"
        arguments: dict[str, Any] = {
            label: int(iterations[column][row]) for column, label in _ITERATION.items()
        }
        if "extrapolated" in iterations and iterations["extrapolated"][row]:
            arguments["extrapolated"] = True
        yield {
            "ph": "X", "name": name, "cat": "iteration", "pid": replica, "tid": 0,
            "ts": at_us, "dur": _us(iterations["duration_s"][row]), "args": arguments,
        }  # fmt: skip
        yield from _phase_events(iterations, row, replica, float(begins_s[row]))
        for counter, value in (
            ("running", int(iterations["running"][row])),
            ("waiting", int(iterations["waiting"][row])),
            ("KV slots taken (%)", round(float(taken[row]), 2)),
        ):
            yield {
                "ph": "C", "name": counter, "pid": replica, "ts": at_us, "args": {counter: value}
            }  # fmt: skip


def _phase_events(iterations: Columns, row: int, replica: int, at_s: float) -> Iterator[Event]:
    for name in _PHASES:
        if name in iterations:
            length_s = float(iterations[name][row])
            yield {
                "ph": "X", "name": name.removesuffix("_s"), "cat": "phase", "pid": replica,
                "tid": 0, "ts": _us(at_s), "dur": _us(length_s),
            }  # fmt: skip
            at_s += length_s


def _request_events(records: RunRecords, start_s: float, end_s: float) -> Iterator[Event]:
    requests, pauses = records.requests, _pauses(records.preemptions)
    done = ~np.asarray(requests["rejected"], dtype=bool)
    done &= (requests["finished_s"] > start_s) & (requests["arrival_s"] < end_s)
    for row in np.flatnonzero(done).tolist():
        number, replica = int(requests["request"][row]), int(requests["replica"][row])
        arrival_s, scheduled_s, first_s, finished_s = (
            float(requests[name][row])
            for name in ("arrival_s", "scheduled_s", "first_token_s", "finished_s")
        )
        spans = [("queue", arrival_s, scheduled_s), ("prefill", scheduled_s, first_s)]
        spans.append(("decode", first_s, finished_s))
        spans += [("preempted", at_s, back_s) for at_s, back_s in pauses.get(number, ())]
        whole = {
            "prompt tokens": int(requests["prompt_tokens"][row]),
            "output tokens": int(requests["output_tokens"][row]),
            "cached tokens": int(requests["cached_tokens"][row]),
            "preemptions": int(requests["preemptions"][row]),
        }
        head = {"cat": "request", "id": number, "pid": replica, "tid": 1}
        name = f"request {number}"
        yield {"ph": "b", "name": name, "ts": _us(arrival_s), "args": whole, **head}
        for span, from_s, to_s in spans:
            if to_s > from_s:
                yield {"ph": "b", "name": span, "ts": _us(from_s), **head}
                yield {"ph": "e", "name": span, "ts": _us(to_s), **head}
        yield {"ph": "e", "name": name, "ts": _us(finished_s), **head}


def _pauses(preemptions: Columns) -> dict[int, list[tuple[float, float]]]:
    """From when until when each request that was preempted was out, by its number."""
    found: dict[int, list[tuple[float, float]]] = {}
    for request, at_s, back_s in zip(
        *(preemptions[name].tolist() for name in ("request", "preempted_s", "resumed_s")),
        strict=True,
    ):
        found.setdefault(request, []).append((at_s, back_s))
    return found


def _us(seconds: float) -> float:
    return round(float(seconds) * 1e6, 3)


def token_times_s(records: RunRecords, *, portions: bool = False) -> list[Floats]:
    """When each completed request's tokens came, [output_tokens] seconds each, in row order.

    `portions`: where an iteration may hand over several tokens (speculation), when each portion
    came, as a client sees them: fewer times than tokens.

    A decoding request gets a token at the end of every iteration of its replica that decodes, but
    for the time it was preempted. Where that does not add up to its output (more than one token an
    iteration, iterations it sat out) its tokens are spread evenly.
    """
    requests, iterations = records.requests, records.iterations
    decodes = iterations["decode_seqs"] > 0
    ended_s = iterations["start_s"] + iterations["duration_s"]
    # Behind a front end tokens are shown as the clients saw them; what is whose goes by the
    # engine's own times, which preemptions have as well.
    seen_s = iterations.get("seen_s", ended_s)
    ends: dict[int, tuple[Floats, Floats]] = {}
    for replica in np.unique(iterations["replica"]).tolist():
        rows = np.flatnonzero((iterations["replica"] == replica) & decodes)
        rows = rows[np.argsort(ended_s[rows], kind="stable")]
        ends[replica] = ended_s[rows], seen_s[rows]
    shown_last = "last_token_s" if "last_token_s" in requests else "finished_s"
    first_name, last_name = "engine_first_token_s", "engine_last_token_s"
    if first_name not in requests:
        first_name, last_name = "first_token_s", shown_last
    pauses = _pauses(records.preemptions)
    found = []
    nothing = np.zeros(0), np.zeros(0)
    for row in np.flatnonzero(np.isfinite(requests["finished_s"])).tolist():
        first_s, last_s = float(requests[first_name][row]), float(requests[last_name][row])
        output = int(requests["output_tokens"][row])
        own_s, shown_s = ends.get(int(requests["replica"][row]), nothing)
        near = 1e-9 * max(last_s, 1.0)
        low, high = np.searchsorted(own_s, [first_s + near, last_s + near])
        kept = np.ones(high - low, dtype=bool)
        own_pauses = pauses.get(int(requests["request"][row]), [])
        for at_s, back_s in own_pauses:
            kept &= (own_s[low:high] <= at_s + near) | (own_s[low:high] > back_s + near)
        excess = int(kept.sum()) - (output - 1)
        if excess > 0 and len(own_pauses) == 1:
            # What it lost took more than one iteration to compute again: the first bring no token.
            back = np.flatnonzero(kept & (own_s[low:high] > own_pauses[0][1] + near))
            kept[back[:excess]] = False
        times = shown_s[low:high][kept]
        shown_first_s = float(requests["first_token_s"][row])
        whole = 0 < len(times) < output - 1 if portions else False
        if len(times) != output - 1 and not whole:
            times = np.linspace(shown_first_s, float(requests[shown_last][row]), output)[1:]
        found.append(np.concatenate(([shown_first_s], times)))
    return found
