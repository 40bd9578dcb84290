"""An analytic model's times as a table: what is to be refined where nobody measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from calibrate.tables.meta import model_shape
from sim.batch import Batch, PrefillChunk
from sim.latency.roofline import RooflineLatency
from sim.request import Request

_TOKENS = tuple(2**n for n in range(15))  # 1 to 16,384
_SEQUENCES = tuple(2**n for n in range(11))  # 1 to 1,024
_CONTEXTS = tuple(2**n for n in range(4, 18))  # 16 to 131,072


def tabulated(latency: RooflineLatency) -> tuple[dict[str, Any], dict[str, list[tuple[Any, ...]]]]:
    """Meta and parts for `sim.latency.table_folder.write_table`, the host's time left out.

    Raises ValueError for a mixture of experts and for ranks beyond tensor parallelism.
    """
    model, gpus = latency.model, latency.parallelism
    beyond = gpus.num_gpus > gpus.tensor_parallel or gpus.decode_context_parallel > 1
    if model.moe is not None or beyond:
        raise ValueError(
            "source roofline is refined for dense models over tensor_parallel at most; measure a "
            "table, or name one"
        )
    nothing_s = latency.iteration_s(Batch())

    def us(batch: Batch) -> float:
        return (latency.iteration_s(batch) - nothing_s) * 1e6

    def linked_us(tokens: int, rows: int) -> float:
        counts = {"num_tokens": tokens, "num_emitting": rows, "num_seqs": 0, "swap_blocks": 0}
        known = latency.known_parts_s({key: np.array([value]) for key, value in counts.items()})
        return float(known["communication"][0]) * 1e6

    asker = Request(0, 0.0, 1, 1, 1)
    parts: dict[str, list[tuple[Any, ...]]] = {
        "linear": [("layers", n, us(Batch(num_tokens=n)) - linked_us(n, 0)) for n in _TOKENS],
        "logits": [("logits", n, us(Batch(num_emitting=n)) - linked_us(0, n)) for n in _SEQUENCES],
        "prefill_attention": [
            (new, cached, us(Batch(prefills=[PrefillChunk(asker, new, cached)])))
            for new in _TOKENS
            for cached in (0, *_CONTEXTS)
        ],
        "decode_attention": [
            (count, context, us(Batch(num_decodes=count, context_tokens=count * context)))
            for count in _SEQUENCES
            for context in _CONTEXTS
        ],
    }
    meta = {
        "source": latency.label,
        "gpu": latency.gpu.name,
        "model": model_shape(model),
        "dtype": model.weight_dtype,
        "tensor_parallel": latency.parallelism.tensor_parallel,
        "parts": {name: {"origin": "analytic", "by": "roofline"} for name in parts},
        "host_overhead_us": None,
    }
    return meta, parts
