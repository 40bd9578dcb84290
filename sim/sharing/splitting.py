"""How a request of several samples splits into its sequences, and how a beam's replace each other.

The request itself stays one thing: it queues, is admitted, preempted and finished as a whole, and
prefills its prompt once. Then it splits into sequences, each with a block table of its own over the
same prompt blocks (Kwon et al., SOSP 2023, section 4.4).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sim.kv.cache import BlockAllocator
from sim.request import SAMPLE_NUMBERS, Emission, Request, SampleGroup


def split(group: SampleGroup, allocator: BlockAllocator, emission: Emission) -> None:
    """The prompt is computed, and its logits give every sample its first token: `emission`."""
    request = group.request
    for number, output_tokens in enumerate(group.output_tokens):
        sample = Request(
            request.index + (number + 1) * SAMPLE_NUMBERS,
            request.arrival_s,
            request.prompt_tokens,
            output_tokens,
            request.max_tokens,
            num_computed_tokens=request.prompt_tokens,
            num_generated_tokens=1,
            first_token=emission,
            last_token=emission,
            group=group,
        )
        if number == 0:
            sample.block_table, sample.block_hashes = request.block_table, request.block_hashes
        else:
            sample.block_table = allocator.fork(request.block_table)
        group.samples.append(sample)
    request.block_table = []


def next_hypotheses(group: SampleGroup, allocator: BlockAllocator) -> bool:
    """Every hypothesis has one more token: fork those that the best ones come from.

    Returns whether any block changed hands. Hypotheses are all equally long, so a place whose
    hypothesis has no successor takes over a fork of one that has several.
    """
    assert group.beam is not None and group.draws is not None
    width = len(group.samples)
    survives = group.draws.random(width) < group.beam.survival
    drawn = group.draws.integers(width, size=width)
    parents = np.where(survives, np.arange(width), drawn)
    successors = np.bincount(parents, minlength=width).tolist()
    dropped = [place for place, count in enumerate(successors) if not count]
    if not dropped:
        return False
    for place in dropped:
        allocator.free(group.samples[place].block_table)
    for place, source in zip(dropped, _surplus(successors), strict=True):
        forked = allocator.fork(group.samples[source].block_table)
        group.samples[place].block_table = forked
    return True


def _surplus(successors: list[int]) -> Iterator[int]:
    for place, count in enumerate(successors):
        for _ in range(count - 1):
            yield place
