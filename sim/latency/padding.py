"""Batches as CUDA graphs compute them: filled up to a captured number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def padded(tokens: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The captured size that so many tokens are filled up to; beyond the largest, themselves.

    `sizes` ascend. Without any nothing is padded, nor are no tokens.
    """
    if not sizes:
        return tokens
    captured = np.array(sizes)
    slot = np.searchsorted(captured, tokens)
    filled = captured[np.minimum(slot, len(captured) - 1)]
    return np.where((slot < len(captured)) & (tokens > 0), filled, tokens)
