"""The sequences of one request: its samples, or the hypotheses of its beam.

The request itself stays one thing: it queues, is admitted, preempted and finished as a whole, and
prefills its prompt once. Then it splits into sequences, each with a block table of its own over the
same prompt blocks (Kwon et al., SOSP 2023, section 4.4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sim.kv_cache import BlockAllocator
from sim.request import Request
from sim.workload.samples import BeamSearch

_SAMPLE_NUMBERS = 1 << 40  # samples are numbered beyond all requests


class SampleGroup:
    """A request's sequences; before its prompt is computed, and after their ends, there are none.

    ``samples`` are those that have not ended. ``pending`` are those that wait, after a preemption,
    for the first one to have computed the prompt again.
    """

    def __init__(
        self, request: Request, output_tokens: Sequence[int], beam: BeamSearch | None = None
    ) -> None:
        self.request = request
        self.output_tokens = tuple(output_tokens)
        self.samples: list[Request] = []
        self.pending: list[Request] = []
        self.num_seqs = len(output_tokens)  # seats in the batch: all until they end
        self.swapped_tables: list[list[int]] = []  # by sample: positions in the swapped blocks
        self.beam = beam
        self._draws = None
        if beam is not None:
            self._draws = np.random.default_rng([beam.seed, request.index])

    @property
    def started(self) -> bool:
        """Whether the prompt has been computed and the request has split."""
        return bool(self.samples)

    def split(self, allocator: BlockAllocator, now_s: float) -> None:
        """The prompt is computed, and its logits give every sample its first token."""
        request = self.request
        for number, output_tokens in enumerate(self.output_tokens):
            sample = Request(
                request.index + (number + 1) * _SAMPLE_NUMBERS,
                request.arrival_s,
                request.prompt_tokens,
                output_tokens,
                request.max_tokens,
                num_computed_tokens=request.prompt_tokens,
                num_generated_tokens=1,
                first_token_s=now_s,
                last_token_s=now_s,
                group=self,
            )
            if number == 0:
                sample.block_table, sample.block_hashes = request.block_table, request.block_hashes
            else:
                sample.block_table = allocator.fork(request.block_table)
            self.samples.append(sample)
        request.block_table = []

    def start_anew(self) -> None:
        """Nothing is left of what had been computed."""
        self.samples, self.pending, self.swapped_tables = [], [], []
        self.num_seqs = len(self.output_tokens)

    def active(self) -> list[Request]:
        """Samples that may compute something now."""
        if not self.pending:
            return self.samples
        return [sample for sample in self.samples if sample not in self.pending]

    def blocks(self) -> list[int]:
        """All blocks that the samples hold, each once."""
        return list(dict.fromkeys(block for sample in self.samples for block in sample.block_table))

    def most_blocks(self, block_size: int) -> int:
        """Blocks when every sample is at its end and only the prompt's full blocks are shared."""
        prompt = self.request.prompt_tokens
        shared = prompt // block_size
        own = (-(-(prompt + tokens - 1) // block_size) - shared for tokens in self.output_tokens)
        return max(shared + sum(own), -(-prompt // block_size))

    def blocks_to_split(self, block_size: int) -> int:
        """Blocks for the prompt and for what each sample writes first."""
        shared, partial = divmod(self.request.prompt_tokens, block_size)
        writing = sum(tokens > 1 for tokens in self.output_tokens)
        return shared + max(writing, int(partial > 0))

    def blocks_to_resume(self, block_size: int) -> int:
        """Blocks for the prompt and for what each sample has generated, after a preemption."""
        shared = self.request.prompt_tokens // block_size
        return shared + sum(-(-one.num_tokens // block_size) - shared for one in self.samples)

    # -- beam search ------------------------------------------------------------------------

    def next_hypotheses(self, allocator: BlockAllocator) -> bool:
        """Every hypothesis has one more token: fork those that the best ones come from.

        Returns whether any block changed hands. Hypotheses are all equally long, so a place whose
        hypothesis has no successor takes over a fork of one that has several.
        """
        assert self.beam is not None and self._draws is not None
        width = len(self.samples)
        survives = self._draws.random(width) < self.beam.survival
        drawn = self._draws.integers(width, size=width)
        parents = np.where(survives, np.arange(width), drawn)
        successors = np.bincount(parents, minlength=width).tolist()
        dropped = [place for place, count in enumerate(successors) if not count]
        if not dropped:
            return False
        for place in dropped:
            allocator.free(self.samples[place].block_table)
        for place, source in zip(dropped, self._surplus(successors), strict=True):
            forked = allocator.fork(self.samples[source].block_table)
            self.samples[place].block_table = forked
        return True

    @staticmethod
    def _surplus(successors: list[int]) -> Iterator[int]:
        for place, count in enumerate(successors):
            for _ in range(count - 1):
                yield place
