"""A request: what a client asked for, how far it has come, when, and what it splits into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np

NEVER = float("nan")
SAMPLE_NUMBERS = 1 << 40  # samples are numbered beyond all requests
_OWN_BLOCKS = 1 << 32  # more blocks than any sequence has


class Emission:
    """When a batch's tokens went out: NaN for as long as it is being computed.

    Whoever has a token of the batch points here, so that its time is noted once. Clients see them
    at ``seen_s``, later where a front end lies between.
    """

    __slots__ = ("at_s", "seen_s")

    def __init__(self, at_s: float = NEVER) -> None:
        self.at_s = self.seen_s = at_s


@dataclass(slots=True, eq=False)
class Request:
    """One generation request; identity, not value, makes two requests the same.

    ``num_computed_tokens`` counts the tokens whose keys and values are in the cache and
    ``num_generated_tokens`` those that have been generated, both as they will be when the batches
    in flight are through. While a request decodes in lockstep with others both stand still at
    their values of ``joined_step``; `DecodeSet` knows how many iterations have passed since (see
    `DecodeSet.sync`).
    """

    index: int
    arrival_s: float  # at the engine
    prompt_tokens: int
    output_tokens: int  # tokens the model will really generate
    max_tokens: int  # the client's limit, all that a reserving policy can know
    # Of full blocks whose content is known: the prompt's, and the answer's where a later turn
    # repeats it.
    block_hashes: Sequence[int] = ()
    num_computed_tokens: int = 0
    num_generated_tokens: int = 0
    joined_step: int = -1  # DecodeSet.step when it joined; -1 outside
    block_table: list[int] = field(default_factory=list)
    scheduled_s: float = NEVER
    first_token: Emission | None = None
    last_token: Emission | None = None
    finished_s: float = NEVER
    cached_tokens: int = 0  # prompt tokens found in the prefix cache at the first admission
    preemptions: int = 0
    admission: int = 0  # the how-manieth of its engine its latest one is
    label: str = ""  # its class, where the workload names classes
    group: SampleGroup | None = None  # of a request for several samples, and of each of them
    parent: Request | None = None  # of a sample that is served as a request of its own
    sent_s: float = NEVER  # by its client, where a front end lies between
    leaves_s: float = inf  # when its client is gone, answered or not

    @property
    def first_token_s(self) -> float:
        """When its first token went out; NaN before."""
        return NEVER if self.first_token is None else self.first_token.at_s

    @property
    def last_token_s(self) -> float:
        """When its latest token went out; NaN before, and while that token is computed."""
        return NEVER if self.last_token is None else self.last_token.at_s

    @property
    def answered_s(self) -> float:
        """When its client has the whole answer; NaN while the engine has not finished it."""
        last = self.last_token
        if last is None or last.seen_s == last.at_s:
            return self.finished_s
        if self.finished_s == last.at_s:
            return last.seen_s
        return self.finished_s + (last.seen_s - last.at_s)  # returned later, with its batch

    @property
    def whole(self) -> Request:
        """The request as its client knows it."""
        return self if self.parent is None else self.parent

    @property
    def was_scheduled(self) -> bool:
        """Whether an iteration has ever served it."""
        return self.scheduled_s == self.scheduled_s  # not NaN

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens: the length that a prefill has to catch up to."""
        return self.prompt_tokens + self.num_generated_tokens

    @property
    def final_tokens(self) -> int:
        """Tokens in the cache at the very end; the last token generated is never written."""
        return self.prompt_tokens + self.output_tokens - 1

    def block_hash(self, position: int) -> int:
        """What its full block of that number holds; of unknown content it is its own (negative)."""
        if position < len(self.block_hashes):
            return self.block_hashes[position]
        return -1 - (self.index * _OWN_BLOCKS + position)


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """How hypotheses replace each other; which ones do is drawn, for the text is not known.

    At every token each hypothesis goes on by itself with probability `survival`; otherwise its
    place goes to a fork of one drawn uniformly from all of them (of itself, too).

    Raises ValueError for a `survival` outside [0, 1].
    """

    survival: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.survival <= 1:
            raise ValueError(f"survival is {self.survival}, expected 0 to 1")


class FanOut:
    """A request's samples as requests of their own: all but their client is theirs alone.

    They have one prompt, so its full blocks hold the same, whether or not it is known what. What is
    known of an answer is the first sample's.
    """

    def __init__(self, request: Request, block_size: int) -> None:
        assert request.group is not None
        full = request.prompt_tokens // block_size
        prompt = [request.block_hash(position) for position in range(full)]
        known = [*prompt, *request.block_hashes[full:]]
        self.sequences = [
            Request(
                request.index + (number + 1) * SAMPLE_NUMBERS,
                request.arrival_s,
                request.prompt_tokens,
                output_tokens,
                request.max_tokens,
                block_hashes=prompt if number else known,
                num_computed_tokens=request.num_computed_tokens,
                first_token=request.first_token,
                last_token=request.last_token,
                cached_tokens=request.cached_tokens,
                label=request.label,
                parent=request,
            )
            for number, output_tokens in enumerate(request.group.output_tokens)
        ]
        self.num_unfinished = len(self.sequences)
        self.num_running = 0

    def end(self, now_s: float) -> Request:
        """All have ended; returns their request with what has become of it."""
        request = self.abandon()
        request.last_token = max((one.last_token for one in self.sequences), key=_time)
        request.cached_tokens = self.sequences[0].cached_tokens
        request.finished_s = now_s
        return request

    def abandon(self) -> Request:
        """They go no further here; returns their request with what its client has seen of them."""
        request = self.sequences[0].whole
        tokens = [one.first_token for one in self.sequences if one.first_token is not None]
        if tokens:
            request.first_token = min(tokens, key=_time)
        request.preemptions += sum(one.preemptions for one in self.sequences)
        return request


def _time(token: Emission | None) -> float:
    assert token is not None
    return token.at_s


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
        self.draws: np.random.Generator | None = None  # of the beam
        if beam is not None:
            self.draws = np.random.default_rng([beam.seed, request.index])

    @property
    def started(self) -> bool:
        """Whether the prompt has been computed and the request has split."""
        return bool(self.samples)

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
