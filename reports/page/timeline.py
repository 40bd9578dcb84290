"""Iterations to time bins: exact integrals over time, whatever the number of iterations.

Both what an iteration did (tokens, spread evenly over it) and what it found (requests running,
KV slots) are integrated over the bins, so totals and time-weighted means survive the binning.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reports.page.records import Columns, Floats

MAX_EXACT_ITERATIONS = 400
MAX_BINS = 300


def run_end_s(requests: Columns, iterations: Columns) -> float:
    """The run's last instant in seconds: the end of an iteration, or a request's last event."""
    ends = [np.asarray(requests[name], dtype=np.float64) for name in ("arrival_s", "finished_s")]
    start_s = np.asarray(iterations["start_s"], dtype=np.float64)
    ends.append(start_s + np.asarray(iterations["duration_s"], dtype=np.float64))
    last = [float(np.nanmax(end)) for end in ends if np.isfinite(end).any()]
    return max(last, default=0.0)


def iteration_edges(iterations: Columns, end_s: float) -> Floats:
    """The boundaries of the iterations themselves, from 0 to `end_s`, near-equal ones merged."""
    start_s = np.asarray(iterations["start_s"], dtype=np.float64)
    stop_s = start_s + np.asarray(iterations["duration_s"], dtype=np.float64)
    edges = np.unique(np.concatenate([[0.0], start_s, stop_s]))
    edges = edges[edges <= end_s]
    apart = np.diff(edges, prepend=-np.inf) > 1e-9 * end_s
    edges = edges[apart]
    if end_s - edges[-1] > 1e-9 * end_s:
        return np.append(edges, end_s)
    edges[-1] = end_s
    return edges


def even_edges(end_s: float, bins: int) -> Floats:
    """`bins` bins of equal width from 0 to `end_s`."""
    return np.linspace(0.0, end_s, max(1, bins) + 1)


def chart_edges(requests: Columns, iterations: Columns) -> Floats:
    """The bins of a run's charts: its iterations one by one, or even bins where they are many."""
    end_s = run_end_s(requests, iterations)
    if len(iterations["start_s"]) <= MAX_EXACT_ITERATIONS:
        return iteration_edges(iterations, end_s)
    return even_edges(end_s, MAX_BINS)


@dataclass(frozen=True, slots=True)
class _Lane:
    """The iterations of one replica in time order, and where the bin edges cut them."""

    rows: npt.NDArray[np.intp] | slice
    duration_s: Floats
    cut: npt.NDArray[np.intp]  # the iteration that has last begun at each edge, -1 before the first
    inside: Floats  # the share of that iteration which lies before the edge

    def per_bin(self, amounts: Floats) -> Floats:
        before = np.concatenate([[0.0], np.cumsum(amounts)])
        begun = np.maximum(self.cut, 0)
        up_to_edge = before[begun] + amounts[begun] * self.inside
        return np.diff(np.where(self.cut < 0, 0.0, up_to_edge))


@dataclass(frozen=True, slots=True)
class Timeline:
    """The iterations of a run over time bins. Replicas are added up."""

    edges_s: Floats  # [bins + 1]
    iterations: Columns
    lanes: tuple[_Lane, ...]

    @classmethod
    def over(cls, iterations: Columns, edges_s: Floats) -> "Timeline":
        """Cut the iterations at `edges_s`, which must cover them all.

        Where a replica keeps several batches in flight, an iteration counts until the next begins.
        """
        start_s = np.asarray(iterations["start_s"], dtype=np.float64)
        duration_s = np.asarray(iterations["duration_s"], dtype=np.float64)
        replica = np.asarray(iterations["replica"])
        lanes = []
        for number in np.unique(replica).tolist():
            rows: npt.NDArray[np.intp] | slice = slice(None)
            if replica.size and (replica[0] != replica).any():
                rows = np.flatnonzero(replica == number)
            starts, lasts = start_s[rows], duration_s[rows]
            if (np.diff(starts) < 0).any():
                order = np.argsort(starts, kind="stable")
                rows = np.arange(start_s.size)[rows][order]
                starts, lasts = start_s[rows], duration_s[rows]
            lasts = np.minimum(lasts, np.append(starts[1:], np.inf) - starts)
            cut = np.searchsorted(starts, edges_s, side="right") - 1
            begun = np.maximum(cut, 0)
            with np.errstate(divide="ignore", invalid="ignore"):
                inside = np.where(
                    lasts[begun] > 0, (edges_s - starts[begun]) / lasts[begun], np.inf
                )
            inside = np.clip(inside, 0.0, 1.0)
            inside[-1] = 1.0
            lanes.append(_Lane(rows, lasts, cut, inside))
        return cls(edges_s, iterations, tuple(lanes))

    @property
    def width_s(self) -> Floats:
        return np.diff(self.edges_s)

    def amount(self, column: str) -> Floats:
        """How much of `column` falls into each bin, an iteration's share spread evenly over it."""
        total = np.zeros(self.edges_s.size - 1)
        for lane in self.lanes:
            total += lane.per_bin(self.iterations[column][lane.rows].astype(np.float64))
        return total

    def count(self) -> Floats:
        """Iterations in each bin, in fractions where an edge cuts one."""
        total = np.zeros(self.edges_s.size - 1)
        for lane in self.lanes:
            total += lane.per_bin(np.ones(lane.duration_s.size))
        return total

    def mean(self, column: str) -> Floats:
        """The time-weighted mean of `column` in each bin; 0 while no iteration runs."""
        integral = np.zeros(self.edges_s.size - 1)
        for lane in self.lanes:
            integral += lane.per_bin(self.iterations[column][lane.rows] * lane.duration_s)
        return integral / self.width_s

    def kv_shares(self) -> dict[str, Floats]:
        """Time-weighted shares of all KV slots per bin: used, reserved, fragmentation, free.

        While no iteration runs, every slot counts as free.
        """
        kinds = ("used", "reserved", "fragmentation")
        columns = [self.iterations[f"kv_{kind}_tokens"] for kind in (*kinds, "free")]
        slots = float(sum(sum(c[lane.rows][:1].sum() for c in columns) for lane in self.lanes))
        if slots <= 0:
            return {}
        shares = {kind: self.mean(f"kv_{kind}_tokens") / slots for kind in kinds}
        shares["free"] = np.maximum(0.0, 1.0 - sum(shares.values()))
        return shares
