"""Non-greedy verification: what is accepted, and that what comes out is the target's own.

    python docs/examples/rejection_sampling.py

Leviathan et al. 2023, algorithm 1, for one position: draft x from q, accept it with probability
min(1, p(x)/q(x)), else draw from max(0, p - q), normalised.
"""

import numpy as np

TOKENS, DRAFTS = 50, 400_000


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())


def verified(seed: int = 0) -> dict[str, float]:
    """Shares accepted, expected, agreed on greedily, and distances of the outputs from p."""
    rng = np.random.default_rng(seed)
    logits = 2.0 * rng.standard_normal(TOKENS)
    p, q = softmax(logits), softmax(logits + 0.8 * rng.standard_normal(TOKENS))
    drafted = rng.choice(TOKENS, size=DRAFTS, p=q)
    accepted = rng.random(DRAFTS) < np.minimum(1.0, p[drafted] / q[drafted])
    rest = np.maximum(0.0, p - q)
    again = rng.choice(TOKENS, size=DRAFTS, p=rest / rest.sum())
    out = np.where(accepted, drafted, again)
    own = rng.choice(TOKENS, size=DRAFTS, p=p)

    def distance(drawn: np.ndarray) -> float:
        return float(np.abs(np.bincount(drawn, minlength=TOKENS) / DRAFTS - p).sum() / 2)

    return {
        "accepted": float(accepted.mean()),
        "1 - TV(p, q)": float(np.minimum(p, q).sum()),
        "TV of the outputs from p": distance(out),
        "TV of as many samples of p from p": distance(own),
        "TV of the drafts from p": distance(drafted),
    }


if __name__ == "__main__":
    for name, found in verified().items():
        print(f"{name}: {found:.4f}")
