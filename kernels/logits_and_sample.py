"""Vocabulary projection and sampling:  l = h Wᵀ,  p = softmax(l / T),  token ~ p restricted.

Restricted means: a token i stays if fewer than top_k tokens are strictly likelier and their
probability together is below top_p, both counted on the whole distribution; tokens tied at the
boundary stay together. Both tests depend on l_i alone and grow harder as it falls, so the tokens
that stay are those with l_i ≥ t for one threshold t, which is found exactly, without sorting, by
a binary search over the bit pattern of a float (whose order, sign handled, is that of the numbers).
The token is then the first, in vocabulary order, where the kept mass passes u times its total
(inverse transform), so the result is a function of the given uniform number u. Temperature 0 is the
first largest logit.

A row's logits are read once, by several programs: each holds a part of the vocabulary in registers
and leaves its largest logit, its mass, and its likeliest tokens (CANDIDATES at most, all that
exceed a cutoff). A second program merges the parts. If more tokens than stay exceed every cutoff,
the candidates are all that matter, and threshold and token are found among them; where a flat
distribution keeps more, the merging program goes through the row, pass after pass. A row that
holds a NaN, or whose largest logit is not finite, is told.
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
def _largest_and_first(logit, columns):
    """The largest number of a block and the first column that holds it; a NaN is none."""
    numbers = tl.where(logit == logit, logit, float("-inf"))
    largest = tl.max(numbers, 0)
    return largest, tl.min(tl.where(numbers == largest, columns, 2147483647), 0)


@triton.jit
def _mass(logit, maximum, scale_log2):
    """Weights relative to the row's largest logit."""
    return tl.math.exp2((logit - maximum) * scale_log2)


@triton.jit(do_not_specialize_on_alignment=["temperature_ptr"])
def _sample_parts_kernel(
    logits_ptr,  # [num_rows, vocab_size]
    temperature_ptr,  # [num_rows] float32 where DRAWN
    largest_ptr,  # [num_rows, PARTS] float32; NaN where the part holds one
    first_ptr,  # [num_rows, PARTS] int32
    mass_ptr,  # [num_rows, PARTS] float32, relative to the part's largest
    cutoff_ptr,  # [num_rows, PARTS] int32: ordered bits that candidates exceed
    values_ptr,  # [num_rows, PARTS, CANDIDATES] float32
    columns_ptr,  # [num_rows, PARTS, CANDIDATES] int32, −1 where there are fewer
    vocab_size,
    PARTS: tl.constexpr,
    DRAWN: tl.constexpr,
    CANDIDATES: tl.constexpr,  # a part; 0 where no row is restricted
    BITS: tl.constexpr,  # leading bits in which two logits can differ: 16 for bf16
    PART: tl.constexpr,
):
    SHIFT: tl.constexpr = 32 - BITS
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    columns = part * PART + tl.arange(0, PART)
    inside = columns < vocab_size
    row_ptr = logits_ptr + row * vocab_size
    logit = tl.load(row_ptr + columns, mask=inside, other=float("-inf")).to(tl.float32)
    largest, first = _largest_and_first(logit, columns)
    unknown = tl.max((logit != logit).to(tl.int32), 0) > 0
    at = row * PARTS + part
    tl.store(largest_ptr + at, tl.where(unknown, float("nan"), largest))
    tl.store(first_ptr + at, first)
    if DRAWN:
        temperature = tl.load(temperature_ptr + row)
        heat = tl.where(temperature > 0.0, temperature, 1.0)
        base = tl.where(largest == float("-inf"), 0.0, largest)
        weights = _mass(logit, base, 1.4426950408889634 / heat)
        tl.store(mass_ptr + at, tl.sum(tl.where(inside, weights, 0.0), 0))
    if CANDIDATES > 0:
        # The lowest cutoff that at most CANDIDATES exceed; half as many will do.
        bits = tl.where(inside, _ordered_bits(logit) >> SHIFT, -2147483648 >> SHIFT)
        low = tl.full([], (-2147483648 >> SHIFT) - 1, tl.int64)  # too many exceed it, or all
        high = tl.max(bits, 0).to(tl.int64)
        above = 0
        while (high - low > 1) & (above * 2 < CANDIDATES):
            middle = low + (high - low) // 2
            count = tl.sum((bits > middle.to(tl.int32)).to(tl.int32), 0)
            fits = count <= CANDIDATES
            high = tl.where(fits, middle, high)
            low = tl.where(fits, low, middle)
            above = tl.where(fits, count, above)
        kept = bits > high.to(tl.int32)
        place = tl.cumsum(kept.to(tl.int32), 0) - 1
        places = at * CANDIDATES + place
        tl.store(cutoff_ptr + at, high.to(tl.int32))
        tl.store(values_ptr + places, logit, mask=kept)
        tl.store(columns_ptr + places, columns, mask=kept)
        rest = tl.arange(0, CANDIDATES)
        unused = rest >= tl.sum(kept.to(tl.int32), 0)
        tl.store(columns_ptr + at * CANDIDATES + rest, -1, mask=unused)


@triton.jit
def _first_passed(weights, columns, before, target):
    """The first column where the running mass passes the target, else the last with a mass."""
    running = before + tl.cumsum(weights, 0)
    passed = (running > target) & (weights > 0.0)
    first = tl.min(tl.where(passed, columns, 2147483647), 0)
    last = tl.max(tl.where(weights > 0.0, columns, -1), 0)
    return tl.where(first < 2147483647, first, last)


@triton.jit
def _kept_of_row(
    row_ptr, start, vocab_size, maximum, scale_log2, threshold,
    SHIFT: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Ordered bits, columns and kept masses of one part of a row."""
    columns = start + tl.arange(0, PART)
    inside = columns < vocab_size
    logit = tl.load(row_ptr + columns, mask=inside, other=float("-inf")).to(tl.float32)
    bits = _ordered_bits(logit) >> SHIFT
    weights = tl.where(inside & (bits >= threshold), _mass(logit, maximum, scale_log2), 0.0)
    return bits, columns, weights


@triton.jit(
    do_not_specialize_on_alignment=["temperature_ptr", "top_k_ptr", "top_p_ptr", "uniform_ptr"],
)
def _sample_kernel(
    logits_ptr,  # [num_rows, vocab_size]
    temperature_ptr,  # [num_rows] float32
    top_k_ptr,  # [num_rows]
    top_p_ptr,  # [num_rows] float32
    uniform_ptr,  # [num_rows] float32
    largest_ptr,  # these as the parts left them
    first_ptr,
    mass_ptr,
    cutoff_ptr,
    values_ptr,
    columns_ptr,
    tokens_ptr,  # [num_rows] int64
    finite_ptr,  # [num_rows] bool
    vocab_size,
    PARTS: tl.constexpr,
    DRAWN: tl.constexpr,
    CANDIDATES: tl.constexpr,
    BITS: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    SHIFT: tl.constexpr = 32 - BITS
    row = tl.program_id(0).to(tl.int64)
    parts = tl.arange(0, BLOCK_PARTS)
    known = parts < PARTS
    largest = tl.load(largest_ptr + row * PARTS + parts, mask=known, other=float("-inf"))
    firsts = tl.load(first_ptr + row * PARTS + parts, mask=known, other=2147483647)
    unknown = tl.max((largest != largest).to(tl.int32), 0) > 0
    maximum, _ = _largest_and_first(largest, parts)
    token = tl.min(tl.where(largest == maximum, firsts, 2147483647), 0)
    token = tl.where(token < vocab_size, token, 0)  # of a row without a number
    finite = (unknown == 0) & (tl.abs(maximum) < float("inf"))
    tl.store(finite_ptr + row, finite)
    if not DRAWN:
        tl.store(tokens_ptr + row, token.to(tl.int64))
    else:
        temperature = tl.load(temperature_ptr + row)
        if (temperature > 0.0) & finite:
            row_ptr = logits_ptr + row * vocab_size
            scale_log2 = 1.4426950408889634 / temperature
            uniform = tl.load(uniform_ptr + row)
            masses = tl.load(mass_ptr + row * PARTS + parts, mask=known, other=0.0)
            masses = masses * _mass(largest, maximum, scale_log2)
            total = tl.sum(masses, 0)
            lowest = tl.full([], -2147483648 >> SHIFT, tl.int64)
            threshold = lowest.to(tl.int32)
            among_candidates = False
            if CANDIDATES > 0:
                top_k = tl.load(top_k_ptr + row).to(tl.int32)
                top_p = tl.load(top_p_ptr + row)
                limit = top_p * total
                restricted = (top_k < vocab_size) | (top_p < 1.0)
                SLOTS: tl.constexpr = BLOCK_PARTS * CANDIDATES
                slots = tl.arange(0, SLOTS)
                offsets = row * (PARTS * CANDIDATES) + slots
                exists = slots < PARTS * CANDIDATES
                columns = tl.load(columns_ptr + offsets, mask=exists, other=-1)
                exists = columns >= 0
                values = tl.load(values_ptr + offsets, mask=exists, other=float("-inf"))
                bits = _ordered_bits(values) >> SHIFT
                weights = tl.where(exists, _mass(values, maximum, scale_log2), 0.0)
                cutoffs = tl.load(cutoff_ptr + row * PARTS + parts, mask=known, other=-2147483648)
                cutoff = tl.max(cutoffs, 0)
                above = exists & (bits > cutoff)
                count = tl.sum(above.to(tl.int32), 0)
                mass = tl.sum(tl.where(above, weights, 0.0), 0)
                # A threshold is allowed when the tokens above it are few and light enough. The
                # maximum's bits are; where the cutoff is not, all tokens that stay are candidates.
                among_candidates = restricted & ((count >= top_k) | (mass >= limit))
                low = tl.where(among_candidates, cutoff.to(tl.int64), lowest - 1)
                high = (_ordered_bits(maximum) >> SHIFT).to(tl.int64)
                high = tl.where(among_candidates, high, tl.minimum(high, cutoff.to(tl.int64)))
                high = tl.where(restricted, high, low + 1)
                while high - low > 1:
                    middle = low + (high - low) // 2
                    bound = middle.to(tl.int32)
                    if among_candidates:
                        above = exists & (bits > bound)
                        count = tl.sum(above.to(tl.int32), 0)
                        mass = tl.sum(tl.where(above, weights, 0.0), 0)
                    else:
                        count, mass = 0, 0.0
                        for start in tl.range(0, vocab_size, PART):
                            row_bits, row_columns, heavier = _kept_of_row(
                                row_ptr, start, vocab_size, maximum, scale_log2, bound + 1,
                                SHIFT, PART,
                            )  # fmt: skip
                            stays = (row_columns < vocab_size) & (row_bits > bound)
                            count += tl.sum(stays.to(tl.int32), 0)
                            mass += tl.sum(heavier, 0)
                    allowed = (count < top_k) & (mass < limit)
                    high = tl.where(allowed, middle, high)
                    low = tl.where(allowed, low, middle)
                threshold = high.to(tl.int32)
                if among_candidates:
                    kept = tl.where(exists & (bits >= threshold), weights, 0.0)
                    token = _first_passed(kept, columns, 0.0, uniform * tl.sum(kept, 0))
            if among_candidates == 0:
                # The part where the running mass passes the target, then the token within it.
                if threshold > lowest.to(tl.int32):
                    total = 0.0
                    for start in tl.range(0, vocab_size, PART):
                        _bits, _columns, in_part = _kept_of_row(
                            row_ptr, start, vocab_size, maximum, scale_log2, threshold, SHIFT, PART
                        )
                        masses = tl.where(parts == start // PART, tl.sum(in_part, 0), masses)
                        total += tl.sum(in_part, 0)
                target = uniform * total
                running = tl.cumsum(masses, 0)
                passed = (running > target) & (masses > 0.0)
                chosen = tl.min(tl.where(passed, parts, BLOCK_PARTS), 0)
                last = tl.max(tl.where(masses > 0.0, parts, -1), 0)
                chosen = tl.where(chosen < BLOCK_PARTS, chosen, last)
                before = tl.sum(tl.where(parts < chosen, masses, 0.0), 0)
                _of_part, part_columns, part_masses = _kept_of_row(
                    row_ptr, chosen * PART, vocab_size, maximum, scale_log2, threshold, SHIFT, PART
                )
                token = _first_passed(part_masses, part_columns, before, target)
        tl.store(tokens_ptr + row, token.to(tl.int64))


CANDIDATES = 64  # a part, where a row is restricted


def choose_part(vocab_size: int) -> int:
    """Columns that one program holds: 4096, or more where that would be too many parts to merge.

    4096 are 32 a thread at four warps, and 32 parts of a vocabulary of 128 Ki: enough programs for
    one row, and 2,048 candidates, which the merging program holds in registers.
    """
    part: int = min(4096, max(64, triton.next_power_of_2(vocab_size)))
    while triton.cdiv(vocab_size, part) > 128:
        part *= 2
    return part


def sample(
    logits: torch.Tensor,
    *,
    temperature: torch.Tensor | None = None,
    top_k: torch.Tensor | None = None,
    top_p: torch.Tensor | None = None,
    uniform: torch.Tensor | None = None,
    backend: Backend = "triton",
) -> torch.Tensor:
    """One token a row, as ``sample_checked`` gives it."""
    return sample_checked(
        logits, temperature=temperature, top_k=top_k, top_p=top_p, uniform=uniform, backend=backend
    )[0]


def sample_checked(
    logits: torch.Tensor,
    *,
    temperature: torch.Tensor | None = None,
    top_k: torch.Tensor | None = None,
    top_p: torch.Tensor | None = None,
    uniform: torch.Tensor | None = None,
    backend: Backend = "triton",
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row, and whether its logits were numbers.

    Nothing synchronises, and shapes alone decide what is launched: it may be captured in a graph.

    Args:
        logits: [num_rows, vocab_size], bf16, fp16 or fp32, contiguous.
        temperature: [num_rows] float32; 0 takes the largest logit. None: 0 for every row.
        top_k: [num_rows] int32/int64, at least 1; None or vocab_size for no limit.
        top_p: [num_rows] float32 in (0, 1]; None or 1 for no limit.
        uniform: [num_rows] float32 in [0, 1), the randomness; needed with ``temperature``.
        backend: ``best`` sorts with torch, as the reference does.

    Returns: [num_rows] int64 tokens and [num_rows] bool: no logit is a NaN and the largest is
    finite; the token of a row where that does not hold is some token of the vocabulary.
    Raises: ValueError on a wrong argument, before any launch.
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
    drawn, limited = temperature is not None, top_k is not None or top_p is not None
    if not drawn:
        unused = not limited and uniform is None
        require(unused, "temperature: needed with top_k, top_p or uniform")
    else:
        require(uniform is not None, "uniform: needed with temperature")
    if backend != "triton":
        tokens = sample_reference(
            logits, temperature=temperature, top_k=top_k, top_p=top_p, uniform=uniform
        )
        return tokens, logits.amax(dim=-1).isfinite()  # a NaN is the largest
    tokens = torch.empty((num_rows,), dtype=torch.int64, device=device)
    finite = torch.empty((num_rows,), dtype=torch.bool, device=device)
    if num_rows == 0:
        return tokens, finite
    part = choose_part(vocab_size)
    parts = triton.cdiv(vocab_size, part)
    candidates = CANDIDATES if limited else 0
    if limited and top_k is None:
        top_k = torch.full((num_rows,), vocab_size, dtype=torch.int32, device=device)
    if limited and top_p is None:
        top_p = torch.ones((num_rows,), dtype=torch.float32, device=device)
    real_parts = torch.empty((2, num_rows, parts), dtype=torch.float32, device=device)
    whole_parts = torch.empty((2, num_rows, parts), dtype=torch.int32, device=device)
    shape = (num_rows, parts, max(candidates, 1))
    left = (
        real_parts[0],
        whole_parts[0],
        real_parts[1],
        whole_parts[1],
        torch.empty(shape, dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.int32, device=device),
    )
    options = {
        "PARTS": parts,
        "DRAWN": drawn,
        "CANDIDATES": candidates,
        "BITS": 16 if logits.dtype == torch.bfloat16 else 32,
        "PART": part,
    }
    _sample_parts_kernel[(num_rows, parts)](
        logits,
        temperature if drawn else tokens,
        *left,
        vocab_size,
        **options,
        num_warps=4 if part <= 4096 else 8,
    )
    _sample_kernel[(num_rows,)](
        logits,
        temperature if drawn else tokens,
        top_k if limited else tokens,
        top_p if limited else tokens,
        uniform if drawn else tokens,
        *left,
        tokens,
        finite,
        vocab_size,
        **options,
        BLOCK_PARTS=triton.next_power_of_2(parts),
        # With fewer warps ptxas spills a few bytes on sm_100, at a quarter of its registers.
        num_warps=16 if limited else 4,
    )
    return tokens, finite


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
