"""What speculation brought, in figures for the summary of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sim.speculation.speculation import Speculation


def speculation_figures(
    iterations: Mapping[str, np.ndarray], speculation: Speculation
) -> dict[str, Any]:
    """Expected and achieved tokens per step, acceptance, and drafting's share of the time.

    A step is one verification of one sequence. ``acceptance_length`` (vLLM's mean acceptance
    length) counts the target's own token, and what is accepted beyond an answer's end: it
    estimates ``expected_tokens_per_step``. ``tokens_per_step`` counts what clients received.
    """
    steps = int(iterations["decode_seqs"].sum())
    accepted = int(iterations["accepted_tokens"].sum())
    drafted = int(iterations["drafted_tokens"].sum())
    decoded = int(iterations["decoded_tokens"].sum())
    busy_s = float(iterations["duration_s"].sum())
    draft_s = float(iterations["draft_s"].sum())
    return {
        "method": speculation.method,
        "draft_depth": speculation.shape.depth,
        "query_tokens": speculation.shape.query_tokens,
        "expected_tokens_per_step": speculation.expected_tokens_per_step,
        "acceptance_length": 1.0 + accepted / steps if steps else None,
        "tokens_per_step": decoded / steps if steps else None,
        "draft_acceptance_rate": accepted / drafted if drafted else None,
        "steps": steps,
        "drafted_tokens": drafted,
        "accepted_tokens": accepted,
        "draft_s": draft_s,
        "draft_share": draft_s / busy_s if busy_s > 0 else 0.0,
    }
