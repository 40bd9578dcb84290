"""What is run to measure each part of a latency table.

    linear             a whole pass without attention and experts: products, norms, rotary, cache
                       writes, embedding, in the order and on the weights that a pass uses
    prefill_attention  one layer's attention of one prompt, times the layers
    decode_attention   one layer's attention of sequences of equal contexts, times the layers
    decode_skew        the same of one long context among short ones
    logits             vocabulary projection and greedy sampling
    moe                one layer's experts with routing made to activate so many, times the layers
    copy, swap         blocks of all layers, on the device and over the host link
    host               what the real engine takes beside its passes and its sampling

On a GPU each part runs by itself; layers take turns, so that a call finds neither weights nor keys
of the one before in a cache. On a CPU most of the time goes into many small operations, whose cost
depends on what ran before them: there whole passes run, and attention is timed inside of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from calibrate.device.timer import Call, Mode
from calibrate.measure import grids
from calibrate.measure.batches import Lengths
from calibrate.measure.host_time import engine_host_s
from calibrate.measure.rig import Rig
from kernels.copy_blocks import copy_blocks
from kernels.moe import moe
from kernels.swap_blocks import swap_blocks

Point = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bench:
    """One part: its grid, which of its points fit, what to call for one, and how often that runs.

    ``calls`` gives one list of interchangeable calls for every time that the part records.
    """

    name: str
    axes: tuple[tuple[int, ...], ...]
    fits: Callable[[Point], bool]
    calls: Callable[[Point], list[list[Call]]]
    scale: float = 1.0
    mode: Mode | None = None
    key: tuple[Any, ...] = ()  # tables of equal keys may share this part, scaled
    refine: bool = True

    def points(self) -> list[Point]:
        """Coarse first."""
        return [point for point in grids.coarse_first(*self.axes) if self.fits(point)]


def benches(rig: Rig, *, captured: tuple[int, ...] = ()) -> list[Bench]:
    """Every part that this model and device have."""
    found = [_linear(rig, captured), _prefill(rig), _decode(rig, captured), _logits(rig)]
    if rig.config.num_experts:
        found.append(_moe(rig))
    if rig.timer.on_gpu:
        found.append(_skew(rig))
    return [*found, _copy(rig), _swap(rig), _host(rig)]


def _linear(rig: Rig, captured: tuple[int, ...]) -> Bench:
    def calls(point: Point) -> list[list[Call]]:
        # A batch of that many decodes, or one prompt where they are more than sequences may be.
        tokens, limits = point[0], rig.limits
        lengths = Lengths(decodes=(16,) * tokens)
        if not limits.holds(lengths, rig.block_size):
            lengths = Lengths(prefills=((tokens, 0),))
        batch = rig.batch(lengths)
        if rig.timer.on_gpu or rig.config.num_experts:
            return [[partial(rig.bare.forward, batch, rig.kv_cache)]]
        return [[partial(rig.timed.rest_s, batch, rig.kv_cache)]]

    config, last = rig.config, rig.limits.max_tokens
    return Bench(
        "linear",
        (tuple(grids.token_axis(last, captured=captured, tiled=rig.timer.on_gpu)),),
        lambda point: point[0] <= min(last, rig.limits.cache_tokens),
        calls,
        key=(
            str(rig.model.linear_backend),
            config.hidden_size, config.num_layers, config.num_heads, config.num_kv_heads,
            config.head_dim, config.intermediate_size, config.qk_norm, config.num_experts,
        ),
    )  # fmt: skip


def _attention_key(rig: Rig) -> tuple[Any, ...]:
    config = rig.config
    return (config.num_heads, config.num_kv_heads, config.head_dim, config.window, rig.block_size)


def _attend_calls(rig: Rig, lengths: Lengths, moved_bytes: float) -> list[Call]:
    config, batch, tokens = rig.config, rig.batch(lengths), lengths.num_tokens
    if not rig.timer.on_gpu:
        return [partial(rig.timed.attention_s, batch, rig.kv_cache)]
    heads, kv_heads = config.num_heads, config.num_kv_heads
    calls: list[Call] = []
    for layer in rig.layers(moved_bytes):
        packed = rig.normal(tokens, heads + 2 * kv_heads, config.head_dim)
        q, k, v = packed.split([heads, kv_heads, kv_heads], dim=1)
        calls.append(partial(rig.model.attend, q, k, v, batch, rig.kv_cache[layer], index=layer))
    return calls


def _kv_bytes(rig: Rig, tokens: int) -> float:
    """Of one layer."""
    return float(tokens * rig.model.kv_bytes_per_token // rig.config.num_layers)


def _prefill(rig: Rig) -> Bench:
    limits = rig.limits

    def lengths(point: Point) -> Lengths:
        return Lengths(prefills=((point[0], point[1]),))

    def calls(point: Point) -> list[list[Call]]:
        return [_attend_calls(rig, lengths(point), _kv_bytes(rig, sum(point)))]

    longest = min(limits.max_context, limits.cache_tokens)
    new = (1, *grids.doubling(16, min(limits.max_tokens, longest)))
    # Behind a past attention reads pages: a step at the first cached token.
    last = max(128, longest - min(new[-1], longest // 2))
    cached = (0, 1, *grids.doubling(128, last))
    return Bench(
        "prefill_attention",
        (new, cached),
        lambda point: sum(point) <= longest and limits.holds(lengths(point), rig.block_size),
        calls,
        scale=rig.config.num_layers,
        key=_attention_key(rig),
    )


def _decode(rig: Rig, captured: tuple[int, ...]) -> Bench:
    limits = rig.limits

    def lengths(point: Point) -> Lengths:
        return Lengths(decodes=(point[1],) * point[0])

    def calls(point: Point) -> list[list[Call]]:
        return [_attend_calls(rig, lengths(point), _kv_bytes(rig, point[0] * point[1]))]

    del captured  # rows between powers of two are added where they turn out to matter
    longest = min(limits.max_context, limits.cache_tokens)
    return Bench(
        "decode_attention",
        (tuple(grids.doubling(1, limits.max_seqs)), tuple(grids.doubling(16, longest))),
        lambda point: limits.holds(lengths(point), rig.block_size),
        calls,
        scale=rig.config.num_layers,
        key=_attention_key(rig),
    )


def _skew(rig: Rig) -> Bench:
    """One long context among short ones, beside as many equal ones of its mean, of its length."""
    limits, short = rig.limits, 256

    def lengths(point: Point) -> list[Lengths]:
        seqs, mean, longest = point
        rest = (mean * seqs - longest) // (seqs - 1)
        contexts = [(longest, *[rest] * (seqs - 1)), (mean,) * seqs, (longest,) * seqs]
        return [Lengths(decodes=each) for each in contexts]

    def calls(point: Point) -> list[list[Call]]:
        return [
            _attend_calls(rig, each, _kv_bytes(rig, sum(each.decodes))) for each in lengths(point)
        ]

    def fits(point: Point) -> bool:
        return all(limits.holds(each, rig.block_size) for each in lengths(point))

    points = [
        (seqs, (longest + (seqs - 1) * short) // seqs, longest)
        for seqs in (2, 4, 8, 16, 32, 64, 128, 256)
        for longest in (1024, 4096, 16_384, 65_536)
        if seqs <= limits.max_seqs and longest <= limits.max_context
    ]
    return Bench(
        "decode_skew",
        tuple(tuple(sorted({point[i] for point in points})) for i in range(3)),
        lambda point: point in points and fits(point),
        calls,
        scale=rig.config.num_layers,
        key=_attention_key(rig),
        refine=False,
    )


def _logits(rig: Rig) -> Bench:
    config = rig.config

    def calls(point: Point) -> list[list[Call]]:
        return [[partial(rig.emitted, rig.normal(point[0], config.hidden_size))]]

    return Bench(
        "logits",
        (tuple(grids.doubling(1, rig.limits.max_seqs)),),
        lambda point: True,
        calls,
        key=(str(rig.model.linear_backend), config.hidden_size, config.vocab_size),
    )


def _moe(rig: Rig) -> Bench:
    config = rig.config
    chosen, experts = config.experts_per_token, config.num_experts

    def calls(point: Point) -> list[list[Call]]:
        x, router = routed(rig, *point)
        weights = 3 * config.hidden_size * config.moe_intermediate_size * rig.dtype.itemsize
        made: list[Call] = []
        for index in rig.layers(weights * point[1]):
            layer = rig.model.layers[index]
            assert layer.experts_gate_up is not None
            assert layer.experts_down is not None
            made.append(
                partial(
                    moe,
                    x,
                    router,
                    layer.experts_gate_up,
                    layer.experts_down,
                    top_k=chosen,
                    renormalize=config.renormalize_experts,
                    backend=rig.model.backend,
                )
            )
        return [made]

    return Bench(
        "moe",
        (
            tuple(grids.token_axis(rig.limits.max_tokens, tiled=rig.timer.on_gpu)),
            tuple(grids.doubling(chosen, experts)),
        ),
        lambda point: point[1] <= point[0] * chosen,
        calls,
        scale=config.num_layers,
        key=(
            config.hidden_size,
            config.moe_intermediate_size,
            experts,
            chosen,
            config.renormalize_experts,
        ),
    )


def routed(rig: Rig, tokens: int, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and a router that send these tokens to exactly ``experts`` experts, evenly.

    The router reads a token's first features as its preferences: x [tokens, hidden], router
    [num_experts, hidden].
    """
    config = rig.config
    count, chosen = config.num_experts, config.experts_per_token
    router = torch.zeros((count, config.hidden_size), dtype=rig.dtype, device=rig.device)
    router[:, :count] = torch.eye(count, dtype=rig.dtype, device=rig.device)
    rng = np.random.default_rng(tokens * 1009 + experts)
    used = rng.permutation(count)[:experts]
    # Pairs of tokens and experts go round the experts in use; chosen <= experts keeps a token's
    # own apart.
    pairs = np.arange(tokens * chosen).reshape(tokens, chosen) % experts
    x = rig.normal(tokens, config.hidden_size)
    preferred = torch.from_numpy(used[pairs]).to(rig.device)
    x[:, :count] *= 0.1
    x.scatter_(1, preferred, 4.0)
    return x, router


def _copy(rig: Rig) -> Bench:
    def calls(point: Point) -> list[list[Call]]:
        order = torch.from_numpy(rig.block_order[: 2 * point[0]]).to(rig.device)
        pairs = order.view(2, -1).T.contiguous()
        return [[partial(copy_blocks, rig.kv_cache, pairs, backend=rig.model.backend)]]

    most = min(64, rig.num_blocks // 2)
    return Bench(
        "copy",
        (tuple(grids.doubling(1, most)),),
        lambda point: True,
        calls,
        key=(*_attention_key(rig), rig.config.num_layers),
    )


def _swap(rig: Rig) -> Bench:
    """Out to the host and in again, timed together: half of it is one way."""
    most = min(256, rig.num_blocks)
    host_cache: list[torch.Tensor] = []

    def calls(point: Point) -> list[list[Call]]:
        if not host_cache:
            config = rig.config
            shape = (most, config.num_layers, 2, rig.block_size, config.num_kv_heads)
            host_cache.append(
                torch.zeros((*shape, config.head_dim), dtype=rig.dtype, pin_memory=rig.timer.on_gpu)
            )
        blocks = rig.block_order[: point[0]].tolist()
        pairs = [(block, index) for index, block in enumerate(blocks)]
        backend = rig.model.backend

        def run() -> None:
            swap_blocks(rig.kv_cache, host_cache[0], pairs, direction="out", backend=backend)
            swap_blocks(rig.kv_cache, host_cache[0], pairs, direction="in", backend=backend)

        return [[run]]

    return Bench(
        "swap",
        (tuple(grids.doubling(1, most)),),
        lambda point: True,
        calls,
        scale=0.5,
        mode="eager",
        key=(*_attention_key(rig), rig.config.num_layers),
    )


def _host(rig: Rig) -> Bench:
    def calls(point: Point) -> list[list[Call]]:
        return [[partial(engine_host_s, rig, point[0])]]

    return Bench(
        "host",
        (tuple(grids.doubling(1, rig.limits.max_seqs)),),
        lambda point: True,
        calls,
        mode="eager",
        key=("engine",),
        refine=False,
    )
