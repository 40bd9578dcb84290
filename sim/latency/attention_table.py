"""Attention time from measured points: prefill, decode, both in one launch, uneven contexts.

*Decode* is bilinear in sequences and mean context, hence exact for ``a + b n + c (total context)``.

*Prefill* scores ``new x (cached + new / 2)`` query-key pairs. Along the length axis time is
interpolated linearly in that count, not in tokens: exact both where time grows with the square of
the length (no cache) and where it grows linearly (a long cache).

*Several prompts* in one iteration share one launch: they run at the utilisation of one prompt of as
many tokens in all, scaled by the pairs they really score. Or, where the table's measurer found that
they take as long as one after the other (``prefills: one_by_one``), their times add up. Where the
kernels take prompts and decodes in one launch (``prefills: beside_decodes``), decodes pay for it.

*Uneven contexts* (skew): a batch takes no less time than its longest sequence alone does in such
company. That bound is measured: with one long context among n - 1 short ones, a batch took a share
of t(longest), the time of n contexts all that long; above it, total context decides. Batches made
of two lengths take up to a tenth longer still, by the order in which thread blocks are dealt out;
lengths met in service are spread too evenly for that to be read off such batches.

*Layers that look back on so many tokens at most* (windows, the best few, states, which know their
own token alone) have points of their own and the same rules, the pairs they score being bounded. A
batch of decodes is taken to be as long as its mean: never too fast, the bound is concave.
"""

from __future__ import annotations

from math import inf, log2

import numpy as np

from sim.batch import PrefillChunk
from sim.latency.grid import Line, bracket, filled_grid
from sim.latency.table_data import LatencyTable, Part

ENDLESS = 2**40  # tokens: no bound, no end of what was measured


def pairs(new_tokens: float, cached_tokens: float, reach: int | None = None) -> float:
    """Query-key pairs a causal prefill scores, each query on `reach` tokens back at most."""
    if reach is None or cached_tokens + new_tokens <= reach:
        return new_tokens * (cached_tokens + 0.5 * (new_tokens + 1))
    growing = min(max(reach - cached_tokens, 0.0), new_tokens)
    return (new_tokens - growing) * reach + growing * (cached_tokens + 0.5 * (growing + 1))


class DecodeAttention:
    """Seconds of decode attention for n sequences of equal context."""

    def __init__(self, part: Part) -> None:
        (self._seqs, self.contexts), self._grid = filled_grid(
            [part.coordinates["sequences"], part.coordinates["context_tokens"]], part.time_s
        )
        self._lines: dict[int, Line] = {}
        self.most_seqs = self._seqs[-1]
        self.longest = self.contexts[-1]

    def line(self, num_seqs: int) -> Line:
        """Time over mean context for this many sequences."""
        line = self._lines.get(num_seqs)
        if line is None:
            low, high, share = bracket(self._seqs, num_seqs)
            row = self._grid[low] + share * (self._grid[high] - self._grid[low])
            if num_seqs > self.most_seqs:
                row = row * (num_seqs / self.most_seqs)
            line = self._lines[num_seqs] = Line(self.contexts, row.tolist())
        return line


class PrefillAttention:
    """Seconds of attention for one prompt chunk, alone or beside decodes."""

    def __init__(self, prefill: Part, mixed: Part | None, reach: int | None = None) -> None:
        self.reach = reach
        names = ["new_tokens", "cached_tokens"]
        self._axes, self._alone = filled_grid(
            [prefill.coordinates[n] for n in names], prefill.time_s
        )
        self.floor_s = float(self._alone.min())
        self._mixed_axes: list[list[float]] | None = None
        if mixed is not None:
            names += ["sequences", "context_tokens"]
            self._mixed_axes, self._mixed = filled_grid(
                [mixed.coordinates[n] for n in names], mixed.time_s
            )
        self.longest = (self._axes[0][-1], self._axes[1][-1])
        # Decodes, and their mean context, up to which both were measured in one launch.
        self.most_beside = (inf, inf)
        if self._mixed_axes is not None:
            self.most_beside = (self._mixed_axes[2][-1], self._mixed_axes[3][-1])

    def most_pairs_per_s(self) -> float:
        """Query-key pairs scored per second by the fastest prefill measured."""
        rates = [
            self.pairs(new, cached) / float(self._alone[i, j])
            for i, new in enumerate(self._axes[0])
            for j, cached in enumerate(self._axes[1])
        ]
        return max(rates)

    def pairs(self, new_tokens: float, cached_tokens: float) -> float:
        """Query-key pairs of a chunk."""
        return pairs(new_tokens, cached_tokens, self.reach)

    def alone(self, new_tokens: float, cached_tokens: float) -> float:
        if self.reach is not None:
            cached_tokens = min(cached_tokens, self.reach)
        return self._at(self._axes, self._alone, new_tokens, cached_tokens)

    def beside(
        self, new_tokens: float, cached_tokens: float, num_decodes: int, context: float
    ) -> float | None:
        """Both in one launch; None when that was not measured."""
        if self._mixed_axes is None:
            return None
        seqs, contexts = self._mixed_axes[2], self._mixed_axes[3]
        s0, s1, s = bracket(seqs, num_decodes)
        c0, c1, c = bracket(contexts, context)
        planes = [
            (1.0 - s) * (1.0 - c),
            (1.0 - s) * c,
            s * (1.0 - c),
            s * c,
        ]
        corners = [(s0, c0), (s0, c1), (s1, c0), (s1, c1)]
        return sum(
            weight * self._at(self._mixed_axes, self._mixed[:, :, i, j], new_tokens, cached_tokens)
            for weight, (i, j) in zip(planes, corners, strict=True)
            if weight > 0.0
        )

    def _at(self, axes: list[list[float]], grid: np.ndarray, new: float, cached: float) -> float:
        """One point of a (new, cached) plane: linear in cached, in pairs along the length."""
        k0, k1, k = bracket(axes[1], cached)
        n0, n1, _ = bracket(axes[0], new)
        low = float(grid[n0, k0] + k * (grid[n0, k1] - grid[n0, k0]))
        inside = min(max(cached, axes[1][0]), axes[1][-1])
        if n0 == n1:
            value, reached = low, self.pairs(axes[0][n0], inside)
        else:
            high = float(grid[n1, k0] + k * (grid[n1, k1] - grid[n1, k0]))
            left, right = self.pairs(axes[0][n0], inside), self.pairs(axes[0][n1], inside)
            here = self.pairs(new, inside)
            value, reached = low + (high - low) * ((here - left) / (right - left)), here
        asked = self.pairs(new, cached)
        if new >= axes[0][0] and asked > reached:  # beyond the grid: utilisation is held
            value *= asked / reached
        return value


class Skew:
    """The share of ``t(longest)`` below which no batch with a sequence that long can stay.

    For each number of sequences the batches with the fewest long contexts tell: their time hardly
    depends on the short ones.
    """

    def __init__(self, part: Part) -> None:
        seqs, longest = part.coordinates["sequences"], part.coordinates["longest_tokens"]
        mean = part.coordinates["context_tokens"]
        share = part.time_s / part.extra_s["time_at_longest_us"]
        self._log_seqs: list[float] = []
        self._shares: list[float] = []
        for count in np.unique(seqs):
            found = []
            for length in np.unique(longest[seqs == count]):
                rows = np.flatnonzero((seqs == count) & (longest == length))
                found.append(share[rows[mean[rows].argmin()]])
            self._log_seqs.append(log2(float(count)))
            self._shares.append(min(float(np.median(found)), 1.0))
        self._blended: dict[int, float] = {}

    def share(self, num_seqs: int) -> float:
        """For this many sequences."""
        share = self._blended.get(num_seqs)
        if share is None:
            low, high, weight = bracket(self._log_seqs, log2(num_seqs))
            share = self._shares[low] + weight * (self._shares[high] - self._shares[low])
            self._blended[num_seqs] = share
        return share


class AttentionOfReach:
    """Layers that look back on at most `reach` tokens; on every token, where that is None."""

    def __init__(self, table: LatencyTable, reach: int | None = None) -> None:
        parts = table.parts
        if reach is None:
            decode, prefill = parts["decode_attention"], parts["prefill_attention"]
            mixed = parts.get("mixed_attention")
        else:
            decode, prefill = parts["bounded_decode"].at(reach), parts["bounded_prefill"].at(reach)
            mixed = None
        self.reach = reach
        self.decode = DecodeAttention(decode)
        self.prefill = PrefillAttention(prefill, mixed, reach)
        self.pairs_per_s = self.prefill.most_pairs_per_s()
        self._one_by_one = table.meta.get("prefills") == "one_by_one"
        # A state is brought up to date for prompts and for decodes by kernels of their own.
        self._beside_decodes = table.meta.get("prefills") == "beside_decodes" and reach != 1

    def further_s(self, num_decodes: int, context_tokens: int, query_tokens: int) -> float:
        """What `query_tokens` in all take beyond one for each decode."""
        mean = context_tokens / num_decodes
        attended = mean if self.reach is None else min(mean, self.reach)
        scored_s = query_tokens * attended / self.pairs_per_s
        return max(scored_s - self.decode_s(num_decodes, mean), 0.0)

    def decode_s(self, num_seqs: int, context: float) -> float:
        """n sequences of such a context; what is bounded takes no longer past what was measured."""
        line = self.decode.line(num_seqs)
        return line(context if self.reach is None else min(context, line.last))

    def prefills_s(
        self, chunks: list[PrefillChunk], num_decodes: int, context_tokens: int
    ) -> float:
        """What prompts add to the decodes they run beside, all prompts in one launch."""
        if self._one_by_one:
            return sum(
                self.prefill.alone(chunk.new_tokens, chunk.cached_tokens) for chunk in chunks
            )
        new = sum(chunk.new_tokens for chunk in chunks)
        cached = sum(chunk.new_tokens * chunk.cached_tokens for chunk in chunks) / new
        scored = sum(self.prefill.pairs(chunk.new_tokens, chunk.cached_tokens) for chunk in chunks)
        share = scored / self.prefill.pairs(new, cached)
        if num_decodes:
            added_s = self._added_s(new, cached, num_decodes, context_tokens / num_decodes)
            if added_s is not None:
                return max(added_s, 0.0) * share
        # The launch itself is paid once, whatever it computes.
        alone_s = self.prefill.alone(new, cached)
        fixed_s = min(self.prefill.floor_s, alone_s)
        scoring_s = (alone_s - fixed_s) * share
        return scoring_s if num_decodes and self._beside_decodes else fixed_s + scoring_s

    def _added_s(self, new: float, cached: float, num_decodes: int, context: float) -> float | None:
        """What one prompt adds to a decode launch; None where that was not measured.

        Mixed launches are measured for fewer decodes and shorter contexts than decodes alone.
        Beyond them utilisation is held: both together take longer as the decodes alone do.
        """
        most_decodes, longest = self.prefill.most_beside
        decodes, measured = int(min(num_decodes, most_decodes)), min(context, longest)
        together_s = self.prefill.beside(new, cached, decodes, measured)
        if together_s is None:
            return None
        base_s = self.decode.line(decodes)(measured)
        added_s = together_s - base_s
        if (decodes, measured) != (num_decodes, context):
            added_s *= self.decode.line(num_decodes)(context) / base_s
        return added_s


class AttentionTable:
    """The attention of one iteration: layers that look at every token, and those that do not.

    Up to ``most_seqs`` decodes with ``longest`` tokens each were measured, and prompts' chunks of
    ``most_new`` tokens behind ``most_cached``.
    """

    def __init__(self, table: LatencyTable, *, skew: bool = True) -> None:
        parts = table.parts
        self.whole = AttentionOfReach(table) if "decode_attention" in parts else None
        self.bounded: list[AttentionOfReach] = []
        if "bounded_decode" in parts:
            reaches = np.unique(parts["bounded_decode"].coordinates["reach"]).tolist()
            self.bounded = [AttentionOfReach(table, reach) for reach in reaches]
        self.skew: Skew | None = None
        if skew and "decode_skew" in parts:
            self.skew = Skew(parts["decode_skew"])
        self.all = [*([] if self.whole is None else [self.whole]), *self.bounded]
        self.most_seqs = min(each.decode.most_seqs for each in self.all)
        self.most_new = min(each.prefill.longest[0] for each in self.all)
        self.longest = self.most_cached = float(ENDLESS)
        self.most_beside = (inf, inf)
        if self.whole is not None:
            self.longest = self.whole.decode.longest
            self.most_cached = self.whole.prefill.longest[1]
            self.most_beside = self.whole.prefill.most_beside

    def decode_s(self, num_seqs: int, context: int, longest: int) -> float:
        """n sequences; their contexts' sum and maximum."""
        time_s = 0.0
        if self.whole is not None:
            line = self.whole.decode.line(num_seqs)
            time_s = line(context / num_seqs)
            if self.skew is not None and longest * num_seqs != context:
                bound_s = self.skew.share(num_seqs) * line(longest)
                time_s = bound_s if bound_s > time_s else time_s
        for each in self.bounded:
            time_s += each.decode_s(num_seqs, context / num_seqs)
        return time_s

    def prefills_s(
        self, chunks: list[PrefillChunk], num_decodes: int, context_tokens: int
    ) -> float:
        """What prompts add to the decodes they run beside."""
        return sum(each.prefills_s(chunks, num_decodes, context_tokens) for each in self.all)

    def further_s(self, num_decodes: int, context_tokens: int, query_tokens: int) -> float:
        """Decode attention with `query_tokens` in all, beyond one for each sequence.

        Tables time one query a sequence. Keys and values are read once for all of them, so more
        cost nothing until scoring takes longer than reading: at the rate of the fastest prefill.
        """
        return sum(each.further_s(num_decodes, context_tokens, query_tokens) for each in self.all)
