"""Vocabulary projection and sampling:  l = h Wᵀ,  p = softmax(l / T),  token ~ p restricted.

Restricted means: a token i stays if fewer than top_k tokens are strictly likelier and their
probability together is below top_p, both counted on the whole distribution; tokens tied at the
boundary stay together. Both tests depend on l_i alone and grow harder as it falls, so the tokens
that stay are those with l_i ≥ t for one threshold t. The kernel finds t exactly, without sorting,
by a four-way search over the bit pattern of a float (whose order, sign handled, is the order of the
numbers): each pass over the row counts tokens and mass above three candidates. The token is then
the first, in vocabulary order, where the kept mass passes u times its total (inverse transform), so
the result is a function of the given uniform number u. Temperature 0 is the first largest logit.
"""

# Jitted functions are typed by Triton when they are compiled.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.checks import (
    INDEX_TYPES,
    Backend,
    float_types,
    require,
    require_backend,
    require_tensor,
)
from kernels.linear import linear


@triton.jit
def _ordered_bits(x):
    """An int32 that orders as the float32 does; −0 counts as 0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 2147483647, bits)


@triton.jit
def _row_maximum(row_ptr, vocab_size, BLOCK: tl.constexpr):
    """The largest logit of a row and the first column that holds it."""
    lanes = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    largest_at = tl.zeros([BLOCK], tl.int32)
    for start in tl.range(0, vocab_size, BLOCK):
        columns = start + lanes
        logit = tl.load(row_ptr + columns, mask=columns < vocab_size, other=float("-inf"))
        logit = logit.to(tl.float32)
        larger = logit > largest
        largest = tl.where(larger, logit, largest)
        largest_at = tl.where(larger, columns, largest_at)
    maximum = tl.max(largest, 0)
    return maximum, tl.min(tl.where(largest == maximum, largest_at, 2147483647), 0)


@triton.jit
def _greedy_kernel(
    logits_ptr,  # [num_rows, vocab_size]
    tokens_ptr,  # [num_rows] int64
    vocab_size,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    _, first_largest = _row_maximum(logits_ptr + row * vocab_size, vocab_size, BLOCK)
    tl.store(tokens_ptr + row, first_largest.to(tl.int64))


@triton.jit(
    do_not_specialize_on_alignment=["temperature_ptr", "top_k_ptr", "top_p_ptr", "uniform_ptr"],
)
def _sample_kernel(
    logits_ptr,  # [num_rows, vocab_size]
    temperature_ptr,  # [num_rows] float32
    top_k_ptr,  # [num_rows]
    top_p_ptr,  # [num_rows] float32
    uniform_ptr,  # [num_rows] float32
    tokens_ptr,  # [num_rows] int64
    vocab_size,
    BITS: tl.constexpr,  # leading bits in which two logits can differ: 16 for bf16
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * vocab_size
    lanes = tl.arange(0, BLOCK)
    maximum, first_largest = _row_maximum(row_ptr, vocab_size, BLOCK)
    temperature = tl.load(temperature_ptr + row)
    if temperature <= 0.0:
        tl.store(tokens_ptr + row, first_largest.to(tl.int64))
        return

    scale_log2 = 1.4426950408889634 / temperature
    top_k = tl.load(top_k_ptr + row).to(tl.int32)
    top_p = tl.load(top_p_ptr + row)
    limited = (top_k < vocab_size) | (top_p < 1.0)
    # The tokens that stay are those whose ordered bits are at least `threshold`.
    SHIFT: tl.constexpr = 32 - BITS
    threshold = tl.full([], -2147483648, tl.int32)
    if limited:
        total = 0.0
        for start in tl.range(0, vocab_size, BLOCK):
            columns = start + lanes
            inside = columns < vocab_size
            logit = tl.load(row_ptr + columns, mask=inside, other=float("-inf")).to(tl.float32)
            total += tl.sum(tl.math.exp2((logit - maximum) * scale_log2), 0)
        mass_limit = top_p * total
        # A threshold t is allowed when the tokens above it are few and light enough. `high`, the
        # maximum's bits, is allowed; `low` is not, or lies below every number's bits.
        low = tl.full([], -2147483648 >> SHIFT, tl.int64)
        high = (_ordered_bits(maximum) >> SHIFT).to(tl.int64)
        while high - low > 1:
            span = high - low
            t1 = low + tl.maximum(span // 4, 1)
            t2 = low + tl.maximum(span // 2, 1)
            t3 = low + tl.maximum(span - span // 4, 1)
            i1, i2, i3 = t1.to(tl.int32), t2.to(tl.int32), t3.to(tl.int32)
            count_1, count_2, count_3 = 0, 0, 0
            mass_1, mass_2, mass_3 = 0.0, 0.0, 0.0
            for start in tl.range(0, vocab_size, BLOCK):
                columns = start + lanes
                inside = columns < vocab_size
                logit = tl.load(row_ptr + columns, mask=inside, other=float("-inf"))
                logit = logit.to(tl.float32)
                bits = _ordered_bits(logit) >> SHIFT
                weight = tl.math.exp2((logit - maximum) * scale_log2)
                above_1, above_2, above_3 = bits > i1, bits > i2, bits > i3
                count_1 += tl.sum(above_1.to(tl.int32), 0)
                count_2 += tl.sum(above_2.to(tl.int32), 0)
                count_3 += tl.sum(above_3.to(tl.int32), 0)
                mass_1 += tl.sum(tl.where(above_1, weight, 0.0), 0)
                mass_2 += tl.sum(tl.where(above_2, weight, 0.0), 0)
                mass_3 += tl.sum(tl.where(above_3, weight, 0.0), 0)
            allowed_1 = (count_1 < top_k) & (mass_1 < mass_limit)
            allowed_2 = (count_2 < top_k) & (mass_2 < mass_limit)
            allowed_3 = (count_3 < top_k) & (mass_3 < mass_limit)
            new_high = tl.where(allowed_2, t2, tl.where(allowed_3, t3, high))
            new_high = tl.where(allowed_1, t1, new_high)
            new_low = tl.where(allowed_2, t1, tl.where(allowed_3, t2, t3))
            low = tl.where(allowed_1, low, new_low)
            high = tl.minimum(new_high, high)
        threshold = high.to(tl.int32)

    kept_total = 0.0
    for start in tl.range(0, vocab_size, BLOCK):
        columns = start + lanes
        logit = tl.load(row_ptr + columns, mask=columns < vocab_size, other=float("-inf"))
        logit = logit.to(tl.float32)
        kept = (_ordered_bits(logit) >> SHIFT) >= threshold
        weight = tl.math.exp2((logit - maximum) * scale_log2)
        kept_total += tl.sum(tl.where(kept, weight, 0.0), 0)
    target = tl.load(uniform_ptr + row) * kept_total

    # Find the block where the running mass passes the target, then the token within it.
    before = 0.0
    chosen_start, chosen_before = -1, 0.0
    for start in tl.range(0, vocab_size, BLOCK):
        columns = start + lanes
        logit = tl.load(row_ptr + columns, mask=columns < vocab_size, other=float("-inf"))
        logit = logit.to(tl.float32)
        kept = (_ordered_bits(logit) >> SHIFT) >= threshold
        weight = tl.math.exp2((logit - maximum) * scale_log2)
        after = before + tl.sum(tl.where(kept, weight, 0.0), 0)
        here = (after > target) & (chosen_start < 0)
        chosen_before = tl.where(here, before, chosen_before)
        chosen_start = tl.where(here, start, chosen_start)
        before = after
    token = first_largest  # where rounding lets no block pass the target
    if chosen_start >= 0:
        columns = chosen_start + lanes
        logit = tl.load(row_ptr + columns, mask=columns < vocab_size, other=float("-inf"))
        logit = logit.to(tl.float32)
        kept = (_ordered_bits(logit) >> SHIFT) >= threshold
        weight = tl.where(kept, tl.math.exp2((logit - maximum) * scale_log2), 0.0)
        running = chosen_before + tl.cumsum(weight, 0)
        passed = (running > target) & (weight > 0.0)
        first_passed = tl.min(tl.where(passed, columns, 2147483647), 0)
        last_kept = tl.max(tl.where(weight > 0.0, columns, -1), 0)
        token = tl.where(first_passed < 2147483647, first_passed, last_kept)
    tl.store(tokens_ptr + row, token.to(tl.int64))


def sample(
    logits: torch.Tensor,
    *,
    temperature: torch.Tensor | None = None,
    top_k: torch.Tensor | None = None,
    top_p: torch.Tensor | None = None,
    uniform: torch.Tensor | None = None,
    backend: Backend = "triton",
) -> torch.Tensor:
    """One token a row.

    Args:
        logits: [num_rows, vocab_size], bf16, fp16 or fp32, contiguous; no NaN.
        temperature: [num_rows] float32; 0 takes the largest logit. None: 0 for every row.
        top_k: [num_rows] int32/int64, at least 1; None or vocab_size for no limit.
        top_p: [num_rows] float32 in (0, 1]; None or 1 for no limit.
        uniform: [num_rows] float32 in [0, 1), the randomness; needed with ``temperature``.
        backend: ``best`` sorts with torch, as the reference does.

    Returns: [num_rows] int64. Raises: ValueError on a wrong argument, before any launch.
    """
    require_backend(backend, logits)
    dtypes = (*float_types(), torch.float32) if backend == "triton" else None
    require_tensor("logits", logits, (None, None), dtypes=dtypes)
    num_rows, vocab_size = logits.shape
    require(0 < vocab_size < 2**30, f"logits: vocabulary of 1 to 2**30, got {vocab_size}")
    device, real = logits.device, (torch.float32,)
    for name, tensor, allowed in (
        ("temperature", temperature, real),
        ("top_k", top_k, INDEX_TYPES),
        ("top_p", top_p, real),
        ("uniform", uniform, real),
    ):
        if tensor is not None:
            require_tensor(name, tensor, (num_rows,), dtypes=allowed, device=device)
    if temperature is None:
        unused = top_k is None and top_p is None and uniform is None
        require(unused, "temperature: needed with top_k, top_p or uniform")
    else:
        require(uniform is not None, "uniform: needed with temperature")
    if backend != "triton":
        return sample_reference(
            logits, temperature=temperature, top_k=top_k, top_p=top_p, uniform=uniform
        )
    tokens = torch.empty((num_rows,), dtype=torch.int64, device=device)
    if num_rows == 0:
        return tokens
    # One program a row: the row (256 KiB at 128k bf16 logits) stays in L2 between passes.
    block = min(4096, triton.next_power_of_2(vocab_size))
    num_warps = max(4, min(16, block // 256))
    if temperature is None:
        _greedy_kernel[(num_rows,)](logits, tokens, vocab_size, BLOCK=block, num_warps=num_warps)
        return tokens
    if top_k is None:
        top_k = torch.full((num_rows,), vocab_size, dtype=torch.int32, device=device)
    if top_p is None:
        top_p = torch.ones((num_rows,), dtype=torch.float32, device=device)
    _sample_kernel[(num_rows,)](
        logits,
        temperature,
        top_k,
        top_p,
        uniform,
        tokens,
        vocab_size,
        BITS=16 if logits.dtype == torch.bfloat16 else 32,
        BLOCK=block,
        num_warps=num_warps,
    )
    return tokens


def logits_and_sample(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    *,
    temperature: torch.Tensor | None = None,
    top_k: torch.Tensor | None = None,
    top_p: torch.Tensor | None = None,
    uniform: torch.Tensor | None = None,
    backend: Backend = "triton",
    projection_backend: Backend | None = None,
) -> torch.Tensor:
    """Project the emitting sequences' last hidden states and sample a token for each.

    Args:
        hidden: [num_rows, hidden], bf16 or fp16, contiguous, after the final norm.
        weight: [vocab_size, hidden], same dtype.
        temperature, top_k, top_p, uniform, backend: as for ``sample``.
        projection_backend: of the product, for example from ``fastest_backend``.

    Returns: [num_rows] int64. Raises: ValueError on a wrong argument.
    """
    logits = linear(hidden, weight, backend=projection_backend or backend)
    return sample(
        logits,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        uniform=uniform,
        backend=backend,
    )


def restricted_probabilities(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor | None = None,
    top_p: torch.Tensor | None = None,
) -> torch.Tensor:
    """The distribution that ``sample`` draws from, by sorting: [num_rows, vocab_size] float64."""
    wide = logits.double()
    rows, vocab_size = wide.shape
    greedy = temperature <= 0
    heat = torch.where(greedy, 1.0, temperature.double())[:, None]
    weights = torch.exp((wide - wide.amax(dim=-1, keepdim=True)) / heat)
    ordered, order = torch.sort(wide, dim=-1, descending=True, stable=True)
    in_order = weights.gather(1, order)
    mass_before = in_order.cumsum(-1) - in_order
    rank = torch.arange(vocab_size, device=wide.device).expand(rows, -1)
    # Ties count as the first of their kind.
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    fresh[:, 1:] = ordered[:, 1:] < ordered[:, :-1]
    first = torch.where(fresh, rank, 0).cummax(-1).values
    kept = torch.ones_like(fresh)
    if top_k is not None:
        kept &= first < top_k.long()[:, None]
    if top_p is not None:
        limit = top_p.double()[:, None] * in_order.sum(-1, keepdim=True)
        kept &= (mass_before.gather(1, first) < limit) | (first == 0)
    kept_weights = torch.where(kept, in_order, 0.0)
    result = torch.zeros_like(weights).scatter_(1, order, kept_weights)
    only_largest = torch.zeros_like(weights).scatter_(1, wide.argmax(-1, keepdim=True), 1.0)
    result = torch.where(greedy[:, None], only_largest, result)
    return result / result.sum(-1, keepdim=True)


def sample_reference(
    logits: torch.Tensor,
    *,
    temperature: torch.Tensor | None = None,
    top_k: torch.Tensor | None = None,
    top_p: torch.Tensor | None = None,
    uniform: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same in plain PyTorch, in float64."""
    if temperature is None or uniform is None:
        return logits.argmax(dim=-1)
    probabilities = restricted_probabilities(logits, temperature, top_k, top_p)
    running = probabilities.cumsum(-1)
    target = uniform.double()[:, None] * running[:, -1:]
    passed = (running > target) & (probabilities > 0)
    return torch.where(passed.any(-1), passed.int().argmax(-1), logits.argmax(-1))
