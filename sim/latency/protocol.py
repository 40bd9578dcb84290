"""What a latency model answers: how long does this iteration take?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sim.batch import Batch


@dataclass(frozen=True, slots=True)
class HostOverhead:
    """Host time in every iteration, in seconds, and who says so."""

    per_iteration_s: float
    per_sequence_s: float
    source: str


class LatencyModel(Protocol):
    """Batch -> seconds. ``label`` and ``measured`` say where the seconds come from.

    ``uses_longest``: whether it reads ``batch.longest_tokens``, which is not kept otherwise.
    """

    label: str
    measured: bool
    uses_longest: bool

    def iteration_s(self, batch: Batch) -> float:
        """Duration of one iteration in seconds."""

    def run_ends_s(
        self, batch: Batch, start_s: float, iterations: int, until_s: float
    ) -> list[float]:
        """When each of up to `iterations` decode iterations in a row ends, the first at `start_s`.

        In iteration j the decodes attend to ``context_tokens + j * num_decodes`` tokens. The run
        stops with the first iteration that ends at `until_s` or later. The same numbers, bit for
        bit, as adding up `iteration_s` one by one.
        """

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Split recorded iterations' durations into named parts that add up to them."""

    def operators_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same by class of operation, as finely as the source can tell (`OPERATORS`)."""


# Classes of operations: what an iteration's time goes into, whatever the latency source.
OPERATORS: Mapping[str, str] = {
    "contractions": "matrix products: projections, MLP, output head",
    "experts": "a mixture's routed experts",
    "attention": "attention over the KV cache",
    "elementwise": "norms, rotary, activations, embedding",
    "sampling": "sampling from the logits",
    "layers": "all of a layer but attention, measured as one",
    "logits": "output head and sampling, measured as one",
    "all_reduce": "sums over tensor-parallel ranks",
    "all_to_all": "exchange between ranks that share out tokens or experts",
    "gather_and_send": "gathered logits and queries; sends from stage to stage",
    "swap": "KV blocks over the host link, and copies on the device",
    "draft": "drafting of speculative decoding",
    "host": "the engine's host, between iterations",
    "launch": "waiting for kernels to be launched, and what lies between them",
    "others": "other engines that compute on the same GPU",
    "stages": "attention, and batches that wait for a pipeline's stages",
    "fixed": "an iteration of given length",
}


class FixedLatency:
    """Every iteration takes equally long: textbook timetables and queueing formulas."""

    measured = False
    uses_longest = False

    def __init__(self, iteration_s: float) -> None:
        self._iteration_s = iteration_s
        self.label = f"fixed: {iteration_s:g} s per iteration"

    def iteration_s(self, batch: Batch) -> float:
        return self._iteration_s

    def run_ends_s(
        self, batch: Batch, start_s: float, iterations: int, until_s: float
    ) -> list[float]:
        ends_s: list[float] = []
        while len(ends_s) < iterations and start_s < until_s:
            start_s += self._iteration_s
            ends_s.append(start_s)
        return ends_s

    def further_queries_s(self, num_decodes: int, context_tokens: int, query_tokens: int) -> float:
        return 0.0

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"fixed": iterations["duration_s"]}

    operators_s = parts_s


# Seconds of the iterations that follow a batch of decodes, and which of them are extrapolated.
Steps = Iterator[tuple[float, bool]]


def ends_one_by_one(
    batch: Batch,
    start_s: float,
    iterations: int,
    until_s: float,
    iteration_s: Callable[[Batch], float],
    steps_s: Callable[[Batch], Steps] | None = None,
) -> list[float]:
    """`LatencyModel.run_ends_s` iteration after iteration, for a model that knows no faster way.

    Every one but the first was decided ahead, where that makes a difference. ``steps_s`` says what
    they take, from a batch as the first one that is its to change; None: ``iteration_s`` does.
    """
    start_s += iteration_s(batch)
    ends_s = [start_s]
    step = Batch(
        num_decodes=batch.num_decodes, context_tokens=batch.context_tokens,
        longest_tokens=batch.longest_tokens, num_tokens=batch.num_tokens,
        num_emitting=batch.num_emitting, num_seqs=batch.num_seqs, decided_ahead=True,
    )  # fmt: skip
    times_s = steps_one_by_one(step, iteration_s) if steps_s is None else steps_s(step)
    while len(ends_s) < iterations and start_s < until_s:
        step_s, extrapolated = next(times_s)
        start_s += step_s
        if extrapolated != batch.extrapolated:
            break  # a run is wholly inside the measured range or wholly outside
        ends_s.append(start_s)
    return ends_s


def steps_one_by_one(step: Batch, iteration_s: Callable[[Batch], float]) -> Steps:
    """What follows ``step``, whose sequences grow by a token each time; it is changed."""
    while True:
        step.context_tokens += step.num_decodes
        step.longest_tokens += 1
        yield iteration_s(step), step.extrapolated


def looked_up(
    parts_of: Callable[[np.ndarray], dict[str, np.ndarray]], counts: np.ndarray
) -> dict[str, np.ndarray]:
    """Parts for many counts, most of them small and repeated: a table, then look-ups."""
    table = parts_of(np.arange(counts.max(initial=0) + 1))
    return {key: value[counts] for key, value in table.items()}
