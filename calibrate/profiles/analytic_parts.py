"""What nobody measured, analytic: the roofline's own times at the points of a table's grids."""

from __future__ import annotations

import numpy as np

from sim.batch import Batch, PrefillChunk
from sim.latency.roofline import RooflineLatency
from sim.latency.together import slowest_share
from sim.model.hardware import Gpu
from sim.model.spec import LinearOperation, ModelSpec
from sim.request import Request

# Where a part has no measured points of its own it gets these.
ROWS = tuple(2**n for n in range(15))  # 1 to 16,384
SEQUENCES = tuple(2**n for n in range(11))  # 1 to 1,024
CONTEXTS = tuple(2**n for n in range(4, 18))  # 16 to 131,072


class AnalyticParts(RooflineLatency):
    """The parts of one rank's iteration one by one, in µs of the whole model."""

    def __init__(
        self, model: ModelSpec, gpu: Gpu, *, tensor_parallel: int, kv_cache_dtype: str
    ) -> None:
        super().__init__(
            model,
            gpu,
            tensor_parallel=tensor_parallel,
            kv_cache_dtype=kv_cache_dtype,
            host_per_iteration_s=0.0,
            host_per_sequence_s=0.0,
            max_num_batched_tokens=0,
            max_num_seqs=0,
        )
        self._given: tuple[int, str] = (tensor_parallel, kv_cache_dtype)

    def of_layers(self, model: ModelSpec) -> AnalyticParts:
        """The same of some of the model's layers."""
        degree, kv_cache_dtype = self._given
        return AnalyticParts(model, self.gpu, tensor_parallel=degree, kv_cache_dtype=kv_cache_dtype)

    def product_us(self, operation: LinearOperation) -> list[tuple[int, float]]:
        """All copies of one product: (rows, µs)."""
        times_s = self._linear_s(operation, np.array(ROWS, dtype=float))
        return list(zip(ROWS, (times_s * 1e6).tolist(), strict=True))

    def experts_us(self, ranks: int = 1) -> list[tuple[int, float]]:
        """The routed experts of all layers: (tokens, µs).

        Shared out to `ranks` GPUs: those of the slowest, by the tokens of all.
        """
        if ranks == 1:
            times_s = self._experts_s(np.array(ROWS, dtype=float))
        else:
            assert self.model.moe is not None
            held = self.model.moe.num_experts // ranks
            rows, activated = slowest_share(self.routing, np.array(ROWS), ranks)
            times_s = self._grouped_s(ranks, rows / held, activated / held, tensor_parallel=1)
        return list(zip(ROWS, (times_s * 1e6).tolist(), strict=True))

    def prefill_us(self) -> dict[tuple[int, int], float]:
        """Attention of a lone prompt by (new, cached) tokens."""
        asker = Request(0, 0.0, 1, 1, 1)
        return {
            (new, cached): self._attention_us(Batch(prefills=[PrefillChunk(asker, new, cached)]))
            for new in ROWS
            for cached in (0, *CONTEXTS)
        }

    def decode_us(self) -> dict[tuple[int, int], float]:
        """Attention of decodes by (sequences, context tokens of each)."""
        return {
            (sequences, context): self._attention_us(
                Batch(num_decodes=sequences, context_tokens=sequences * context)
            )
            for sequences in SEQUENCES
            for context in CONTEXTS
        }

    def _attention_us(self, batch: Batch) -> float:
        """A batch without tokens has nothing but attention, less its launches."""
        return (self.iteration_s(batch) + self._attention_launch_s) * 1e6
