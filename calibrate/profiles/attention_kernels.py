"""Attention of any number of heads from measured ones, grouped-query attention included.

*Heads between*: times are linear in the query heads between two measured numbers of them, at equal
KV heads. Taking a number away and composing it from its neighbours errs by 1.1 % (median) in decode
and 2.5 % in prefill on an H100 (vLLM 0.24, head dimension 128).

*KV heads beyond*: a decode kernel's work items are (sequence, KV head) pairs, so n sequences of 32
heads on 32 KV heads take as long as 4 n of 8 on 8. There the same numbers composed from a half or a
quarter of their heads have a bias of +0.6 % (median), and half of them err by less than 3.5 %. A
prefill depends on query heads, and on KV heads by 4 % (median) between 8 and 1 or 32: the nearest
measured number of them stands for all.

*Windows* that were not measured are composed from attention to every token: a decode attends to as
many tokens as the window has, a prompt takes as long as a shorter one that scores as many pairs.
Against the measured windows of 128 and 1,024 tokens: `tests/calibrate/profiles`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from calibrate.profiles.kernel_tables import KernelTables, NotMeasured
from sim.latency.attention_table import pairs
from sim.latency.grid import Line, bracket

Grid = dict[tuple[int, int], float]
# KV heads -> query heads -> times
_ByHeads = dict[int, dict[int, Grid]]
WITHIN = "a window, from attention to every token"


def prefill_us(
    tables: KernelTables,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    kv_dtype: str,
    window: int = 0,
) -> tuple[Grid, str | None]:
    """µs of one layer by (new, cached) tokens of a lone prompt, and how, where not as measured.

    Raises NotMeasured where query heads lie outside what was measured.
    """
    timed = partial(
        _prefill_us, tables, heads=heads, kv_heads=kv_heads, head_dim=head_dim, kv_dtype=kv_dtype
    )
    return _bounded(timed, window, _within)


def _bounded(
    timed: Callable[..., tuple[Grid, str | None]],
    window: int,
    of_whole: Callable[[Grid, int], Grid],
) -> tuple[Grid, str | None]:
    """The window's own kernel where it was measured; else of attention to every token."""
    if window:
        with suppress(NotMeasured):
            return timed(window=window)
        whole, how = timed(window=0)
        return of_whole(whole, window), _and(WITHIN, how)
    return timed(window=0)


def _prefill_us(
    tables: KernelTables, *, heads: int, kv_heads: int, head_dim: int, kv_dtype: str, window: int
) -> tuple[Grid, str | None]:
    points = tables.points(
        "attention",
        "context_attention_perf",
        "num_key_value_heads",
        "num_heads",
        "isl",
        "step",
        batch_size=1,
        **_wanted(head_dim, kv_dtype, window),
    )
    by_heads = _by_heads(points)
    able = [kv for kv, found in by_heads.items() if min(found) <= heads <= max(found)]
    if not able:
        raise _outside(tables, "prefill", heads, kv_heads, by_heads)
    nearest = min(able, key=lambda kv: (max(kv, kv_heads) / min(kv, kv_heads), kv))
    grid, how = _between(by_heads[nearest], heads)
    if nearest != kv_heads:
        how = f"as of {nearest} KV heads" + (f", {how}" if how else "")
    return grid, how


def decode_us(
    tables: KernelTables,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    kv_dtype: str,
    window: int = 0,
) -> tuple[Grid, str | None]:
    """µs of one layer by (sequences, context tokens of each), and how, where not as measured.

    Raises NotMeasured where neither these heads nor a part of them were measured.
    """
    timed = partial(
        _decode_us, tables, heads=heads, kv_heads=kv_heads, head_dim=head_dim, kv_dtype=kv_dtype
    )
    return _bounded(timed, window, _beyond_held)


def _decode_us(
    tables: KernelTables, *, heads: int, kv_heads: int, head_dim: int, kv_dtype: str, window: int
) -> tuple[Grid, str | None]:
    points = tables.points(
        "attention",
        "generation_attention_perf",
        "num_key_value_heads",
        "num_heads",
        "batch_size",
        "isl",
        "step",
        **_wanted(head_dim, kv_dtype, window),
    )
    contexts: dict[tuple[int, ...], float] = {
        (kv, query, batch, new + cached): time_us
        for (kv, query, batch, new, cached), time_us in points.items()
    }
    by_heads = _by_heads(contexts)
    for kv in sorted(by_heads, reverse=True):
        copies, rest = divmod(kv_heads, kv)
        found = by_heads[kv]
        if copies < 1 or rest or not min(found) <= heads // copies <= max(found):
            continue
        grid, how = _between(found, heads // copies)
        if copies > 1:
            told = f"as of {copies} times as many sequences with {heads // copies} heads on {kv}"
            return _dealt_out(grid, copies), told + (f", {how}" if how else "")
        return grid, how
    raise _outside(tables, "decode", heads, kv_heads, by_heads)


def _within(whole: Grid, window: int) -> Grid:
    """A prompt's attention within a window, at the pace of a whole prompt of as many pairs."""
    alone = {new: time_us for (new, cached), time_us in whole.items() if cached == 0}
    lengths = sorted(alone)
    line = Line([pairs(length, 0) for length in lengths], [alone[length] for length in lengths])
    return {(length, 0): line(pairs(length, 0, window)) for length in lengths}


def _beyond_held(whole: Grid, window: int) -> Grid:
    """Decodes within a window: past it no context makes them longer."""
    by_sequences: dict[int, dict[int, float]] = {}
    for (sequences, context), time_us in whole.items():
        by_sequences.setdefault(sequences, {})[context] = time_us
    held = {}
    for sequences, times in by_sequences.items():
        line = Line(sorted(times), [times[context] for context in sorted(times)])
        for context in {*times, window}:
            held[sequences, context] = line(min(context, window))
    return held


def _and(first: str, second: str | None) -> str:
    return first if second is None else f"{first}, {second}"


def _wanted(head_dim: int, kv_dtype: str, window: int) -> dict[str, Any]:
    """Where keys and values are in 8 bits so are their products, where such a kernel was timed."""
    return {
        "head_dim": head_dim,
        "kv_cache_dtype": kv_dtype,
        "attn_dtype": ("fp8", "bfloat16") if kv_dtype == "fp8" else ("bfloat16", "fp8"),
        "window_size": window,
    }


def _by_heads(points: Mapping[tuple[int, ...], float]) -> _ByHeads:
    found: _ByHeads = {}
    for (kv, heads, *key), time_us in points.items():
        found.setdefault(kv, {}).setdefault(heads, {})[key[0], key[1]] = time_us
    return found


def _between(found: dict[int, Grid], heads: int) -> tuple[Grid, str | None]:
    """The times of so many query heads: measured, or linear between two measured numbers."""
    if heads in found:
        return found[heads], None
    measured = sorted(found)
    low, high, share = bracket(measured, heads)
    fewer, more = found[measured[low]], found[measured[high]]
    grid = {key: fewer[key] + share * (more[key] - fewer[key]) for key in fewer if key in more}
    return grid, f"between {measured[low]} and {measured[high]} heads"


def _dealt_out(grid: Grid, copies: int) -> Grid:
    """n sequences as `copies` times n of a part of their heads each."""
    by_context: dict[int, dict[int, float]] = {}
    for (sequences, context), time_us in grid.items():
        by_context.setdefault(context, {})[sequences] = time_us
    dealt = {}
    for context, times in by_context.items():
        line = Line(sorted(times), [times[n] for n in sorted(times)])
        for sequences in times:
            if sequences * copies <= line.last:
                dealt[sequences, context] = line(sequences * copies)
    return dealt


def _outside(
    tables: KernelTables, what: str, heads: int, kv_heads: int, by_heads: _ByHeads
) -> NotMeasured:
    there = "; ".join(f"{min(found)} to {max(found)} on {kv}" for kv, found in by_heads.items())
    return NotMeasured(
        f"{tables.system.name}, {tables.backend}: no {what} attention of {heads} heads on "
        f"{kv_heads} KV heads; there are: {there}"
    )
