"""The architecture of a Llama- or Qwen3-like decoder, as its kernels need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MODEL_TYPES = ("llama", "mistral", "qwen3", "qwen3_moe")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of a decoder-only transformer with rotary positions, RMSNorm and gated MLPs.

    ``num_experts`` 0 is a dense MLP of ``intermediate_size``; otherwise every layer is a mixture of
    experts of ``moe_intermediate_size``. ``window`` 0 is full attention.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: Mapping[str, object] | None = None
    tie_word_embeddings: bool = False
    qk_norm: bool = False
    window: int = 0
    num_experts: int = 0
    experts_per_token: int = 0
    moe_intermediate_size: int = 0
    renormalize_experts: bool = True

    @property
    def qkv_features(self) -> int:
        """Columns of the packed query, key and value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @classmethod
    def from_hugging_face(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read a Hugging Face ``config.json`` mapping.

        Raises: ValueError for a model type or a feature that the kernels do not cover.
        """
        model_type = config.get("model_type")
        if model_type not in MODEL_TYPES:
            allowed = ", ".join(MODEL_TYPES)
            raise ValueError(f"model_type: must be one of {allowed}, got {model_type!r}")
        for key in ("attention_bias", "mlp_bias"):
            if config.get(key):
                raise ValueError(f"{key}: biases are not supported")
        is_moe = model_type == "qwen3_moe"
        mixed = config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1
        if is_moe and mixed:
            raise ValueError("mlp_only_layers: dense layers among expert layers are not supported")
        heads = config["num_attention_heads"]
        uses_window = config.get("use_sliding_window", model_type == "mistral")
        rope = config.get("rope_parameters") or {}
        return cls(
            hidden_size=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads", heads),
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate_size=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            max_positions=config["max_position_embeddings"],
            rms_norm_eps=config.get("rms_norm_eps", 1e-6),
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
            rope_scaling=config.get("rope_scaling") or (rope if "factor" in rope else None),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            qk_norm=model_type.startswith("qwen3"),
            window=(config.get("sliding_window") or 0) if uses_window else 0,
            num_experts=config["num_experts"] if is_moe else 0,
            experts_per_token=config["num_experts_per_tok"] if is_moe else 0,
            moe_intermediate_size=config["moe_intermediate_size"] if is_moe else 0,
            renormalize_experts=bool(config.get("norm_topk_prob", True)),
        )
