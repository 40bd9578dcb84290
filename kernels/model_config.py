"""The architecture of a decoder as its kernels need it: Llama, Qwen, Gemma, gpt-oss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kernels.swiglu_mlp import Activation

MODEL_TYPES = (
    "llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "gpt_oss",
)  # fmt: skip

# What a configuration of these types may leave out: the defaults of transformers.
_GEMMA = {
    "tie_word_embeddings": True,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 4096,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma2": _GEMMA
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_every": 2},
    "gemma3_text": _GEMMA
    | {
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "sliding_every": 6,
    },
    "gpt_oss": {"rope_theta": 150_000.0, "rms_norm_eps": 1e-5, "sliding_every": 2},
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of a decoder-only transformer with rotary positions, RMSNorm and gated MLPs.

    ``num_experts`` 0 is a dense MLP of ``intermediate_size``; otherwise every layer is a mixture of
    experts of ``moe_intermediate_size``. ``window`` 0 is full attention; otherwise it is that of
    the layers that ``sliding`` names, of all where it is empty.
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
    local_rope_theta: float = 0.0  # of layers with a window, unscaled; 0: as the others
    tie_word_embeddings: bool = False
    qk_norm: bool = False
    window: int = 0
    sliding: tuple[bool, ...] = ()  # a layer each
    attention_scale: float = 0.0  # 0: 1 / √head_dim
    softcap: float = 0.0  # of attention's scores
    logit_softcap: float = 0.0
    sinks: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    post_norms: bool = False  # of what attention and the MLP give, before it is added
    norm_offset: bool = False  # a norm's weight is 1 + what is stored
    embedding_scale: float = 1.0
    activation: Activation = "silu"
    num_experts: int = 0
    experts_per_token: int = 0
    moe_intermediate_size: int = 0
    renormalize_experts: bool = True
    expert_bias: bool = False  # of router and experts

    @property
    def qkv_features(self) -> int:
        """Columns of the packed query, key and value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    def is_sliding(self, layer: int) -> bool:
        """Whether a layer's attention has the window."""
        return self.window > 0 and (not self.sliding or self.sliding[layer])

    def window_of(self, layer: int) -> int:
        """Keys a query of this layer sees, itself included; 0 for all."""
        return self.window if self.is_sliding(layer) else 0

    @classmethod
    def from_hugging_face(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read a Hugging Face ``config.json`` mapping; of Gemma 3 its ``text_config`` too.

        Raises: ValueError for a model type or a feature that the kernels do not cover.
        """
        config = config.get("text_config") or config
        model_type = config.get("model_type")
        if model_type not in MODEL_TYPES:
            allowed = ", ".join(MODEL_TYPES)
            raise ValueError(f"model_type: must be one of {allowed}, got {model_type!r}")
        config = _DEFAULTS.get(model_type, {}) | dict(config)
        is_gemma, is_gpt_oss = model_type.startswith("gemma"), model_type == "gpt_oss"
        biases = ("mlp_bias",) if is_gpt_oss else ("attention_bias", "mlp_bias")
        for key in biases:
            if config.get(key):
                raise ValueError(f"{key}: biases are not supported")
        is_moe = model_type in ("qwen3_moe", "gpt_oss")
        mixed = config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1
        if is_moe and mixed:
            raise ValueError("mlp_only_layers: dense layers among expert layers are not supported")
        heads = config["num_attention_heads"]
        sliding = _sliding(config) if is_gemma or is_gpt_oss else ()
        uses_window = config.get("use_sliding_window", model_type == "mistral" or bool(sliding))
        rope = config.get("rope_parameters") or {}
        local = rope.get("sliding_attention", {})
        rope = rope.get("full_attention", rope)
        local_theta = local.get("rope_theta", config.get("rope_local_base_freq", 0.0))
        experts = config.get("num_experts", config.get("num_local_experts", 0)) if is_moe else 0
        width_key = "intermediate_size" if is_gpt_oss else "moe_intermediate_size"
        scalar = config.get("query_pre_attn_scalar") if is_gemma else None
        activation = config.get("hidden_activation") if is_gemma else "silu"
        if is_gemma and activation != "gelu_pytorch_tanh":
            raise ValueError(f"hidden_activation: gelu_pytorch_tanh is supported, got {activation}")
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
            local_rope_theta=float(local_theta),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            qk_norm=model_type.startswith("qwen3") or model_type == "gemma3_text",
            window=(config.get("sliding_window") or 0) if uses_window else 0,
            sliding=sliding,
            attention_scale=0.0 if scalar is None else float(scalar) ** -0.5,
            softcap=float(config.get("attn_logit_softcapping") or 0.0),
            logit_softcap=float(config.get("final_logit_softcapping") or 0.0),
            sinks=is_gpt_oss,
            qkv_bias=model_type == "qwen2" or is_gpt_oss,
            output_bias=is_gpt_oss,
            post_norms=is_gemma,
            norm_offset=is_gemma,
            embedding_scale=config["hidden_size"] ** 0.5 if is_gemma else 1.0,
            activation="gelu" if is_gemma else "clamped" if is_gpt_oss else "silu",
            num_experts=experts,
            experts_per_token=config["num_experts_per_tok"] if is_moe else 0,
            moe_intermediate_size=config[width_key] if is_moe else 0,
            renormalize_experts=bool(config.get("norm_topk_prob", True)),
            expert_bias=is_gpt_oss,
        )


def _sliding(config: Mapping[str, Any]) -> tuple[bool, ...]:
    """Which layers have a window: as the configuration lists them, else all but every n-th."""
    if config.get("layer_types"):
        return tuple(kind == "sliding_attention" for kind in config["layer_types"])
    every = config.get("sliding_window_pattern") or config["sliding_every"]
    return tuple((layer + 1) % every != 0 for layer in range(config["num_hidden_layers"]))
