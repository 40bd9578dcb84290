"""What a run leaves behind: a row per request, per iteration and per preemption.

The logs pack a row per event, so that a million requests fit in memory. All times are seconds from
the start of the run.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any

import numpy as np

from sim.request import NEVER, Request
from sim.scratch import WINDOW, Scratch, Table, joined

Columns = dict[str, np.ndarray]

Rare = tuple[int, int, int, bool, int, int, float]
_RARE = {
    "shared_blocks": "i4", "swap_blocks": "i4", "preempted": "i4", "extrapolated": "?",
    "copied_blocks": "i4", "loaded_blocks": "i4", "tier_s": "f8",
}  # fmt: skip
_PACKED = {"f8": "d", "i8": "q", "i4": "i", "?": "?"}  # as `struct` calls these types


@dataclass(frozen=True, slots=True)
class Records:
    """The tables of a run, as columns of equal length; those of requests and iterations may be on
    disk, and each of their columns is then read whenever it is asked for.

    ``requests``: request, arrival_s, scheduled_s, first_token_s, last_token_s, finished_s (NaN
    where rejected), prompt_tokens, output_tokens, cached_tokens, preemptions, rejected, replica;
    where some ask for several answers also samples and sampled_tokens (of all samples, while
    output_tokens are the longest one's); where queues have limits, refused and gave_up, where
    clients leave, cancelled (of the rejected ones); where pools prefill for others, prefilled_s
    (when a prompt was computed there).
    Behind a front end arrival_s, first_token_s, last_token_s and finished_s are the
    client's; the engine's own are engine_arrival_s and so on.
    ``iterations``: start_s, duration_s, the batch (running, waiting, prefill_seqs, prefill_tokens,
    decode_seqs, context_tokens, num_tokens, num_emitting, num_seqs), tokens ``emitted``, KV slots
    by kind (used, reserved, fragmentation, free: they add up to all), kv_shared_tokens (slots in
    blocks that several tables hold, times the tables beyond the first: what there would be more of
    without sharing), copied_blocks, swap_blocks (over the host link, both ways), loaded_blocks (of
    those, what the prefix cache had in a tier), preempted, finished, extrapolated, replica; where
    it has tiers tier_s (reading from them, before the host link);
    behind a front end seen_s, when clients saw its tokens; of ranks in lockstep fullest_tokens (of
    the rank with most in that step) and all_tokens (of all its ranks); where engines share a GPU
    alone_s (what each takes with the GPU to itself).
    ``preemptions``: request, preempted_s, resumed_s.
    ``gaps_s``, ``gap_weights``: inter-token latencies and how many tokens had them.
    ``stages``, of pipelines only: replica, stage, ``busy_s`` (the stage computing) and ``active_s``
    (any batch in flight).
    ``tables``, where a sequence has others than one block table that keeps all: replica, ``rule``
    (which of the engine's, from 0) and ``most_blocks`` that its tables had at once.
    ``tiers``, where the prefix cache goes on beyond the device: replica, ``tier`` (0: the device)
    and blocks: asked (full ones of prompts admitted), found, passed_over (found, and sooner
    computed again), stored, held in the end.
    """

    requests: Table
    iterations: Table
    preemptions: Columns
    gaps_s: np.ndarray
    gap_weights: np.ndarray
    stages: Columns | None = None
    tables: Columns | None = None
    tiers: Columns | None = None


class _Table:
    """Rows of numbers, packed as they come, that become columns of the given types."""

    KEPT_BYTES = 1 << 16  # in memory, once there is a file for the rows

    def __init__(self, **dtypes: str) -> None:
        self._dtype = np.dtype(list(dtypes.items()))
        self._rows = bytearray()
        self._pack = Struct("=" + "".join(map(_PACKED.__getitem__, dtypes.values()))).pack
        self.scratch: Scratch | None = None
        self._written: list[tuple[int, int]] = []  # where in the file, and how many rows

    def add(self, row: tuple[Any, ...]) -> None:
        self._rows += self._pack(*row)
        if self.scratch is not None and len(self._rows) >= self.KEPT_BYTES:
            self._written.append(
                (self.scratch.write(self._rows), len(self._rows) // self._dtype.itemsize)
            )
            self._rows.clear()

    def clear(self) -> None:
        self._rows.clear()
        self._written.clear()

    def parts(self) -> Iterator[Columns]:
        """All rows as columns: at once, or so many as fit in memory at a time."""
        pieces: list[np.ndarray] = []
        if self.scratch is not None:
            for offset, count in self._written:
                pieces.append(self.scratch.read(offset, self._dtype, count))
                if sum(map(len, pieces)) >= WINDOW:
                    yield self._columns(np.concatenate(pieces))
                    pieces.clear()
        rest = np.frombuffer(self._rows, self._dtype)
        yield self._columns(np.concatenate([*pieces, rest]) if pieces else rest)

    def _columns(self, rows: np.ndarray) -> Columns:
        return {name: rows[name].copy() for name in self._dtype.names or ()}


class RequestLog:
    """Requests as they end, and preemptions as they happen."""

    def __init__(self, **further: str) -> None:
        """`further`: columns beside those that every log of requests has."""
        self._ended = _Table(
            request="i8", arrival_s="f8", scheduled_s="f8",
            first_token_s="f8", last_token_s="f8",  # noqa: S106 - of text, none of them secret
            finished_s="f8", prompt_tokens="i8", output_tokens="i8", cached_tokens="i8",
            preemptions="i4", rejected="?", **further,
        )  # fmt: skip
        self._preempted: list[list[float]] = []
        self._open: dict[int, list[float]] = {}
        self.aborted_s: dict[int, float] = {}  # request -> when it ended without an answer
        self.refused: set[int] = set()  # by a full queue
        self.gave_up: set[int] = set()  # after waiting for too long
        self.stranded: set[int] = set()  # no replica was left, and none came back
        self.cancelled: set[int] = set()  # its client was gone

    def keep_on(self, scratch: Scratch) -> None:
        """From now on rows are on disk, and so are the columns that they become."""
        self._ended.scratch = scratch

    def finish(self, request: Request, *, rejected: bool = False) -> None:
        first, last = request.first_token, request.last_token
        self._ended.add(
            (
                request.index, request.arrival_s, request.scheduled_s,
                NEVER if first is None else first.at_s, NEVER if last is None else last.at_s,
                request.finished_s, request.prompt_tokens,
                request.output_tokens, request.cached_tokens, request.preemptions, rejected,
            )
        )  # fmt: skip

    def reject(self, request: Request) -> None:
        self.finish(request, rejected=True)

    def abort(self, request: Request, now_s: float) -> None:
        """Counted as rejected, but it was there until `now_s`."""
        self.aborted_s[request.index] = now_s
        self._open.pop(request.index, None)
        self.finish(request, rejected=True)

    def refuse(self, request: Request) -> None:
        """The queue was full when it arrived."""
        self.refused.add(request.index)
        self.reject(request)

    def give_up(self, request: Request, now_s: float) -> None:
        """It waited for too long, until `now_s`."""
        self.gave_up.add(request.index)
        self.abort(request, now_s)

    def strand(self, request: Request) -> None:
        """Nobody is left to serve it."""
        self.stranded.add(request.index)
        self.reject(request)

    def preempt(self, request: Request, now_s: float) -> None:
        row = [request.whole.index, now_s, NEVER]
        self._preempted.append(row)
        self._open[request.index] = row

    def resume(self, request: Request, now_s: float) -> None:
        row = self._open.pop(request.index, None)
        if row is not None:  # it was preempted here, not on an engine that has failed since
            row[2] = now_s

    def close(self, request: Request) -> None:
        """A preempted request will not come back here."""
        self._open.pop(request.index, None)

    def forget(self) -> None:
        """Drop what has ended: nobody will ask for it."""
        self._ended.clear()
        self._preempted = list(self._open.values())
        for ended in (self.refused, self.gave_up, self.stranded, self.cancelled):
            ended.clear()
        self.aborted_s.clear()

    def requests(self) -> Table:
        """Columns in order of the requests' numbers."""
        columns = joined(self._ended.parts(), self._ended.scratch)
        order = np.argsort(columns["request"], kind="stable")
        for name in columns:
            columns[name] = columns[name][order]
        return columns

    def preemptions(self) -> Columns:
        rows = np.array(self._preempted, dtype="f8").reshape(-1, 3)
        return {
            "request": rows[:, 0].astype("i8"),
            "preempted_s": rows[:, 1],
            "resumed_s": rows[:, 2],
        }


class IterationLog:
    """Runs of one or more alike iterations; expanded to a row per iteration at the end."""

    def __init__(self) -> None:
        self._runs = _Table(
            start_s="f8", end_s="f8", iterations="i4", steady="i4", running="i4", ended="i4",
            prefill_seqs="i4", prefill_tokens="i4", decode_seqs="i4", context_tokens="i4",
            num_tokens="i4", num_emitting="i4", emitted="i4", kv_blocks="i4", stored_tokens="i4",
            growth="i4", reserved_tokens="i4",
        )  # fmt: skip
        # What most runs have none of, by run: see `_RARE`.
        self._rare: dict[int, Rare] = {}
        self._finished = array("i")
        self._ends_s = array("d")  # of each iteration of the runs of more than one
        self._growth = array("q")  # run, iteration, blocks, times; and again

    def keep_on(self, scratch: Scratch) -> None:
        """From now on rows are on disk, and so are the columns that they become."""
        self._runs.scratch = scratch

    def append(
        self,
        start_s: float,
        ends_s: Sequence[float],
        steady: int,
        counts: tuple[int, ...],
        block_growth: Sequence[tuple[int, int, int]] | None,
        rare: Rare | None,
    ) -> None:
        """One run: when each iteration ends, and `counts`, from ``running`` on as in the columns.

        `steady`: decodes whose last token came as it began. `rare`: shared blocks, swapped blocks,
        preempted requests, whether the latency model left its measured range, copied blocks and
        loaded blocks; None where there is nothing of all that.
        """
        number, iterations = len(self._finished), len(ends_s)
        if rare is not None:
            self._rare[number] = rare
        if iterations > 1:
            self._ends_s.extend(ends_s)
            for growth in block_growth or ():
                self._growth.extend((number, *growth))
        self._runs.add((start_s, ends_s[-1], iterations, steady, *counts))

    def finished(self, count: int) -> None:
        """How many requests the run appended last brought to an end."""
        self._finished.append(count)

    def columns(
        self,
        *,
        num_blocks: int,
        block_size: int,
        tables: int = 1,
        tiers: bool = False,
        gaps: Sequence[tuple[float, int]],
        seen: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ) -> tuple[Table, np.ndarray, np.ndarray]:
        """A row per iteration (`Records.iterations`), and the inter-token gaps with weights.

        A token is in `tables` of a sequence's block tables, and growth of fewer than no times is
        what windows gave back.

        `tiers`: whether it has a prefix cache beyond the device.

        ``ended`` besides: requests that had been served to their end when it was decided. `seen`
        tells of iterations' ends and tokens when clients see those, where a front end lies between.
        """
        parts = self._spread(num_blocks, block_size, tables, tiers)
        iterations = joined(parts, self._runs.scratch)
        weights = iterations.pop("steady")
        emitting = weights > 0
        odd = np.array(gaps, dtype="f8").reshape(-1, 2)
        if seen is None:
            del iterations["end_s"]
            waited_s = iterations["duration_s"]
        else:
            # Who decodes steadily had the tokens of the iteration before.
            waited_s = seen(iterations.pop("end_s"), iterations["emitted"])
            iterations["seen_s"] = waited_s
            waited_s = np.diff(waited_s, prepend=0.0)
        gaps_s = np.concatenate((waited_s[emitting], odd[:, 0]))
        return iterations, gaps_s, np.concatenate((weights[emitting], odd[:, 1]))

    def _spread(
        self, num_blocks: int, block_size: int, tables: int, tiers: bool
    ) -> Iterator[Columns]:
        """The runs' rows, each spread over its iterations, part by part.

        ``end_s`` and ``steady`` besides: the decodes that had waited for as long as it took.
        """
        start, ended = 0, 0
        every_end_s = np.frombuffer(self._ends_s)
        for runs in self._runs.parts():
            stop, counts = start + len(runs["start_s"]), runs["iterations"]
            further = ended + int(counts[counts > 1].sum())
            ends_s = every_end_s[ended:further]
            yield self._iterations(runs, start, ends_s, num_blocks, block_size, tables, tiers)
            start, ended = stop, further

    def _iterations(
        self,
        runs: Columns,
        start: int,
        ends_s: np.ndarray,
        num_blocks: int,
        block_size: int,
        tables: int,
        tiers: bool,
    ) -> Columns:
        """Of the runs from number `start` on; `ends_s` of those with more than one iteration."""
        stop = start + len(runs["start_s"])
        runs = runs | self._rare_columns(start, stop)
        counts = runs.pop("iterations")
        first = np.cumsum(counts) - counts  # each run's first iteration
        total = int(counts.sum())
        run_of = np.repeat(np.arange(len(counts), dtype="i4"), counts)
        ahead = np.arange(total, dtype="i4") - first.astype("i4")[run_of]  # position in its run

        def spread(name: str) -> np.ndarray:
            return runs[name].take(run_of)

        end_s = spread("end_s")
        end_s[(counts > 1).take(run_of)] = ends_s
        start_s = np.empty(total)
        start_s[1:] = end_s[:-1]
        start_s[first] = runs["start_s"]
        duration_s = end_s - start_s

        added = spread("growth") * ahead * np.int32(tables)
        shared = spread("shared_blocks") * np.int32(block_size)
        taken, given = self._added_blocks(start, stop, first, run_of, block_size)
        used = spread("stored_tokens") + added - shared + given * np.int32(block_size)
        reserved = np.maximum(spread("reserved_tokens") - added, 0)
        held = (spread("kv_blocks") + taken + given) * np.int32(block_size)

        def at_first(name: str) -> np.ndarray:
            column = np.zeros(total, dtype=runs[name].dtype)
            column[first] = runs[name]
            return column

        finished = np.zeros(total, dtype="i4")
        finished[first + counts - 1] = self._finished[start:stop]
        steady = spread("growth")
        steady[first] = runs["steady"]
        prefill_seqs, decode_seqs = spread("prefill_seqs"), spread("decode_seqs")
        return {
            "start_s": start_s,
            "duration_s": duration_s,
            "running": spread("running"),
            "ended": spread("ended"),
            "waiting": np.zeros(total, dtype="i4"),
            "prefill_seqs": prefill_seqs,
            "prefill_tokens": spread("prefill_tokens"),
            "decode_seqs": decode_seqs,
            "context_tokens": spread("context_tokens") + decode_seqs * ahead,
            "num_tokens": spread("num_tokens"),
            "num_emitting": spread("num_emitting"),
            "num_seqs": prefill_seqs + decode_seqs,
            "emitted": spread("emitted"),
            "kv_used_tokens": used,
            "kv_reserved_tokens": reserved,
            "kv_fragmentation_tokens": held - used - reserved,
            "kv_free_tokens": num_blocks * block_size - held,
            "kv_shared_tokens": shared,
            "copied_blocks": at_first("copied_blocks"),
            "swap_blocks": at_first("swap_blocks"),
            "loaded_blocks": at_first("loaded_blocks"),
            **({"tier_s": at_first("tier_s")} if tiers else {}),
            "preempted": at_first("preempted"),
            "finished": finished,
            "extrapolated": spread("extrapolated"),
            "end_s": end_s,
            "steady": steady,
        }

    def _rare_columns(self, start: int, stop: int) -> Columns:
        columns = {name: np.zeros(stop - start, dtype=dtype) for name, dtype in _RARE.items()}
        rare = self._rare.items()
        mine = {number - start: values for number, values in rare if start <= number < stop}
        if mine:
            where = list(mine)
            values = zip(*mine.values(), strict=True)
            for column, found in zip(columns.values(), values, strict=True):
                column[where] = found
        return columns

    def _added_blocks(
        self, start: int, stop: int, first: np.ndarray, run_of: np.ndarray, block_size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Blocks taken, and given back (below 0), since the first iteration of each one's run."""
        none = np.zeros(len(run_of), dtype="i4")
        every = np.frombuffer(self._growth, dtype="i8").reshape(-1, 4)
        growth = every[slice(*np.searchsorted(every[:, 0], (start, stop)))] - (start, 0, 0, 0)
        if not len(growth):
            return none, none
        taken = growth[:, 3] > 0

        def added(some: np.ndarray) -> np.ndarray:
            run, ahead, blocks, times = some.T
            times = np.abs(times)
            again = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
            where = np.repeat(first[run] + ahead, times) + again * block_size
            changes = none.copy()
            changes[where] = np.repeat(blocks, times)
            np.cumsum(changes, out=changes)
            changes -= changes[first].take(run_of)
            return changes

        if taken.all():
            return added(growth), none
        return added(growth[taken]), added(growth[~taken])
