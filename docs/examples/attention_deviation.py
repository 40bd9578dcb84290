"""How far attention in bfloat16 is from float64: whole, tiled as our kernels, tiled in 16 bits.

    python docs/examples/attention_deviation.py

Golden et al. 2024 ("Is Flash Attention Stable?") find roughly ten times the deviation of plain
attention in an isolated forward pass in bfloat16. Whether that is so is a matter of what is kept
between tiles: maximum, sum and output in float32, as FlashAttention and the kernels here keep them,
or rounded after every tile.
"""

import numpy as np

LENGTH, WIDTH, TILE = 1024, 64, 64


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounded to eight significant bits, to the nearest even, as float32."""
    bits = np.asarray(x, dtype=np.float32).view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return (rounded & 0xFFFF0000).astype(np.uint32).view(np.float32)


def whole(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Scores and probabilities are written to memory in 16 bits."""
    scores = bfloat16(q @ k.T * WIDTH**-0.5)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return bfloat16(bfloat16(powers / powers.sum(axis=1, keepdims=True)) @ v)


def tiled(q: np.ndarray, k: np.ndarray, v: np.ndarray, *, short: bool) -> np.ndarray:
    """Online softmax over tiles of keys; with `short` all that is carried on is rounded."""
    keep = bfloat16 if short else np.asarray
    top = np.full((LENGTH, 1), -np.inf, dtype=np.float32)
    total = np.zeros((LENGTH, 1), dtype=np.float32)
    out = np.zeros((LENGTH, WIDTH), dtype=np.float32)
    for start in range(0, LENGTH, TILE):
        scores = keep(q @ k[start : start + TILE].T * np.float32(WIDTH**-0.5))
        higher = np.maximum(top, scores.max(axis=1, keepdims=True))
        shrunk = keep(np.exp(top - higher))
        powers = np.exp(scores - higher)
        total = keep(total * shrunk + powers.sum(axis=1, keepdims=True))
        out = keep(out * shrunk + bfloat16(powers) @ v[start : start + TILE])
        top = higher
    return bfloat16(out / total)


def deviations(seed: int = 0) -> dict[str, float]:
    """Mean |output - exact| of each way."""
    rng = np.random.default_rng(seed)
    q, k, v = (bfloat16(rng.standard_normal((LENGTH, WIDTH))) for _ in range(3))
    scores = q.astype(np.float64) @ k.astype(np.float64).T * WIDTH**-0.5
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    exact = powers / powers.sum(axis=1, keepdims=True) @ v.astype(np.float64)
    ways = {
        "whole": whole(q, k, v),
        "tiled, 32 bits between tiles": tiled(q, k, v, short=False),
        "tiled, 16 bits between tiles": tiled(q, k, v, short=True),
    }
    return {name: float(np.abs(found - exact).mean()) for name, found in ways.items()}


if __name__ == "__main__":
    for name, found in deviations().items():
        print(f"{name}: {found:.2e}")
