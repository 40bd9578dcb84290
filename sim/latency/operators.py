"""Operations that a table names, by class: what a report colours an iteration's time by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.latency.grid import Line

_CLASS_WORDS = {
    "layers": ("pass ",),
    "logits": (" and sampling",),
    "sampling": ("sampling",),
    "elementwise": ("norm", "rope", "rotary", "_act", "element-wise", "residual", "add", "emb"),
    "contractions": ("proj", "lm_head", "gate_up", "router", "shared_"),
}


def operator_class(operation: str, otherwise: str) -> str:
    """The class (`OPERATORS`) of an operation that a table names; `otherwise` where it has none.

    Names are those of `ModelSpec.linear_operations` and of other people's profiles; a pass through
    whole layers, timed as one, is of several classes.
    """
    name = operation.lower()
    for found, words in _CLASS_WORDS.items():
        if any(word in name for word in words):
            return found
    return otherwise


def by_class(
    lines: Sequence[Line], classes: Sequence[str], counts: np.ndarray, computed: np.ndarray
) -> dict[str, np.ndarray]:
    """Seconds of these operations at these counts, summed up by class."""
    found: dict[str, np.ndarray] = {}
    for line, name in zip(lines, classes, strict=True):
        found[name] = found.get(name, 0.0) + line.many(counts) * computed
    return found
