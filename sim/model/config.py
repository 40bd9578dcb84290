"""Hugging Face ``config.json`` -> `ModelSpec`: the keys that each family of models uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim.model.quantization import Quantization, read_quantization
from sim.model.spec import MlaSpec, ModelSpec, MoeSpec

MODEL_TYPES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "mixtral",
    "deepseek_v3",
    "opt",
    "gpt2",
    "gpt3",
)


def read_config(config: Mapping[str, Any], *, name: str) -> ModelSpec:
    """The architecture that a Hugging Face configuration describes.

    Raises ``ValueError``, one line, on an unknown ``model_type``, a missing or bad key, or a
    quantisation that is not understood.
    """
    keys = _Keys(config, name)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        given = f"unknown model_type {model_type!r}"
        what = "model_type is missing" if model_type is None else given
        raise ValueError(f"{name}: {what}; understood: {', '.join(MODEL_TYPES)}")
    if model_type in ("gpt2", "gpt3"):
        fields = _gpt2_fields(keys)
    elif model_type == "opt":
        fields = _opt_fields(keys)
    else:
        fields = _llama_fields(keys, model_type)
    dtype = keys.dtype()
    quantization = keys.quantization(dtype)
    spec = ModelSpec(
        name=name,
        model_type=model_type,
        dtype=dtype,
        weight_dtype=quantization.weight_dtype,
        float8_scales=quantization.float8_scales,
        vocab_size=keys.integer("vocab_size"),
        **fields,
    )
    if spec.num_attention_heads % spec.num_kv_heads:
        raise ValueError(
            f"{name}: num_key_value_heads {spec.num_kv_heads} does not divide "
            f"num_attention_heads {spec.num_attention_heads}"
        )
    return spec


def _llama_fields(keys: _Keys, model_type: str) -> dict[str, Any]:
    """llama, mistral, qwen2, qwen3, qwen3_moe, mixtral and deepseek_v3 share these names."""
    layers = keys.integer("num_hidden_layers")
    bias = keys.flag("attention_bias")
    mla = _mla(keys) if model_type == "deepseek_v3" else None
    heads = keys.integer("num_attention_heads")
    return {
        "hidden_size": keys.integer("hidden_size"),
        "num_layers": layers,
        "num_attention_heads": heads,
        "num_kv_heads": keys.integer("num_key_value_heads", heads),
        "head_dim": mla.qk_head_dim if mla else keys.head_dim("hidden_size", "num_attention_heads"),
        "intermediate_size": keys.integer("intermediate_size"),
        "max_position_embeddings": keys.integer("max_position_embeddings"),
        "tie_word_embeddings": keys.flag("tie_word_embeddings"),
        "qkv_bias": bias or model_type == "qwen2",  # Qwen2 has it unconditionally
        "o_bias": bias,
        "mlp_bias": keys.flag("mlp_bias"),
        "qk_norm": model_type.startswith("qwen3"),
        "moe": _moe(keys, model_type, layers),
        "mla": mla,
    }


def _opt_fields(keys: _Keys) -> dict[str, Any]:
    hidden, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    if keys.integer("word_embed_proj_dim", hidden) != hidden:
        raise ValueError(f"{keys.name}: word_embed_proj_dim must equal hidden_size {hidden}")
    positions = keys.integer("max_position_embeddings")
    bias = keys.flag("enable_bias", True)
    return {
        "hidden_size": hidden,
        "num_layers": keys.integer("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_kv_heads": heads,
        "head_dim": keys.head_dim("hidden_size", "num_attention_heads"),
        "intermediate_size": keys.integer("ffn_dim"),
        "max_position_embeddings": positions,
        "position_rows": positions + 2,  # OPT's position table starts at row 2
        "tie_word_embeddings": keys.flag("tie_word_embeddings", True),
        "gated_mlp": False,
        "layer_norm": True,
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": bias,
    }


def _gpt2_fields(keys: _Keys) -> dict[str, Any]:
    hidden, heads = keys.integer("n_embd"), keys.integer("n_head")
    positions = keys.integer("n_positions")
    return {
        "hidden_size": hidden,
        "num_layers": keys.integer("n_layer"),
        "num_attention_heads": heads,
        "num_kv_heads": heads,
        "head_dim": keys.head_dim("n_embd", "n_head"),
        "intermediate_size": keys.integer("n_inner", 4 * hidden),
        "max_position_embeddings": positions,
        "position_rows": positions,
        "tie_word_embeddings": keys.flag("tie_word_embeddings", True),
        "gated_mlp": False,
        "layer_norm": True,
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
    }


def _mla(keys: _Keys) -> MlaSpec:
    rank = keys.config.get("q_lora_rank")
    return MlaSpec(
        q_lora_rank=None if rank is None else keys.integer("q_lora_rank"),
        kv_lora_rank=keys.integer("kv_lora_rank"),
        qk_nope_head_dim=keys.integer("qk_nope_head_dim"),
        qk_rope_head_dim=keys.integer("qk_rope_head_dim"),
        v_head_dim=keys.integer("v_head_dim"),
    )


def _moe(keys: _Keys, model_type: str, layers: int) -> MoeSpec | None:
    if model_type == "mixtral":
        experts, width = keys.integer("num_local_experts"), keys.integer("intermediate_size")
        sparse, shared = layers, 0
    elif model_type == "qwen3_moe":
        experts, width = keys.integer("num_experts"), keys.integer("moe_intermediate_size")
        step, dense = keys.integer("decoder_sparse_step", 1), keys.config.get("mlp_only_layers")
        if not isinstance(dense or [], list):
            raise ValueError(f"{keys.name}: mlp_only_layers must be a list, not {dense!r}")
        sparse = sum((i + 1) % step == 0 and i not in (dense or []) for i in range(layers))
        shared = 0
    elif model_type == "deepseek_v3":
        experts, width = keys.integer("n_routed_experts"), keys.integer("moe_intermediate_size")
        first = keys.integer("first_k_dense_replace", 0, least=0)
        step = keys.integer("moe_layer_freq", 1)
        sparse = sum(i >= first and i % step == 0 for i in range(layers))
        shared = keys.integer("n_shared_experts", 0, least=0) * width
    else:
        return None
    chosen = keys.integer("num_experts_per_tok")
    if chosen > experts:
        raise ValueError(f"{keys.name}: num_experts_per_tok {chosen} exceeds {experts} experts")
    if sparse == 0:
        return None
    router_bias = keys.config.get("topk_method", "noaux_tc") == "noaux_tc"
    return MoeSpec(
        num_layers=sparse,
        num_experts=experts,
        experts_per_token=chosen,
        intermediate_size=width,
        shared_intermediate_size=shared,
        router_bias=model_type == "deepseek_v3" and router_bias,
    )


@dataclass(frozen=True, slots=True)
class _Keys:
    """A configuration whose reads name the model and the key when they fail."""

    config: Mapping[str, Any]
    name: str

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        value = self.config.get(key)
        if value is None:
            if default is None:
                kind = self.config["model_type"]
                raise ValueError(f"{self.name}: config key {key} is missing (model_type {kind})")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{self.name}: {key} must be an integer >= {least}, not {value!r}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ValueError(f"{self.name}: {key} must be true or false, not {value!r}")
        return value

    def head_dim(self, hidden_key: str, heads_key: str) -> int:
        hidden, heads = self.integer(hidden_key), self.integer(heads_key)
        if self.config.get("head_dim") is not None:
            return self.integer("head_dim")
        if hidden % heads:
            raise ValueError(
                f"{self.name}: {heads_key} {heads} does not divide {hidden_key} {hidden}"
            )
        return hidden // heads

    def dtype(self) -> str:
        """Activation dtype; like vLLM, float32 (also HF's default) is served in 16 bits."""
        value = self.config.get("torch_dtype") or self.config.get("dtype") or "float32"
        if value in ("float32", "float"):
            return "float16"
        if value not in ("bfloat16", "float16"):
            raise ValueError(
                f"{self.name}: torch_dtype {value!r} is not understood; "
                "understood: bfloat16, float16, float32"
            )
        return str(value)

    def quantization(self, dtype: str) -> Quantization:
        given = self.config.get("quantization_config")
        if given is None:
            return Quantization(dtype)
        try:
            return read_quantization(given)
        except ValueError as error:
            raise ValueError(f"{self.name}: quantization_config {error}") from None
