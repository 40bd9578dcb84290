"""Routed experts from measured mixtures: of this shape, or of the nearest at its utilisation.

Nearest is by the ratios of experts, chosen experts, hidden size, width on a rank and ranks that
share out experts, together. Utilisation is the roofline's time (every chosen expert's FLOPs, or the
weights of the experts that these tokens activate) over the measured time at as many tokens.

The package measures the rank that is sent most rows, under a distribution of tokens over experts.
With experts shared out (``moe_ep_size``), `num_tokens` are those of all ranks.

TensorRT-LLM's own kernels are in FlashInfer too, and the package timed them under engines that take
them from there. Of TensorRT-LLM itself it timed DeepGEMM's in scaled blocks on Blackwell, which
take up to twice as long. So where another engine ran TensorRT-LLM's kernels for the very mixture,
each point is the faster one's.
"""

from __future__ import annotations

from math import log

import numpy as np

from calibrate.profiles.kernel_tables import KernelTables, NotMeasured, System
from calibrate.profiles.precision import WEIGHT_BYTES
from sim.model.expert_routing import ExpertRouting
from sim.model.spec import MoeSpec

# A shape: experts, chosen by a token, hidden size, width, tensor-parallel and expert-parallel ranks
Shape = tuple[int, int, int, int, int, int]
SHARING = "trtllm"  # the engine whose kernels others take, and in whose names it is
FARTHEST = 2.5  # sum of the logarithms of ratios; beyond, a shape tells nothing of another


def experts_us(
    tables: KernelTables,
    moe: MoeSpec,
    hidden_size: int,
    *,
    dtypes: tuple[str, ...],
    tensor_parallel: int,
    expert_parallel: int,
    routing: str,
) -> tuple[list[tuple[int, float]], str | None]:
    """One layer's (tokens, µs), and of which shape, where it is not the asked one.

    In the first of these number formats that was measured; raises NotMeasured where nothing near
    was in any.
    """
    refusal: NotMeasured | None = None
    for dtype in dtypes:
        try:
            return _experts_us(
                tables,
                moe,
                hidden_size,
                dtype=dtype,
                tensor_parallel=tensor_parallel,
                expert_parallel=expert_parallel,
                routing=routing,
            )
        except NotMeasured as error:
            refusal = error
    assert refusal is not None
    raise refusal


def _experts_us(
    tables: KernelTables,
    moe: MoeSpec,
    hidden_size: int,
    *,
    dtype: str,
    tensor_parallel: int,
    expert_parallel: int,
    routing: str,
) -> tuple[list[tuple[int, float]], str | None]:
    asked = (
        moe.num_experts,
        moe.experts_per_token,
        hidden_size,
        moe.intermediate_size,
        tensor_parallel,
        expert_parallel,
    )
    shapes = _shapes(tables, dtype, routing)
    if asked in shapes:
        return _with_shared(tables, asked, sorted(shapes[asked]), dtype=dtype, routing=routing)
    near = min(shapes, key=lambda shape: (_distance(shape, asked), shape))
    if _distance(near, asked) > FARTHEST:
        raise NotMeasured(
            f"{tables.system.name}, {tables.backend}: no mixture near {_words(asked)} in {dtype}; "
            f"the nearest is {_words(near)}"
        )
    scaled = [
        (
            tokens,
            time_us
            * _ideal_us(tables.system, asked, tokens, dtype)
            / _ideal_us(tables.system, near, tokens, dtype),
        )
        for tokens, time_us in sorted(shapes[near])
    ]
    return scaled, f"at the utilisation of {_words(near)}"


def _shapes(
    tables: KernelTables, dtype: str, routing: str, **wanted: object
) -> dict[Shape, list[tuple[int, float]]]:
    """(tokens, µs) of every mixture that was measured in this number format."""
    points = tables.points(
        "moe",
        "moe_perf",
        "num_experts",
        "topk",
        "hidden_size",
        "inter_size",
        "moe_tp_size",
        "moe_ep_size",
        "num_tokens",
        moe_dtype=dtype,
        distribution=routing,
        **wanted,
    )
    shapes: dict[Shape, list[tuple[int, float]]] = {}
    for (*key, tokens), time_us in points.items():
        shape: Shape = tuple(key)  # type: ignore[assignment]
        shapes.setdefault(shape, []).append((tokens, time_us))
    return shapes


def _with_shared(
    tables: KernelTables, asked: Shape, own: list[tuple[int, float]], *, dtype: str, routing: str
) -> tuple[list[tuple[int, float]], str | None]:
    """Each point at the faster of the engine's own kernels and those that it shares with others."""
    if tables.backend != SHARING:
        return own, None
    for other in tables.elsewhere():
        try:
            shared = _shapes(other, dtype, routing, kernel_source=lambda name: SHARING in name)
        except NotMeasured:
            continue
        times_us = dict(shared.get(asked, ()))
        if any(times_us.get(tokens, time_us) < time_us for tokens, time_us in own):
            faster = [
                (tokens, min(time_us, times_us.get(tokens, time_us))) for tokens, time_us in own
            ]
            return faster, f"its kernels as {other.backend} {other.version} ran them, where faster"
    return own, None


def _distance(shape: Shape, asked: Shape) -> float:
    """How unlike two shapes are: the width on a rank counts, not how it came about."""
    return sum(abs(log(a / b)) for a, b in zip(_on_rank(shape), _on_rank(asked), strict=True))


def _on_rank(shape: Shape) -> tuple[float, ...]:
    experts, chosen, hidden, width, tensor, spread = shape
    return experts, chosen, hidden, width / tensor, spread


def _ideal_us(system: System, shape: Shape, tokens: int, dtype: str) -> float:
    """The roofline's time of one rank's share of gate, up and down products."""
    experts, chosen, hidden, width, tensor, spread = shape
    values = 3 * hidden * width / tensor  # of one expert on one rank
    activated = float(ExpertRouting.uniform(experts, chosen).activated(np.array([tokens]))[0])
    moved_s = values * WEIGHT_BYTES[dtype] * activated / spread / system.bytes_per_s
    compute_s = 2 * values * tokens * chosen / spread / system.flops_per_s(dtype)
    return max(moved_s, compute_s) * 1e6


def _words(shape: Shape) -> str:
    experts, chosen, hidden, width, tensor, spread = shape
    split = f", 1/{tensor} of each" if tensor > 1 else ""
    split += f", {spread} ranks" if spread > 1 else ""
    return f"{experts} experts of {hidden} x {width}, {chosen} a token{split}"
