"""What choosing the next tokens takes on the device, by how they are chosen and by whose kernels.

    greedy         float32 copy, argmax
    random         temperature, softmax, noise, quotient, argmax
    truncated      top-k or top-p by rejection, as FlashInfer's kernels do
    sorted         top-k or top-p as PyTorch does: sort, softmax, sums, mask, scatter; then random

Small kernels last as long as their launch or their bytes, whichever is longer. *Greedy*: against an
RTX 4090's profile (LLMServingSim) by up to 3 % at 1 and 256 rows; its bytes are fewer than a copy
and an argmax move, as what one writes the next finds in the cache. *Random*: 8 B more for dividing
by the temperature, 8 for the softmax, 4 for the noise, 12 for the quotient. *Sorted*: what masking
with top-p takes in vLLM (pull request 33538, 48 to 1,024 rows of 32,768 and 131,072 logits: within
12 % of 0.17 ms and 0.122 ns a logit; 40376, on another card, has 0.14 and 0.09 ns at 128 and 512
rows). *Truncated*: 40376 has 0.13 ms at 64 rows of 131,072, 0.37 at 512.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.model.spec import Sampling


@dataclass(frozen=True, slots=True)
class _Kernels:
    """Small kernels by launches or bytes; what filtering takes comes on top of them."""

    launched_s: float
    bytes_per_logit: int
    filter_s: float = 0.0
    filter_per_logit_s: float = 0.0


_KERNELS: dict[Sampling, _Kernels] = {
    "greedy": _Kernels(24e-6, 8),
    "random": _Kernels(36e-6, 40),
    "truncated": _Kernels(36e-6, 40, 0.1e-3, 4e-12),
    "sorted": _Kernels(36e-6, 40, 0.17e-3, 1.22e-10),
}


def sampling_s(
    how: Sampling, rows: np.ndarray, vocab_size: int, bytes_per_s: float, *, launched: bool = True
) -> np.ndarray:
    """Seconds for so many rows of logits; `launched`: with what launches and passes take besides.

    `bytes_per_s` is the memory bandwidth that small kernels reach.
    """
    kernels = _KERNELS[how]
    logits = rows * vocab_size
    moved_s = logits * kernels.bytes_per_logit / bytes_per_s
    found_s = np.maximum(kernels.launched_s * launched, moved_s)
    found_s += kernels.filter_s * launched + logits * kernels.filter_per_logit_s
    return np.asarray(found_s)
