"""Length distributions: how many tokens each of n prompts or outputs has, int64, at least 1."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim.workload.workload import whole_number

LONGEST_TOKENS = 2**31 - 1  # no length beyond this; keeps a lognormal tail within int64


def fixed(num_requests: int, tokens: int) -> NDArray[np.int64]:
    """The same length for every request."""
    return np.full(whole_number("num_requests", num_requests), _tokens("tokens", tokens))


def uniform(
    rng: np.random.Generator, num_requests: int, *, min_tokens: int, max_tokens: int
) -> NDArray[np.int64]:
    """Every length from min_tokens to max_tokens, both included, equally likely."""
    n = whole_number("num_requests", num_requests)
    min_tokens, max_tokens = _bounds(min_tokens, max_tokens)
    return rng.integers(min_tokens, max_tokens, n, endpoint=True)


def lognormal(
    rng: np.random.Generator,
    num_requests: int,
    *,
    sigma: float,
    mean_tokens: float | None = None,
    median_tokens: float | None = None,
    min_tokens: int = 1,
    max_tokens: int | None = None,
) -> NDArray[np.int64]:
    """exp(Normal(mu, sigma)), rounded to whole tokens, then clipped to [min_tokens, max_tokens].

    Give either mean_tokens (mu = ln(mean) - sigma^2 / 2) or median_tokens (mu = ln(median)). They
    describe the distribution before rounding and clipping: what is clipped piles up at the bounds
    (nothing is drawn again), so a tight max_tokens lowers the mean of the lengths returned.
    """
    n = whole_number("num_requests", num_requests)
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma is {sigma}, expected a finite number of at least 0")
    if (mean_tokens is None) == (median_tokens is None):
        given = "neither" if mean_tokens is None else "both"
        raise ValueError(f"{given} of mean_tokens and median_tokens given, expected one of them")
    name = "mean_tokens" if mean_tokens is not None else "median_tokens"
    centre = mean_tokens if mean_tokens is not None else median_tokens
    assert centre is not None
    if not 0 < centre <= LONGEST_TOKENS:
        raise ValueError(f"{name} is {centre}, expected a number above 0, at most {LONGEST_TOKENS}")
    min_tokens, max_tokens = _bounds(
        min_tokens, LONGEST_TOKENS if max_tokens is None else max_tokens
    )
    mu = math.log(centre) - (sigma * sigma / 2 if mean_tokens is not None else 0.0)
    with np.errstate(over="ignore"):  # a huge sigma reaches inf, which the clipping brings back
        lengths = rng.lognormal(mu, sigma, n)
    return np.clip(np.rint(lengths), min_tokens, max_tokens).astype(np.int64)


def empirical(rng: np.random.Generator, num_requests: int, values: ArrayLike) -> NDArray[np.int64]:
    """Lengths drawn with replacement from `values`.

    `values` may be any column of whole numbers, e.g. `read_trace(path).prompt_tokens` or
    `read_column(path, "ContextTokens")`.
    """
    n = whole_number("num_requests", num_requests)
    given = np.asarray(values)
    if given.ndim != 1 or given.size == 0 or given.dtype.kind not in "iuf":
        raise ValueError(f"values has shape {given.shape}, expected a non-empty list of numbers")
    wrong = ~((given >= 1) & (given <= LONGEST_TOKENS) & (given == np.floor(given)))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(f"values[{at}] is {given[at]}, expected a whole number of at least 1")
    return rng.choice(given.astype(np.int64), n)


def _tokens(name: str, value: int) -> int:
    if whole_number(name, value) > LONGEST_TOKENS:
        raise ValueError(f"{name} is {value}, expected at most {LONGEST_TOKENS}")
    return int(value)


def _bounds(min_tokens: int, max_tokens: int) -> tuple[int, int]:
    low, high = _tokens("min_tokens", min_tokens), _tokens("max_tokens", max_tokens)
    if low > high:
        raise ValueError(f"min_tokens is {low}, expected at most max_tokens, which is {high}")
    return low, high
