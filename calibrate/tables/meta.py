"""What every latency table's meta.yaml says, however the table came about."""

from __future__ import annotations

from typing import Any

from sim.model.spec import ModelSpec


def model_shape(model: ModelSpec) -> dict[str, Any]:
    """What a table remembers of the model it was measured for."""
    shape: dict[str, Any] = {
        "name": model.name,
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
    }
    if model.moe is not None:
        shape["num_experts"] = model.moe.num_experts
        shape["experts_per_token"] = model.moe.experts_per_token
    return shape
