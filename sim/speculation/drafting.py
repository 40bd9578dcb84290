"""What drafting costs in one iteration, by technique.

    draft model, tree   a small model of its own: `depth` forward passes, one after the other
    eagle, mtp          the same with one further layer of the target (Li et al., 2024; DeepSeek-AI,
                        2024, section 2.2)
    self-speculation    the same with a share of the target's own layers (Zhang et al., 2023;
                        LayerSkip, Elhoushi et al., 2024)
    medusa              all heads at once on the target's last hidden state (Cai et al., 2024)
    n-gram, jacobi,     no model: host time at most
    lookahead

The first forward pass of a draft with a cache of its own catches up with the target: it computes
the prompts of the batch and, as vLLM pads it, as many tokens per sequence as can have been
accepted. Every further pass computes one token per sequence (a tree: one level of nodes).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Protocol, runtime_checkable

from sim.batch import Batch
from sim.latency.protocol import LatencyModel


class Drafting(Protocol):
    """Batch -> seconds spent on drafting for its decoding sequences (and on its prompts)."""

    @property
    def label(self) -> str:
        """Where the seconds come from."""

    @property
    def measured(self) -> bool:
        """Whether they were measured."""

    def draft_s(self, batch: Batch) -> float:
        """Seconds; `batch.verification` says what is verified in this iteration."""


@runtime_checkable
class VerifyingLatency(LatencyModel, Protocol):
    """A latency model that knows what several query tokens per sequence cost in attention."""

    def further_queries_s(self, num_decodes: int, context_tokens: int, query_tokens: int) -> float:
        """Attention's time for `query_tokens` of `num_decodes` sequences, beyond one token each."""


@dataclass(frozen=True, slots=True)
class HostDraft:
    """Drafts that cost host time only (n-gram lookup), or nothing (Jacobi, lookahead).

    `ranks`: hosts that sequences are dealt out to.
    """

    per_step_s: float = 0.0
    per_sequence_s: float = 0.0
    ranks: int = 1
    label: str = "no draft model"
    measured: bool = True

    def draft_s(self, batch: Batch) -> float:
        decodes = -(-batch.num_decodes // self.ranks)
        return self.per_step_s + decodes * self.per_sequence_s if decodes else 0.0


@dataclass(frozen=True, slots=True)
class FixedDraft:
    """`steps` drafting steps of equal, given length: textbook examples."""

    step_s: float
    steps: int
    label: str = "fixed"
    measured: bool = False

    def draft_s(self, batch: Batch) -> float:
        return self.steps * self.step_s if batch.num_decodes else 0.0


@dataclass(frozen=True, slots=True)
class Projection:
    """A matrix product of the draft that the target does not have; analytic.

    [rows, in_features] x [in_features, out_features], `count` times; ``launch_s`` each, 16 bits.
    Rows are dealt out to `ranks`, which have the weights each.
    """

    in_features: int
    out_features: int
    count: int
    flops_per_s: float
    bytes_per_s: float
    launch_s: float
    ranks: int = 1

    @property
    def weight_bytes(self) -> int:
        return 2 * self.in_features * self.out_features * self.count

    def seconds(self, rows: int) -> float:
        if not rows:
            return 0.0
        rows = -(-rows // self.ranks)
        flops = rows * self.weight_bytes  # two operations and two bytes a weight
        moved = self.weight_bytes + 2 * rows * self.count * (self.in_features + self.out_features)
        return self.count * self.launch_s + max(flops / self.flops_per_s, moved / self.bytes_per_s)


class ModelDraft:
    """A draft model's forward passes, timed by a latency model of its own."""

    def __init__(self, latency: VerifyingLatency, frontiers: tuple[int, ...]) -> None:
        self.label = latency.label
        self.measured = latency.measured
        self._latency = latency
        self._frontiers = frontiers

    def draft_s(self, batch: Batch) -> float:
        latency, decodes = self._latency, batch.num_decodes
        verified = batch.verification
        queries = verified.query_tokens if verified is not None else 0
        stored = batch.context_tokens - queries
        depth = len(self._frontiers)
        catching_up = decodes * (depth + 1)
        first = Batch(
            prefills=batch.prefills,
            num_decodes=decodes,
            context_tokens=stored + decodes,
            longest_tokens=batch.longest_tokens,
            num_tokens=batch.num_tokens - queries + catching_up,
            num_emitting=decodes,
            num_seqs=batch.num_seqs,
        )
        if not first.num_tokens:
            return 0.0
        duration_s = latency.iteration_s(first)
        batch.extrapolated |= first.extrapolated
        if not decodes:
            return duration_s
        duration_s += latency.further_queries_s(decodes, first.context_tokens, catching_up)
        if max(self._frontiers) == 1:
            return duration_s + self._chain_s(batch, stored, depth - 1)
        held = 1
        for width in self._frontiers[:-1]:
            held += width
            level = _decode(decodes, stored + decodes * held, batch.longest_tokens, width)
            duration_s += latency.iteration_s(level)
            duration_s += latency.further_queries_s(decodes, level.context_tokens, decodes * width)
            batch.extrapolated |= level.extrapolated
        return duration_s

    def _chain_s(self, batch: Batch, stored: int, steps: int) -> float:
        """Further passes of one token a sequence: a run of ordinary decodes."""
        decodes, duration_s = batch.num_decodes, 0.0
        run = _decode(decodes, stored + 2 * decodes, batch.longest_tokens, 1)
        while steps:
            ends_s = self._latency.run_ends_s(run, 0.0, steps, inf)
            duration_s += ends_s[-1]
            steps -= len(ends_s)
            run.context_tokens += decodes * len(ends_s)
            run.longest_tokens += len(ends_s)
            batch.extrapolated |= run.extrapolated
        return duration_s


class LayersDraft:
    """A share of the target's own layers, timed by the target's latency model.

    `keeps_cache`: the draft has keys and values of its own, to be computed for prompts and accepted
    tokens too (eagle). Otherwise the target's verification leaves them behind (self-speculation).
    """

    measured = False

    def __init__(
        self,
        target: VerifyingLatency,
        *,
        share: float,
        frontiers: tuple[int, ...],
        keeps_cache: bool,
        projection: Projection | None = None,
        host_per_step_s: float = 0.0,
    ) -> None:
        self.label = f"{share:.1%} of the target's layers"
        self._target = target
        self._share = share
        self._frontiers = frontiers
        self._keeps_cache = keeps_cache
        self._projection = projection
        self._host_per_step_s = host_per_step_s

    def draft_s(self, batch: Batch) -> float:
        decodes, verified = batch.num_decodes, batch.verification
        queries = verified.query_tokens if verified is not None else 0
        stored = batch.context_tokens - queries
        first = _decode(decodes, stored + decodes, batch.longest_tokens, 1)
        if self._keeps_cache:
            first.prefills = batch.prefills
            first.num_tokens = batch.num_tokens - queries + decodes * (len(self._frontiers) + 1)
            first.num_seqs = batch.num_seqs
        duration_s = self._pass_s(first)
        if decodes:
            held = 1
            for width in self._frontiers[:-1]:
                held += width
                level = _decode(decodes, stored + decodes * held, batch.longest_tokens, width)
                duration_s += self._pass_s(level)
        return duration_s

    def _pass_s(self, batch: Batch) -> float:
        """One pass: the share of everything between host and logits, and the logits whole."""
        if not batch.num_tokens:
            return 0.0
        target, rows = self._target, batch.num_emitting
        duration_s = target.iteration_s(batch)
        batch.num_emitting = 0
        layers_s = target.iteration_s(batch)
        batch.num_emitting = rows
        host_s = target.iteration_s(Batch(num_seqs=batch.num_seqs))
        logits_s = duration_s - layers_s
        layers_s -= host_s
        if batch.num_decodes:
            prompts = sum(chunk.new_tokens for chunk in batch.prefills)
            layers_s += target.further_queries_s(
                batch.num_decodes, batch.context_tokens, batch.num_tokens - prompts
            )
        own_s = self._host_per_step_s
        if self._projection is not None:
            own_s += self._projection.seconds(batch.num_tokens)
        return self._share * layers_s + logits_s + own_s


class HeadsDraft:
    """Medusa: `heads` residual blocks with a vocabulary projection each, on the last hidden state.

    A head's vocabulary projection costs what the target's own does.
    """

    measured = False

    def __init__(
        self,
        target: VerifyingLatency,
        *,
        heads: int,
        projection: Projection,
        host_per_step_s: float = 0.0,
    ) -> None:
        self.label = f"{heads} heads"
        self._target = target
        self._heads = heads
        self._projection = projection
        self._host_per_step_s = host_per_step_s

    def draft_s(self, batch: Batch) -> float:
        rows = batch.num_decodes
        if not rows:
            return 0.0
        target = self._target
        logits_s = target.iteration_s(Batch(num_emitting=rows)) - target.iteration_s(Batch())
        return self._heads * logits_s + self._projection.seconds(rows) + self._host_per_step_s


def _decode(decodes: int, context_tokens: int, longest_tokens: int, width: int) -> Batch:
    """`width` tokens of each sequence."""
    tokens = decodes * width
    return Batch(
        num_decodes=decodes,
        context_tokens=context_tokens,
        longest_tokens=longest_tokens,
        num_tokens=tokens,
        num_emitting=tokens,
        num_seqs=decodes,
    )
