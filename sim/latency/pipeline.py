"""An iteration that passes through stages: how long each keeps it, and the way between them.

A batch leaves a stage, its activations are sent on, and the stage takes the next batch at once
(sends overlap with it). How batches queue for stages is the engine's matter
(`sim.engine.device`); alone in the engine an iteration takes the sum of all stages and sends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sim.batch import Batch
from sim.latency.communication import LINK_EFFICIENCY, send_s
from sim.latency.lockstep_roofline import LockstepRoofline
from sim.latency.protocol import FixedLatency, LatencyModel, looked_up
from sim.latency.roofline import RooflineLatency
from sim.latency.spread_roofline import SpreadRoofline
from sim.model.expert_routing import ExpertRouting
from sim.model.hardware import Gpu, Interconnect
from sim.model.parallelism import Parallelism
from sim.model.spec import DTYPE_BYTES, ModelSpec


class PipelineLatency:
    """Stages in a row. ``links`` lie between them; none: sending takes no time."""

    uses_longest = False

    def __init__(
        self,
        stages: Sequence[LatencyModel],
        *,
        label: str,
        links: Sequence[Interconnect] = (),
        bytes_per_token: int = 0,
        link_efficiency: float = LINK_EFFICIENCY,
    ) -> None:
        assert not links or len(links) == len(stages) - 1, "one link between two stages"
        self.stages = tuple(stages)
        self.label = label
        self.measured = all(stage.measured for stage in stages)
        self.host = getattr(stages[0], "host", None)
        self._links = tuple(links)
        self._bytes_per_token = bytes_per_token
        self._link_efficiency = link_efficiency
        self._sends_s: dict[int, list[float]] = {}

    @classmethod
    def fixed(cls, iteration_s: float, stages: int) -> PipelineLatency:
        """Textbook pipelines: every stage takes an equal share of a fixed time, sends none."""
        each = FixedLatency(iteration_s / stages)
        label = f"fixed: {iteration_s:g} s per iteration over {stages} stages"
        return cls([each] * stages, label=label)

    def stages_s(self, batch: Batch) -> list[float]:
        """Seconds the batch keeps each stage."""
        return [stage.iteration_s(batch) for stage in self.stages]

    def sends_s(self, batch: Batch) -> list[float]:
        """Seconds from each stage to the next, one fewer than stages."""
        first = self.stages[0]
        tokens = first.rank_tokens(batch) if isinstance(first, SpreadRoofline) else batch.num_tokens
        sends = self._sends_s.get(tokens)
        if sends is None:
            sends = [float(each[0]) for each in self._each_send_s(np.array([tokens]))]
            self._sends_s[tokens] = sends
        return sends

    def iteration_s(self, batch: Batch) -> float:
        """Seconds from entering the first stage to leaving the last, with nobody in the way."""
        return sum(self.stages_s(batch)) + sum(self.sends_s(batch))

    def run_ends_s(
        self, batch: Batch, start_s: float, iterations: int, until_s: float
    ) -> list[float]:
        """When each of up to `iterations` decode iterations ends (see `LatencyModel`)."""
        ahead = replace(batch)
        ends_s: list[float] = []
        while len(ends_s) < iterations and start_s < until_s:
            start_s += self.iteration_s(ahead)
            ends_s.append(start_s)
            ahead.context_tokens += batch.num_decodes
        return ends_s

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Split recorded durations, waiting for busy stages included: what is left after the parts
        that follow from counts is attention and that waiting, which records cannot tell apart."""
        if not all(isinstance(stage, RooflineLatency) for stage in self.stages):
            return {"fixed": iterations["duration_s"]}
        parts: dict[str, np.ndarray] = {}
        for stage in self.stages:
            assert isinstance(stage, RooflineLatency)
            for name, seconds in stage.known_parts_s(iterations).items():
                parts[name] = parts.get(name, 0.0) + seconds
        sends = looked_up(self._send_parts_s, iterations["num_tokens"])["communication"]
        parts["communication"] = parts["communication"] + sends
        left = iterations["duration_s"] - sum(parts.values())
        parts["attention_and_stage_waits"] = np.maximum(left, 0.0)
        return parts

    def operators_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`parts_s` by class of operation, all stages together."""
        if not all(isinstance(stage, RooflineLatency) for stage in self.stages):
            return {"fixed": iterations["duration_s"]}
        classes: dict[str, np.ndarray] = {}
        for stage in self.stages:
            assert isinstance(stage, RooflineLatency)
            for name, seconds in stage.known_operators_s(iterations).items():
                classes[name] = classes.get(name, 0.0) + seconds
        sends = looked_up(self._send_parts_s, iterations["num_tokens"])["communication"]
        classes["gather_and_send"] = classes["gather_and_send"] + sends
        left = iterations["duration_s"] - sum(classes.values())
        return {"stages": np.maximum(left, 0.0), **classes}

    def _send_parts_s(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        first = self.stages[0]
        if isinstance(first, SpreadRoofline):
            tokens = -(-tokens // (first.parallelism.gpus_per_stage // first.tensor_parallel))
        return {"communication": sum(self._each_send_s(tokens), np.zeros(len(tokens)))}

    def _each_send_s(self, tokens: np.ndarray) -> list[np.ndarray]:
        message = tokens.astype(np.float64) * self._bytes_per_token
        if not self._links:
            return [np.zeros(len(tokens))] * (len(self.stages) - 1)
        return [
            send_s(message, link, link_efficiency=self._link_efficiency) for link in self._links
        ]


def roofline_latency(
    model: ModelSpec,
    gpu: Gpu,
    *,
    parallelism: Parallelism,
    interconnect: Interconnect | None = None,
    routing: ExpertRouting | None = None,
    **settings: Any,
) -> RooflineLatency | PipelineLatency:
    """The analytic latency of `model` spread as `parallelism` says.

    `settings` are those of `RooflineLatency`. Raises ``ValueError`` where it cannot be spread so.
    """
    parallelism.check(model)
    links = gpu.interconnect if interconnect is None else interconnect
    kind: type[RooflineLatency] = SpreadRoofline if parallelism.is_spread else RooflineLatency
    if parallelism.data_parallel > 1:
        kind = LockstepRoofline
    shares = model.stages(parallelism.pipeline_parallel)
    stages = []
    for number, share in enumerate(shares):
        given = dict(settings)
        if number:  # the host's work is done once, before the first stage
            given |= {"host_per_iteration_s": 0.0, "host_per_sequence_s": 0.0}
        stages.append(
            kind(
                share,
                gpu,
                parallelism=parallelism,
                interconnect=links,
                routing=routing,
                first_stage=number == 0,
                last_stage=number == len(shares) - 1,
                **given,
            )
        )
    if len(stages) == 1:
        return stages[0]
    return PipelineLatency(
        stages,
        label=stages[0].label,
        links=[
            links.between_nodes if parallelism.send_crosses_nodes(number) else links
            for number in range(len(stages) - 1)
        ],
        bytes_per_token=model.hidden_size * DTYPE_BYTES[model.dtype],
        link_efficiency=settings.get("link_efficiency", LINK_EFFICIENCY),
    )
