"""Mixture of experts:  y = Σ_{e ∈ top-k(r)} w_e · mlp_e(x),  r = softmax(x Rᵀ),  w = r / Σ_top-k r.

Routing takes the k likeliest experts of each token (ties to the lower index) and counts, with
atomics, the (token, expert) pairs of each expert; the order in which pairs arrive at an expert
varies but no result depends on it. A token with a NaN logit goes to experts that exist, with NaN
weights: its own result is NaN and no other's. A grouped matrix product then gives each expert's
tiles of rows their own weights: first gate and up with the activation fused, reading tokens through
the sorted pairs, then down, and a last kernel sums each token's k results in float32. Tiles are
found on the device from the counts: nothing synchronises. Few tokens have a grid bounded by shapes,
many one wave of programs that take tile after tile. Only experts
that were chosen are read. Accumulation is in float32; a pair's results are stored in the working
dtype.
"""

# Jitted functions are typed by Triton when they are compiled.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels import gpu
from kernels.checks import Backend, float_types, require, require_backend, require_tensor
from kernels.linear import (
    LinearTiles,
    linear,
    linear_reference,
    load_tile,
    require_aligned_rows,
    tile_position,
    tile_source,
)
from kernels.swiglu_mlp import Activation, gated_product, gated_product_reference


@triton.jit(do_not_specialize=["num_tokens"])
def _route_kernel(
    logits_ptr,  # [num_tokens, NUM_EXPERTS]
    experts_ptr,  # [num_tokens, TOP_K] int32
    weights_ptr,  # [num_tokens, TOP_K] float32
    ranks_ptr,  # [num_tokens, TOP_K] int32: the pair's place among its expert's
    counts_ptr,  # [NUM_EXPERTS] int32, zero before
    preference_ptr,  # [NUM_EXPERTS] where PREFERRED: added to scores when experts are chosen
    num_tokens,
    scale,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SIGMOID: tl.constexpr,
    PREFERRED: tl.constexpr,
    GROUPS: tl.constexpr,  # of experts, of which KEPT_GROUPS are chosen first
    KEPT_GROUPS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tokens = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    experts = tl.arange(0, BLOCK_EXPERTS)
    places = tl.arange(0, BLOCK_K)
    used = tokens < num_tokens
    inside = used[:, None] & (experts < NUM_EXPERTS)[None, :]
    offsets = tokens.to(tl.int64)[:, None] * NUM_EXPERTS + experts[None, :]
    logits = tl.load(logits_ptr + offsets, mask=inside, other=float("-inf")).to(tl.float32)
    numbers = tl.where(logits == logits, logits, float("-inf"))
    largest = tl.where(used, tl.max(numbers, 1), 0.0)
    if SIGMOID:
        probabilities = 1.0 / (1.0 + tl.math.exp2(-1.4426950408889634 * logits))
    else:
        probabilities = tl.math.exp2((logits - largest[:, None]) * 1.4426950408889634)
    total = tl.sum(probabilities, 1)  # NaN if any is: so are all weights of that token
    # A NaN equals nothing, itself included: it must not be what the experts are chosen by.
    likely = tl.where(probabilities == probabilities, probabilities, 0.0)
    remaining = tl.where((experts < NUM_EXPERTS)[None, :], likely, float("-inf"))
    if PREFERRED:
        preference = tl.load(preference_ptr + experts, mask=experts < NUM_EXPERTS, other=0.0)
        remaining += preference.to(tl.float32)[None, :]
    if GROUPS > 1:  # the experts are as many as the block's
        WIDTH: tl.constexpr = NUM_EXPERTS // GROUPS
        in_groups = tl.reshape(remaining, [BLOCK_TOKENS, GROUPS, WIDTH])
        member = tl.arange(0, WIDTH)[None, None, :]
        best_of = tl.max(in_groups, 2)  # [BLOCK_TOKENS, GROUPS]
        first_of = tl.min(tl.where(in_groups == best_of[:, :, None], member, WIDTH), 2)
        others = tl.where(member == first_of[:, :, None], float("-inf"), in_groups)
        left = best_of + tl.max(others, 2)  # a group counts as its best two
        group = tl.arange(0, GROUPS)[None, :]
        kept = left != left  # none
        for _ in tl.static_range(KEPT_GROUPS):
            best_left = tl.max(left, 1)[:, None]
            first_left = tl.min(tl.where(left == best_left, group, GROUPS), 1)[:, None]
            kept = kept | (group == first_left)
            left = tl.where(group == first_left, float("-inf"), left)
        in_groups = tl.where(kept[:, :, None], in_groups, float("-inf"))
        remaining = tl.reshape(in_groups, [BLOCK_TOKENS, BLOCK_EXPERTS])
    chosen = tl.zeros([BLOCK_TOKENS, BLOCK_K], tl.int32)
    weights = tl.zeros([BLOCK_TOKENS, BLOCK_K], tl.float32)
    for place in tl.static_range(TOP_K):
        best = tl.max(remaining, 1)
        first = tl.min(tl.where(remaining == best[:, None], experts[None, :], BLOCK_EXPERTS), 1)
        taken = experts[None, :] == first[:, None]
        remaining = tl.where(taken, float("-inf"), remaining)
        here = (places == place)[None, :]
        chosen = tl.where(here, first[:, None], chosen)
        own = tl.sum(tl.where(taken, likely, 0.0), 1)
        weights = tl.where(here, own[:, None], weights)
    if RENORMALIZE:
        total = tl.where(total == total, tl.sum(weights, 1), total)
    elif SIGMOID:
        total = tl.where(total == total, 1.0, total)
    weights = weights * scale / tl.where(used, total, 1.0)[:, None]
    pair_used = used[:, None] & (places < TOP_K)[None, :]
    pairs = tokens.to(tl.int64)[:, None] * TOP_K + places[None, :]
    ranks = tl.atomic_add(counts_ptr + chosen, 1, mask=pair_used, sem="relaxed")
    tl.store(experts_ptr + pairs, chosen, mask=pair_used)
    tl.store(weights_ptr + pairs, weights, mask=pair_used)
    tl.store(ranks_ptr + pairs, ranks, mask=pair_used)


@triton.jit(do_not_specialize=["num_pairs"])
def _sort_pairs_kernel(
    experts_ptr,  # [num_pairs] int32
    ranks_ptr,  # [num_pairs] int32
    counts_ptr,  # [NUM_EXPERTS] int32
    sorted_ptr,  # [num_pairs] int32: pairs, expert after expert
    num_pairs,
    NUM_EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
):
    pairs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    experts = tl.arange(0, BLOCK_EXPERTS)
    used = pairs < num_pairs
    counts = tl.load(counts_ptr + experts, mask=experts < NUM_EXPERTS, other=0)
    expert = tl.load(experts_ptr + pairs, mask=used, other=0)
    rank = tl.load(ranks_ptr + pairs, mask=used, other=0)
    first = tl.sum(tl.where(experts[None, :] < expert[:, None], counts[None, :], 0), 1)
    tl.store(sorted_ptr + first + rank, pairs, mask=used)


@triton.jit
def _grouped_linear_kernel(
    x_ptr,  # GATED: [num_tokens, K] by token; else [num_pairs, K] in sorted order
    weight_source,  # [NUM_EXPERTS · (GATED: 2 ·) N, K], read in tiles [BLOCK_N, BLOCK_K]
    bias_ptr,  # [NUM_EXPERTS, (GATED: 2 ·) N] where BIAS
    y_ptr,  # GATED: [num_pairs, N] in sorted order; else [num_pairs, N] by pair
    sorted_ptr,  # [num_pairs]
    counts_ptr,  # [NUM_EXPERTS]
    N,
    K,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    SWAP: tl.constexpr,
    TMA: tl.constexpr,
):
    experts = tl.arange(0, BLOCK_EXPERTS)
    counts = tl.load(counts_ptr + experts, mask=experts < NUM_EXPERTS, other=0)
    tiles = (counts + BLOCK_M - 1) // BLOCK_M
    tiles_until = tl.cumsum(tiles, 0)
    tiles_m = tl.sum(tiles, 0)  # of all experts
    tiles_n = tl.cdiv(N, BLOCK_N)
    # One tile a program where the grid has as many, tile after tile where it is one wave.
    for work in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        tile, tile_n = tile_position(work, tiles_m, tiles_n, GROUP_M)
        expert = tl.sum((tiles_until <= tile).to(tl.int32), 0)
        before = experts < expert
        first_row = tl.sum(tl.where(before, counts, 0), 0)
        end_row = first_row + tl.sum(tl.where(experts == expert, counts, 0), 0)
        in_expert = tile - tl.sum(tl.where(before, tiles, 0), 0)
        rows = first_row + in_expert * BLOCK_M + tl.arange(0, BLOCK_M)
        used = rows < end_row
        pairs = tl.load(sorted_ptr + rows, mask=used, other=0)
        if GATED:
            x_rows, y_rows = pairs // TOP_K, rows
        else:
            x_rows, y_rows = rows, pairs

        column = tile_n * BLOCK_N
        weight_rows: tl.constexpr = 2 if GATED else 1
        all_rows = NUM_EXPERTS * weight_rows * N
        weight_row = expert * weight_rows * N + column
        depth = tl.arange(0, BLOCK_K)
        x_ptrs = x_ptr + x_rows.to(tl.int64)[:, None] * K + depth[None, :]  # [BLOCK_M, BLOCK_K]
        if SWAP:
            accumulator = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            up = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        else:
            accumulator = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in range(0, K, BLOCK_K):
            inside = used[:, None] & (depth < K - k)[None, :]
            x = tl.load(x_ptrs + k, mask=inside, other=0.0)
            weight = load_tile(weight_source, weight_row, k, all_rows, K, BLOCK_N, BLOCK_K, TMA)
            if SWAP:
                accumulator = tl.dot(weight, tl.trans(x), accumulator)
            else:
                accumulator = tl.dot(x, tl.trans(weight), accumulator)
            if GATED:
                up_rows = load_tile(
                    weight_source, weight_row + N, k, all_rows, K, BLOCK_N, BLOCK_K, TMA
                )
                if SWAP:  # noqa: SIM108 (a constexpr branch)
                    up = tl.dot(up_rows, tl.trans(x), up)
                else:
                    up = tl.dot(x, tl.trans(up_rows), up)
        if SWAP:
            accumulator = tl.trans(accumulator)
            if GATED:
                up = tl.trans(up)
        columns = column + tl.arange(0, BLOCK_N)
        if BIAS:
            bias_ptrs = bias_ptr + weight_row + tl.arange(0, BLOCK_N)
            bias = tl.load(bias_ptrs, mask=columns < N, other=0.0)
            accumulator += bias.to(tl.float32)[None, :]
            if GATED:
                up_bias = tl.load(bias_ptrs + N, mask=columns < N, other=0.0)
                up += up_bias.to(tl.float32)[None, :]
        if GATED:
            accumulator = gated_product(accumulator, up, ACTIVATION)
        y = accumulator.to(y_ptr.dtype.element_ty)
        inside_y = used[:, None] & (columns < N)[None, :]
        tl.store(y_ptr + y_rows.to(tl.int64)[:, None] * N + columns[None, :], y, mask=inside_y)


@triton.jit
def _combine_kernel(
    pair_results_ptr,  # [num_tokens · TOP_K, hidden]
    weights_ptr,  # [num_tokens, TOP_K] float32
    y_ptr,  # [num_tokens, hidden]
    hidden,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < hidden
    total = tl.zeros([BLOCK], tl.float32)
    for place in tl.static_range(TOP_K):
        weight = tl.load(weights_ptr + token * TOP_K + place)
        row_ptr = pair_results_ptr + (token * TOP_K + place) * hidden
        total += weight * tl.load(row_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + token * hidden + columns, total.to(y_ptr.dtype.element_ty), mask=inside)


@dataclass(frozen=True, slots=True)
class Routing:
    """Which experts each token goes to, and the pairs (token · top_k + place) expert by expert."""

    experts: torch.Tensor  # [num_tokens, top_k] int32
    weights: torch.Tensor  # [num_tokens, top_k] float32
    sorted_pairs: torch.Tensor  # [num_tokens · top_k] int32
    counts: torch.Tensor  # [num_experts] int32


@dataclass(frozen=True, slots=True)
class Rule:
    """How experts are chosen beyond the k likeliest; the defaults change nothing.

    DeepSeek-V3 (technical report, section 2.1.2) scores an expert by the sigmoid of its logit, adds
    a preference when it chooses but not when it weighs, takes the ``kept_groups`` of ``groups``
    whose best two score highest, then experts of these, and multiplies the weights by ``scale``.
    """

    sigmoid: bool = False
    preference: torch.Tensor | None = None  # [num_experts] float32
    groups: int = 1  # a power of two, as num_experts then is
    kept_groups: int = 1
    scale: float = 1.0


LIKELIEST = Rule()


def route(
    logits: torch.Tensor, top_k: int, *, renormalize: bool = True, rule: Rule = LIKELIEST
) -> Routing:
    """Choose the experts of each token from its router logits, with the Triton kernels.

    Args:
        logits: [num_tokens, num_experts], bf16, fp16 or fp32, contiguous; at most 512 experts.
        top_k: experts a token, at most 16.
        renormalize: make the chosen weights sum to 1.
        rule: of the choice.

    Raises: ValueError on a wrong argument, before any launch.
    """
    require_backend("triton", logits)
    require_tensor("logits", logits, (None, None), dtypes=(*float_types(), torch.float32))
    num_tokens, num_experts = logits.shape
    require(1 <= num_experts <= 512, f"logits: 1 to 512 experts, got {num_experts}")
    allowed = min(16, num_experts)
    require(1 <= top_k <= allowed, f"top_k: must be 1 to {allowed}, got {top_k}")
    _check_rule(rule, logits, num_experts, top_k)
    device = logits.device
    experts = torch.empty((num_tokens, top_k), dtype=torch.int32, device=device)
    weights = torch.empty((num_tokens, top_k), dtype=torch.float32, device=device)
    ranks = torch.empty_like(experts)
    counts = torch.zeros((num_experts,), dtype=torch.int32, device=device)
    num_pairs = num_tokens * top_k
    sorted_pairs = torch.empty((num_pairs,), dtype=torch.int32, device=device)
    if num_pairs:
        block_experts = triton.next_power_of_2(num_experts)
        block_tokens = max(1, min(16, 2048 // block_experts))
        _route_kernel[(triton.cdiv(num_tokens, block_tokens),)](
            logits,
            experts,
            weights,
            ranks,
            counts,
            weights if rule.preference is None else rule.preference,
            num_tokens,
            rule.scale,
            NUM_EXPERTS=num_experts,
            TOP_K=top_k,
            RENORMALIZE=renormalize,
            SIGMOID=rule.sigmoid,
            PREFERRED=rule.preference is not None,
            GROUPS=rule.groups,
            KEPT_GROUPS=rule.kept_groups,
            BLOCK_TOKENS=block_tokens,
            BLOCK_EXPERTS=block_experts,
            BLOCK_K=triton.next_power_of_2(top_k),
            num_warps=4,
        )
        _sort_pairs_kernel[(triton.cdiv(num_pairs, 64),)](
            experts,
            ranks,
            counts,
            sorted_pairs,
            num_pairs,
            NUM_EXPERTS=num_experts,
            BLOCK=64,
            BLOCK_EXPERTS=block_experts,
            num_warps=4,
        )
    return Routing(experts, weights, sorted_pairs, counts)


def _check_rule(rule: Rule, like: torch.Tensor, num_experts: int, top_k: int) -> None:
    """Raise ValueError unless the rule chooses ``top_k`` of so many experts."""
    if rule.preference is not None:
        require_tensor(
            "preference", rule.preference, (num_experts,), dtypes=(torch.float32,),
            device=like.device,
        )  # fmt: skip
    groups, kept = rule.groups, rule.kept_groups
    powers = groups == 1 or (groups & (groups - 1) == 0 and num_experts & (num_experts - 1) == 0)
    require(powers, f"groups: they and experts must be powers of two, got {groups}, {num_experts}")
    fits = 1 <= kept <= groups and (groups == 1 or num_experts >= 2 * groups)
    require(fits, f"kept_groups: 1 to {groups} of at least two experts each, got {kept}")
    enough = kept * (num_experts // groups) >= top_k
    require(enough, f"kept_groups: {kept} have fewer than {top_k} experts")


def choose_tiles(num_pairs: int, num_experts: int, on: gpu.Gpu, *, gated: bool) -> LinearTiles:
    """Tiles for a grouped product, by the mean number of rows of an expert."""
    mean = max(1, num_pairs // num_experts)
    if not on.is_hopper:
        if mean <= 32:
            options = {"persistent": False, "tma": False}
            return LinearTiles(16 if mean <= 16 else 32, 32, 64, 4, 4, **options)
        return LinearTiles(64, 32 if gated else 64, 32, 4, 4, tma=False)
    if mean <= 32:
        depth = 64 if gated else 128
        block_m = 16 if mean <= 16 else 32
        return LinearTiles(block_m, 64, depth, 4, 4, swap=True, persistent=False)
    if mean <= 128:
        return LinearTiles(64, 64 if gated else 128, 64, 4, 4)
    return LinearTiles(128, 128, 64, 8, 3)


def _grouped_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    routing: Routing,
    *,
    bias: torch.Tensor | None,
    gated: bool,
    activation: Activation,
    tiles: LinearTiles,
) -> None:
    num_experts, rows_per_expert, depth = weight.shape
    num_pairs, out_features = y.shape
    # Whole tiles of the pairs, and at most one ragged tile an expert.
    tiles_m = min(num_pairs, triton.cdiv(num_pairs, tiles.block_m) + num_experts)
    programs = tiles_m * triton.cdiv(out_features, tiles.block_n)
    if tiles.persistent:
        # As many as share a multiprocessor: two of 64 rows, one of 128.
        on_sm = 2 if tiles.block_m <= 64 else 1
        programs = min(programs, on_sm * gpu.gpu_of(x).multiprocessors)
    flat_weight = weight.view(num_experts * rows_per_expert, depth)
    _grouped_linear_kernel[(programs,)](
        x,
        tile_source(flat_weight, [tiles.block_n, tiles.block_k], tma=tiles.tma),
        x if bias is None else bias,
        y,
        routing.sorted_pairs,
        routing.counts,
        out_features,
        depth,
        NUM_EXPERTS=num_experts,
        TOP_K=routing.experts.shape[1],
        GATED=gated,
        ACTIVATION=activation,
        BIAS=bias is not None,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_K=tiles.block_k,
        GROUP_M=8,
        BLOCK_EXPERTS=triton.next_power_of_2(num_experts),
        SWAP=tiles.swap,
        TMA=tiles.tma,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )


def moe(
    x: torch.Tensor,
    router_weight: torch.Tensor,
    gate_up_weight: torch.Tensor,
    down_weight: torch.Tensor,
    *,
    top_k: int,
    renormalize: bool = True,
    rule: Rule = LIKELIEST,
    activation: Activation = "silu",
    router_bias: torch.Tensor | None = None,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    backend: Backend = "triton",
) -> torch.Tensor:
    """The whole mixture-of-experts MLP.

    Args:
        x: [num_tokens, hidden], bf16 or fp16, contiguous; rows a multiple of 16 bytes.
        router_weight: [num_experts, hidden], same dtype; at most 512 experts.
        gate_up_weight: [num_experts, 2 · intermediate, hidden], gate rows first, same dtype.
        down_weight: [num_experts, hidden, intermediate], same dtype.
        top_k: experts a token, at most 16.
        renormalize: make the chosen weights sum to 1 (``norm_topk_prob``).
        rule: of the choice of experts.
        activation: of the gate.
        router_bias: [num_experts]; gate_up_bias: [num_experts, 2 · intermediate]; down_bias:
            [num_experts, hidden]; same dtype, none by default.
        backend: ``best`` runs cuBLAS an expert at a time (for comparison; it synchronises).

    Returns: [num_tokens, hidden], dtype of ``x``. Raises: ValueError on a wrong argument.
    """
    require_backend(backend, x)
    require_tensor("x", x, (None, None), dtypes=float_types() if backend == "triton" else None)
    num_tokens, hidden = x.shape
    like = {"dtypes": (x.dtype,), "device": x.device}
    require_tensor("router_weight", router_weight, (None, hidden), **like)
    num_experts = router_weight.shape[0]
    require_tensor("gate_up_weight", gate_up_weight, (num_experts, None, hidden), **like)
    even = gate_up_weight.shape[1] % 2 == 0
    require(even, f"gate_up_weight: {gate_up_weight.shape[1]} rows are no gate and up pair")
    intermediate = gate_up_weight.shape[1] // 2
    require_tensor("down_weight", down_weight, (num_experts, hidden, intermediate), **like)
    for name, bias, shape in (
        ("router_bias", router_bias, (num_experts,)),
        ("gate_up_bias", gate_up_bias, (num_experts, 2 * intermediate)),
        ("down_bias", down_bias, (num_experts, hidden)),
    ):
        if bias is not None:
            require_tensor(name, bias, shape, **like)
    allowed = min(16, num_experts)
    require(1 <= top_k <= allowed, f"top_k: must be 1 to {allowed}, got {top_k}")
    _check_rule(rule, x, num_experts, top_k)
    if backend != "triton":
        return moe_reference(
            x, router_weight, gate_up_weight, down_weight,
            top_k=top_k, renormalize=renormalize, rule=rule, activation=activation,
            router_bias=router_bias, gate_up_bias=gate_up_bias, down_bias=down_bias,
            fused=backend == "best",
        )  # fmt: skip
    for name, tensor in (("x", x), ("gate_up_weight", gate_up_weight), ("down", down_weight)):
        require_aligned_rows(name, tensor)
    y = torch.empty_like(x)
    if num_tokens == 0:
        return y
    on = gpu.gpu_of(x)
    logits = linear(x, router_weight, bias=router_bias)
    routing = route(logits, top_k, renormalize=renormalize, rule=rule)
    num_pairs = num_tokens * top_k
    gated = torch.empty((num_pairs, intermediate), dtype=x.dtype, device=x.device)
    results = torch.empty((num_pairs, hidden), dtype=x.dtype, device=x.device)
    for source, weight, bias, target, first in (
        (x, gate_up_weight, gate_up_bias, gated, True),
        (gated, down_weight, down_bias, results, False),
    ):
        tiles = choose_tiles(num_pairs, num_experts, on, gated=first)
        _grouped_linear(
            source, weight, target, routing,
            bias=bias, gated=first, activation=activation, tiles=tiles,
        )  # fmt: skip
    block = min(2048, triton.next_power_of_2(hidden))
    _combine_kernel[(num_tokens, triton.cdiv(hidden, block))](
        results, routing.weights, y, hidden, TOP_K=top_k, BLOCK=block, num_warps=4
    )
    return y


def route_reference(
    logits: torch.Tensor, top_k: int, *, renormalize: bool = True, rule: Rule = LIKELIEST
) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts and weights of each token in plain PyTorch: two [num_tokens, top_k] tensors."""
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    scores = torch.sigmoid(logits.to(wide)) if rule.sigmoid else logits.to(wide).softmax(dim=-1)
    keys = scores if rule.preference is None else scores + rule.preference.to(wide)
    if rule.groups > 1:
        grouped = keys.unflatten(-1, (rule.groups, -1))
        of_group = grouped.topk(2, dim=-1).values.sum(-1)
        best = torch.sort(of_group, dim=-1, descending=True, stable=True).indices
        kept = torch.zeros_like(of_group, dtype=torch.bool)
        kept.scatter_(-1, best[:, : rule.kept_groups], True)
        keys = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(1)
    order = torch.sort(keys, dim=-1, descending=True, stable=True).indices
    experts = order[:, :top_k]
    weights = scores.gather(-1, experts)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return experts, weights * rule.scale


def moe_reference(
    x: torch.Tensor,
    router_weight: torch.Tensor,
    gate_up_weight: torch.Tensor,
    down_weight: torch.Tensor,
    *,
    top_k: int,
    renormalize: bool = True,
    rule: Rule = LIKELIEST,
    activation: Activation = "silu",
    router_bias: torch.Tensor | None = None,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    fused: bool = False,
    routing: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The same in plain PyTorch, an expert at a time.

    Args:
        fused: multiply in the working dtype, with cuBLAS on a GPU.
        routing: experts and weights to use instead of computing them, [num_tokens, top_k] each.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if routing is None:
        logits = linear_reference(x, router_weight, router_bias)
        routing = route_reference(logits, top_k, renormalize=renormalize, rule=rule)
    experts, weights = routing
    total = torch.zeros(x.shape, dtype=wide, device=x.device)
    working = x.dtype if fused else wide
    for expert in range(router_weight.shape[0]):
        tokens, places = torch.nonzero(experts == expert, as_tuple=True)
        if len(tokens) == 0:
            continue

        def product(
            rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, at: int = expert
        ) -> torch.Tensor:
            added = None if bias is None else bias[at].to(working)
            return torch.nn.functional.linear(rows.to(working), weight[at].to(working), added)

        gate, up = product(x[tokens], gate_up_weight, gate_up_bias).chunk(2, -1)
        gated = gated_product_reference(gate, up, activation).to(x.dtype)
        out = product(gated, down_weight, down_bias)
        weighted = out.to(wide) * weights[tokens, places, None].to(wide)
        total.index_add_(0, tokens, weighted)
    return total.to(x.dtype)
