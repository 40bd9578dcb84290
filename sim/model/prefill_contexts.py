"""How much context prefills attended to, told from the records, which do not keep it.

Records say when a request was first in a batch and when its prompt was done, and how many prompt
tokens each iteration computed. A prompt that was done in one iteration is known exactly; so is one
in pieces, because engines go on with the oldest first. What an iteration computed beyond that
(sequences recomputed after a preemption, padding) is taken to start without context.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.scratch import Table


@dataclass(frozen=True, slots=True)
class PrefillContexts:
    """By iteration, f8[n]: pairs of a query with a key up to its own, and tokens cached before."""

    pairs: np.ndarray
    cached_tokens: np.ndarray


def prefill_contexts(
    requests: Table, iterations: Table, *, wanted: np.ndarray | None = None
) -> PrefillContexts:
    """Contexts of the prefills of each iteration; with `wanted` (rows) only those need be right."""
    count = len(iterations["start_s"])
    prefills = np.flatnonzero(iterations["prefill_tokens"] > 0)
    order = np.lexsort((iterations["start_s"][prefills], iterations["replica"][prefills]))
    prefills = prefills[order]
    work = _Assignment(
        left=iterations["prefill_tokens"][prefills].astype(np.float64),
        pairs=np.zeros(len(prefills)),
        cached=np.zeros(len(prefills)),
        known=np.zeros(len(prefills)),
    )
    first, last, rows = _spans(requests, iterations, prefills)
    cached = requests["cached_tokens"][rows].astype(np.float64)
    new = requests["prompt_tokens"][rows] - cached
    whole = first == last
    work.add(first[whole], new[whole], cached[whole])
    pieces = ~whole
    if wanted is not None:
        asked = np.zeros(count, dtype=np.int64)
        asked[wanted] = 1
        before = np.concatenate([[0], np.cumsum(asked[prefills])])
        seen = before[last + 1] > before[first]
        seen[:-1] |= seen[1:]  # who shares its iteration with the one before it in the queue
        pieces &= seen
    for row in np.flatnonzero(pieces).tolist():
        work.add_in_pieces(int(first[row]), int(last[row]), float(new[row]), float(cached[row]))
    work.add_rest(iterations["prefill_seqs"][prefills])
    pairs, contexts = np.zeros(count), np.zeros(count)
    pairs[prefills], contexts[prefills] = work.pairs, work.cached
    return PrefillContexts(pairs, contexts)


def _spans(
    requests: Table, iterations: Table, prefills: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and last iteration of each prompt (positions in `prefills`), in order of the queue.

    A request whose prompt another replica computed is looked for on all of them.
    """
    starts, replicas = iterations["start_s"][prefills], iterations["replica"][prefills]
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    known = np.isfinite(requests["scheduled_s"]) & np.isfinite(requests["first_token_s"])
    missing = known.copy()
    for number in np.unique(replicas).tolist():
        here = np.flatnonzero(replicas == number)
        mine = np.flatnonzero(known & (requests["replica"] == number))
        first = np.searchsorted(starts[here], requests["scheduled_s"][mine])
        hit = first < len(here)
        hit[hit] = starts[here][first[hit]] == requests["scheduled_s"][mine][hit]
        last = np.searchsorted(starts[here], requests["first_token_s"][mine]) - 1
        found.append((here[first[hit]], here[np.maximum(last, first)[hit]], mine[hit]))
        missing[mine[hit]] = False
    elsewhere = np.flatnonzero(missing)
    if len(elsewhere) and len(prefills):
        by_time = np.argsort(starts, kind="stable")
        place = np.searchsorted(starts[by_time], requests["scheduled_s"][elsewhere])
        place = np.minimum(place, len(by_time) - 1)
        hit = starts[by_time][place] == requests["scheduled_s"][elsewhere]
        at = by_time[place[hit]]
        found.append((at, at, elsewhere[hit]))
    if not found:
        nothing = np.zeros(0, dtype=np.intp)
        return nothing, nothing, nothing
    first, last, rows = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((rows, first))
    return first[order], last[order], rows[order]


@dataclass(slots=True)
class _Assignment:
    """Prompt tokens of iterations, given to the requests that they must have been of."""

    left: np.ndarray
    pairs: np.ndarray
    cached: np.ndarray
    known: np.ndarray  # sequences

    def add(self, at: np.ndarray, new: np.ndarray, cached: np.ndarray) -> None:
        size = len(self.left)
        self.left -= np.bincount(at, new, size)
        self.pairs += np.bincount(at, new * (cached + 0.5 * (new + 1)), size)
        self.cached += np.bincount(at, cached, size)
        self.known += np.bincount(at, minlength=size)

    def add_in_pieces(self, first: int, last: int, new: float, cached: float) -> None:
        for at in range(first, last + 1):
            piece = min(new, self.left[at])
            if piece <= 0:
                continue
            self.left[at] -= piece
            self.pairs[at] += piece * (cached + 0.5 * (piece + 1))
            self.cached[at] += cached
            self.known[at] += 1
            new -= piece
            cached += piece

    def add_rest(self, prefill_seqs: np.ndarray) -> None:
        rest = np.maximum(self.left, 0.0)
        seqs = np.maximum(prefill_seqs - self.known, 1)
        each = rest / seqs
        self.pairs += seqs * each * 0.5 * (each + 1)
