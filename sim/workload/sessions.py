"""Shared system prompts for synthetic requests, so that the prefix cache has something to find."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.workload.content import PromptContent
from sim.workload.workload import whole_number


def shared_prefixes(
    rng: np.random.Generator,
    prompt_tokens: NDArray[np.int64],
    *,
    num_prefixes: int,
    shared_prefix_tokens: int,
) -> PromptContent:
    """Content in which each prompt begins with one of num_prefixes prefixes, equally likely.

    The prefix is the first shared_prefix_tokens tokens of a prompt, part of prompt_tokens and not
    added to it; a shorter prompt is the beginning of its prefix. The rest of every prompt is its
    own. Costs one id a request, whatever the prompts' lengths.
    """
    num_prefixes = whole_number("num_prefixes", num_prefixes)
    unit_tokens = whole_number("shared_prefix_tokens", shared_prefix_tokens)
    n = len(prompt_tokens)
    return PromptContent(
        ids=rng.integers(num_prefixes, size=n),
        offsets=np.arange(n + 1),
        known_tokens=np.minimum(prompt_tokens, unit_tokens).astype(np.int64),
        unit_tokens=unit_tokens,
    )
