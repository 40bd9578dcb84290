"""A decoder-only transformer composed of the kernels: Llama, Qwen, Gemma and gpt-oss.

    h ← h + attention(norm(h)),   h ← h + mlp(norm(h)),   logits = norm(h) Wᵀ

Gemma norms what attention and MLP give before it is added, too.

One forward pass serves a mixed batch, packed: first the tokens of decoding sequences, then the new
tokens of prefilling ones. Everything but attention runs on all tokens at once (selective batching,
Orca, OSDI 2022). All new keys and values are written to the paged cache before attention reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch

from kernels.checks import HALF_TYPES, Backend, LinearBackend, float_types, require, require_backend
from kernels.decode_attention import decode_attention
from kernels.embedding import embedding
from kernels.float8 import Float8Weight, float8_linear
from kernels.float8 import stacked as stacked_float8
from kernels.kv_cache_write import kv_cache_write
from kernels.linear import Product, fastest_backend, linear
from kernels.model_config import ModelConfig
from kernels.moe import moe
from kernels.mxfp4 import PARTS, widened
from kernels.paged_cache import FLOAT8
from kernels.prefill_attention import prefill_attention
from kernels.rms_norm import rms_norm
from kernels.rotary import rotary_table
from kernels.swiglu_mlp import gate_up, gated, swiglu_mlp


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """What one forward pass computes; T tokens of D decoding and P prefilling sequences.

    The first ``num_decodes · query_len`` tokens belong to the decoding sequences, ``query_len``
    each; rows of ``block_tables`` and ``context_lens`` have the same order.
    """

    token_ids: torch.Tensor  # [T] int32/int64; negative in padded rows
    positions: torch.Tensor  # [T] int32/int64; 0 in padded rows
    slot_mapping: torch.Tensor  # [T] int32/int64; negative in padded rows
    block_tables: torch.Tensor  # [D + P, max_blocks] int32/int64
    context_lens: torch.Tensor  # [D + P] int32/int64, these tokens included; 0 in padded rows
    num_decodes: int = 0
    query_len: int = 1
    cu_seqlens: torch.Tensor | None = None  # [P + 1], from 0 at the first prefill token
    tree_mask: torch.Tensor | None = None  # [num_decodes · query_len], see `decode_attention`
    tree_len: int | None = None
    has_past: bool = True  # whether any prefilling sequence has earlier tokens in the cache


Weight: TypeAlias = torch.Tensor | Float8Weight


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The tensors of one decoder layer; dense layers have no expert tensors, and vice versa.

    Dense products may have weights in float8.
    """

    input_norm: torch.Tensor  # [hidden]
    qkv: Weight  # [qkv_features, hidden], query rows, key rows, value rows
    output: Weight  # [hidden, num_heads · head_dim]
    mlp_norm: torch.Tensor  # [hidden]
    q_norm: torch.Tensor | None = None  # [head_dim]
    k_norm: torch.Tensor | None = None  # [head_dim]
    gate_up: Weight | None = None  # [2 · intermediate, hidden]
    down: Weight | None = None  # [hidden, intermediate]
    router: torch.Tensor | None = None  # [num_experts, hidden]
    experts_gate_up: torch.Tensor | None = None  # [num_experts, 2 · moe_intermediate, hidden]
    experts_down: torch.Tensor | None = None  # [num_experts, hidden, moe_intermediate]
    post_attention_norm: torch.Tensor | None = None  # [hidden]
    post_mlp_norm: torch.Tensor | None = None  # [hidden]
    qkv_bias: torch.Tensor | None = None  # [qkv_features]
    output_bias: torch.Tensor | None = None  # [hidden]
    sinks: torch.Tensor | None = None  # [num_heads]
    router_bias: torch.Tensor | None = None  # [num_experts]
    experts_gate_up_bias: torch.Tensor | None = None  # [num_experts, 2 · moe_intermediate]
    experts_down_bias: torch.Tensor | None = None  # [num_experts, hidden]
    k_scale: float = 1.0  # of a float8 KV cache
    v_scale: float = 1.0

    def tensors(self) -> list[torch.Tensor]:
        """Those that are present."""
        found: list[torch.Tensor] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Float8Weight):
                found += [value.values, value.scales]
            elif isinstance(value, torch.Tensor):
                found.append(value)
        return found


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, head_dim = config.hidden_size, config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_norm": (hidden,),
        "qkv": (config.qkv_features, hidden),
        "output": (hidden, config.num_heads * head_dim),
        "mlp_norm": (hidden,),
    }
    if config.qk_norm:
        shapes |= {"q_norm": (head_dim,), "k_norm": (head_dim,)}
    if config.post_norms:
        shapes |= {"post_attention_norm": (hidden,), "post_mlp_norm": (hidden,)}
    if config.qkv_bias:
        shapes["qkv_bias"] = (config.qkv_features,)
    if config.output_bias:
        shapes["output_bias"] = (hidden,)
    if config.sinks:
        shapes["sinks"] = (config.num_heads,)
    if config.num_experts:
        experts, width = config.num_experts, config.moe_intermediate_size
        if config.expert_bias:
            shapes |= {
                "router_bias": (experts,),
                "experts_gate_up_bias": (experts, 2 * width),
                "experts_down_bias": (experts, hidden),
            }
        shapes |= {
            "router": (experts, hidden),
            "experts_gate_up": (experts, 2 * width, hidden),
            "experts_down": (experts, hidden, width),
        }
    else:
        width = config.intermediate_size
        shapes |= {"gate_up": (2 * width, hidden), "down": (hidden, width)}
    return shapes


# Our fused tensors by the Hugging Face tensors stacked in them, below "model.layers.N.".
_SOURCES: dict[str, tuple[str, ...]] = {
    "input_norm": ("input_layernorm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "q_norm": ("self_attn.q_norm",),
    "k_norm": ("self_attn.k_norm",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
    "router": ("mlp.gate",),
    "experts_gate_up": ("gate_proj", "up_proj"),
    "experts_down": ("down_proj",),
    "qkv_bias": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output_bias": ("self_attn.o_proj",),
    "router_bias": ("mlp.router",),
    "post_attention_norm": ("post_attention_layernorm",),
    "post_mlp_norm": ("post_feedforward_layernorm",),
}
_PREFIXES = ("model.", "language_model.model.", "model.language_model.")


def _is_norm(name: str) -> bool:
    return name.endswith("norm")


def _cache_scales(layer: LayerWeights, cache: torch.Tensor) -> dict[str, Any]:
    """Those of a float8 cache; none of another."""
    if cache.dtype != FLOAT8:
        return {}
    return {"k_scale": layer.k_scale, "v_scale": layer.v_scale}


class Transformer:
    """A model's weights and its forward pass.

    Args:
        config: its architecture.
        embeddings: [vocab_size, hidden].
        layers: one ``LayerWeights`` a layer.
        final_norm: [hidden].
        head: [vocab_size, hidden]; the embeddings themselves where they are tied.
        backend: of every kernel.
        linear_backend: of the dense products; ``fastest`` measures cuBLAS against our kernel on
            the first pass of each token bucket (run one before capturing a CUDA graph).
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        embeddings: torch.Tensor,
        layers: list[LayerWeights],
        final_norm: torch.Tensor,
        head: torch.Tensor,
        backend: Backend = "triton",
        linear_backend: LinearBackend | None = None,
    ) -> None:
        require_backend(backend, embeddings)
        given = len(layers) == config.num_layers
        require(given, f"layers: {config.num_layers} are needed, got {len(layers)}")
        self.config = config
        self.embeddings, self.layers = embeddings, layers
        self.final_norm, self.head = final_norm, head
        self.backend: Backend = backend
        self.linear_backend = linear_backend or backend
        # As the working dtype holds it.
        self.embedding_scale = float(torch.tensor(config.embedding_scale, dtype=embeddings.dtype))
        positions = (config.head_dim, config.max_positions)
        device = embeddings.device
        self.table = rotary_table(
            *positions, theta=config.rope_theta, scaling=config.rope_scaling, device=device
        )
        self.local_table = self.table  # of layers with a window
        if config.local_rope_theta:
            self.local_table = rotary_table(
                *positions, theta=config.local_rope_theta, device=device
            )

    @classmethod
    def random(
        cls,
        config: ModelConfig,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cuda",
        backend: Backend = "triton",
        linear_backend: LinearBackend | None = None,
    ) -> Transformer:
        """Weights drawn so that activations keep their scale; norms are 1.

        ``generator`` must be on ``device``. On the ``meta`` device nothing is allocated, which is
        enough to count bytes.
        """
        allowed = float_types() if backend == "triton" else (*HALF_TYPES, torch.float32)
        require(dtype in allowed, f"dtype: must be bf16 or fp16, got {dtype}")

        def draw(shape: tuple[int, ...], name: str = "") -> torch.Tensor:
            if len(shape) == 1 and (not name or _is_norm(name)):
                kind = torch.float32 if config.norm_offset else dtype
                return torch.ones(shape, dtype=kind, device=device)
            weight = torch.empty(shape, dtype=dtype, device=device)
            return weight.normal_(0.0, shape[-1] ** -0.5, generator=generator)

        shapes = _layer_shapes(config)
        embeddings = draw((config.vocab_size, config.hidden_size))
        return cls(
            config,
            embeddings=embeddings,
            layers=[
                LayerWeights(**{name: draw(shape, name) for name, shape in shapes.items()})
                for _ in range(config.num_layers)
            ],
            final_norm=draw((config.hidden_size,)),
            head=embeddings if config.tie_word_embeddings else draw(tuple(embeddings.shape)),
            backend=backend,
            linear_backend=linear_backend,
        )

    @classmethod
    def from_tensors(
        cls,
        config: ModelConfig,
        tensors: Mapping[str, torch.Tensor],
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cuda",
        backend: Backend = "triton",
        linear_backend: LinearBackend | None = None,
    ) -> Transformer:
        """Weights under their Hugging Face names, as safetensors files hold them.

        Dense weights in float8 stay so, with the scales that the checkpoint has beside them
        (``weight_scale_inv`` a block of 128 × 128, ``weight_scale`` a channel or tensor; those of
        experts are widened).

        ``tensors`` is asked for one name at a time, so a mapping that reads a file on access keeps
        one copy in memory. Raises: ValueError for a missing name or a wrong shape.
        """

        first = f"{_PREFIXES[0]}embed_tokens.weight"
        model = next((p for p in _PREFIXES if f"{p}embed_tokens.weight" in tensors), None)
        require(model is not None, f"tensors: {first} is missing")

        def get(name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
            if name not in tensors:
                raise ValueError(f"tensors: {name} is missing")
            tensor = tensors[name]
            fits = shape is None or tuple(tensor.shape) == shape
            require(fits, f"tensors: {name} must be {shape}, got {tuple(tensor.shape)}")
            if config.norm_offset and name.removesuffix(".weight").endswith("norm"):
                return tensor.to(device=device, dtype=torch.float32) + 1.0
            return tensor.to(device=device, dtype=dtype)

        def get_weight(name: str) -> Weight:
            values = tensors.get(name)
            if values is None or values.dtype != FLOAT8:
                return get(name)
            found = [end for end in ("_scale_inv", "_scale") if f"{name}{end}" in tensors]
            require(bool(found), f"tensors: {name}_scale is missing")
            scales = tensors[f"{name}{found[0]}"].to(device=device, dtype=torch.float32)
            by_block = found[0] == "_scale_inv"
            scales = scales.contiguous() if by_block else scales.reshape(-1)
            return Float8Weight(values.to(device), scales)

        def stacked(prefix: str, names: tuple[str, ...], kind: str = "weight") -> Weight:
            parts = [get_weight(f"{prefix}{name}.{kind}") for name in names]
            narrow = [part for part in parts if isinstance(part, Float8Weight)]
            if narrow:
                alike = len(narrow) == len(parts)
                require(alike, f"tensors: {prefix}{names} mix float8 and others")
                return stacked_float8(narrow)
            wide = [part for part in parts if isinstance(part, torch.Tensor)]
            return wide[0].contiguous() if len(wide) == 1 else torch.cat(wide)

        def scale(prefix: str, which: str) -> float:
            name = f"{prefix}self_attn.{which}_scale"
            return float(tensors[name]) if name in tensors else 1.0

        sources = dict(_SOURCES)
        if config.post_norms:
            sources["mlp_norm"] = ("pre_feedforward_layernorm",)
        if config.expert_bias:
            sources["router"] = ("mlp.router",)

        def get_packed(prefix: str, name: str) -> torch.Tensor:
            """gpt-oss's tensor of all experts: transposed, gate and up rows by turns."""
            stem = "gate_up_proj" if "gate_up" in name else "down_proj"
            bias = name.endswith("_bias")
            if bias:
                weight = get(f"{prefix}{stem}_bias")
            elif f"{prefix}{stem}_blocks" in tensors:
                blocks, scales = (tensors[f"{prefix}{stem}_{part}"] for part in PARTS)
                weight = widened(blocks, scales).to(device=device, dtype=dtype)
            else:
                weight = get(f"{prefix}{stem}").transpose(1, 2)
            if stem == "gate_up_proj":
                weight = torch.cat((weight[:, ::2], weight[:, 1::2]), dim=1)
            shape = _layer_shapes(config)[name]
            fits = tuple(weight.shape) == shape
            require(fits, f"tensors: {prefix}{stem} must be {shape}, got {tuple(weight.shape)}")
            return weight.contiguous()

        def layer(index: int) -> LayerWeights:
            prefix = f"{model}layers.{index}."
            weights: dict[str, Any] = {}
            for name, shape in _layer_shapes(config).items():
                if config.expert_bias and name.startswith("experts_"):
                    weight = get_packed(f"{prefix}mlp.experts.", name)
                elif name.startswith("experts_"):
                    weight = torch.empty(shape, dtype=dtype, device=device)
                    for expert in range(config.num_experts):
                        of_expert = stacked(f"{prefix}mlp.experts.{expert}.", _SOURCES[name])
                        if isinstance(of_expert, Float8Weight):
                            of_expert = of_expert.widened(dtype)
                        fits = of_expert.shape == weight[expert].shape
                        require(fits, f"tensors: {prefix}{name} does not fit {shape}")
                        weight[expert] = of_expert
                elif name == "sinks":
                    weight = get(f"{prefix}self_attn.sinks", shape)
                else:
                    kind = "bias" if name.endswith("_bias") else "weight"
                    weight = stacked(prefix, sources[name], kind)
                    fits = tuple(weight.shape) == shape
                    require(
                        fits,
                        f"tensors: {prefix}{name} must be {shape}, got {tuple(weight.shape)}",
                    )
                weights[name] = weight
            scales = {f"{which}_scale": scale(prefix, which) for which in "kv"}
            return LayerWeights(**weights, **scales)

        table = (config.vocab_size, config.hidden_size)
        embeddings = get(f"{model}embed_tokens.weight", table).contiguous()
        tied = config.tie_word_embeddings
        return cls(
            config,
            embeddings=embeddings,
            layers=[layer(index) for index in range(config.num_layers)],
            final_norm=get(f"{model}norm.weight", (config.hidden_size,)),
            head=embeddings if tied else get("lm_head.weight", table).contiguous(),
            backend=backend,
            linear_backend=linear_backend,
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, tied ones once; the rotary table is not a weight."""
        tensors = [self.embeddings, self.final_norm]
        if self.head is not self.embeddings:
            tensors.append(self.head)
        tensors += [tensor for layer in self.layers for tensor in layer.tensors()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        config = self.config
        element_bytes: int = self.embeddings.element_size()
        return 2 * config.num_layers * config.num_kv_heads * config.head_dim * element_bytes

    def new_kv_cache(
        self, num_blocks: int, block_size: int = 16, *, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """A zeroed cache: [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim].

        In the weights' dtype, or float8_e4m3fn if asked for.
        """
        config = self.config
        shape = (
            config.num_layers, 2, num_blocks, block_size, config.num_kv_heads, config.head_dim
        )  # fmt: skip
        kind = dtype or self.embeddings.dtype
        return torch.zeros(shape, dtype=kind, device=self.embeddings.device)

    def forward(self, batch: ForwardBatch, kv_cache: torch.Tensor) -> torch.Tensor:
        """Hidden states after the final norm, [T, hidden]; new keys and values go to the cache."""
        config, backend = self.config, self.backend
        eps = config.rms_norm_eps
        residual = embedding(
            batch.token_ids,
            self.embeddings,
            scale=self.embedding_scale,
            backend="torch" if backend == "best" else backend,  # torch's own refuses padded ids
        )
        hidden = rms_norm(residual, self.layers[0].input_norm, eps=eps, backend=backend)
        for index, layer in enumerate(self.layers):
            if index > 0:
                hidden = rms_norm(
                    hidden, layer.input_norm, residual=residual, eps=eps, backend=backend
                )
            hidden = self._attention(hidden, layer, batch, kv_cache[index], index)
            if layer.post_attention_norm is not None:
                hidden = rms_norm(hidden, layer.post_attention_norm, eps=eps, backend=backend)
            hidden = rms_norm(hidden, layer.mlp_norm, residual=residual, eps=eps, backend=backend)
            hidden = self._mlp(hidden, layer)
            if layer.post_mlp_norm is not None:
                hidden = rms_norm(hidden, layer.post_mlp_norm, eps=eps, backend=backend)
        return rms_norm(hidden, self.final_norm, residual=residual, eps=eps, backend=backend)

    def logits(self, hidden: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of the given rows of ``hidden`` (all by default): [num_rows, vocab_size]."""
        if rows is not None:
            hidden = hidden.index_select(0, rows)
        logits, cap = self._linear(hidden, self.head), self.config.logit_softcap
        return logits.div_(cap).tanh_().mul_(cap) if cap else logits

    def _linear(
        self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        if isinstance(weight, Float8Weight):
            return float8_linear(x, weight, bias=bias, backend=self.backend)
        return linear(x, weight, bias=bias, backend=self._backend_for(x, weight))

    def _backend_for(
        self, x: torch.Tensor, weight: torch.Tensor, product: Product = linear
    ) -> Backend:
        if self.linear_backend == "fastest":
            return fastest_backend(x.shape[0], weight, product=product)
        return self.linear_backend

    def _mlp(self, hidden: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
        config = self.config
        if isinstance(layer.gate_up, Float8Weight) or isinstance(layer.down, Float8Weight):
            assert layer.gate_up is not None and layer.down is not None
            both = self._linear(hidden, layer.gate_up)
            product = gated(both, activation=config.activation, backend=self.backend)
            return self._linear(product, layer.down)
        if layer.gate_up is not None and layer.down is not None:
            return swiglu_mlp(
                hidden,
                layer.gate_up,
                layer.down,
                activation=config.activation,
                backend=self._backend_for(hidden, layer.gate_up, gate_up),
                down_backend=self._backend_for(hidden, layer.down),
            )
        assert layer.router is not None
        assert layer.experts_gate_up is not None
        assert layer.experts_down is not None
        return moe(
            hidden,
            layer.router,
            layer.experts_gate_up,
            layer.experts_down,
            top_k=config.experts_per_token,
            renormalize=config.renormalize_experts,
            activation=config.activation,
            router_bias=layer.router_bias,
            gate_up_bias=layer.experts_gate_up_bias,
            down_bias=layer.experts_down_bias,
            backend=self.backend,
        )

    def _attention(
        self,
        hidden: torch.Tensor,
        layer: LayerWeights,
        batch: ForwardBatch,
        layer_cache: torch.Tensor,
        index: int,
    ) -> torch.Tensor:
        config, backend = self.config, self.backend
        packed = self._linear(hidden, layer.qkv, layer.qkv_bias).unflatten(1, (-1, config.head_dim))
        heads, kv_heads = config.num_heads, config.num_kv_heads
        q, k, v = packed.split([heads, kv_heads, kv_heads], dim=1)
        k_cache, v_cache = layer_cache[0], layer_cache[1]
        reads_packed = batch.cu_seqlens is not None and not batch.has_past
        kv_cache_write(
            q,
            k,
            v,
            k_cache=k_cache,
            v_cache=v_cache,
            slot_mapping=batch.slot_mapping,
            positions=batch.positions,
            table=self.local_table if config.is_sliding(index) else self.table,
            q_norm_weight=layer.q_norm,
            k_norm_weight=layer.k_norm,
            eps=config.rms_norm_eps,
            update_k=reads_packed,
            **_cache_scales(layer, k_cache),
            backend=backend,
        )
        attended = self.attend(q, k, v, batch, layer_cache, index=index)
        return self._linear(attended.flatten(1), layer.output, layer.output_bias)

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        batch: ForwardBatch,
        layer_cache: torch.Tensor,
        *,
        index: int = 0,
    ) -> torch.Tensor:
        """Attention of one layer, new keys and values already written and rotated.

        Args:
            q: [T, num_heads, head_dim]; k, v: [T, num_kv_heads, head_dim], of the same tokens.
            layer_cache: [2, num_blocks, block_size, num_kv_heads, head_dim].
            index: of the layer: whether it has the window, and its sinks.

        Returns: [T, num_heads, head_dim], contiguous.
        """
        config, backend = self.config, self.backend
        reads_packed = batch.cu_seqlens is not None and not batch.has_past
        k_cache, v_cache = layer_cache[0], layer_cache[1]
        options: dict[str, Any] = {
            "scale": config.attention_scale or None,
            "window": config.window_of(index),
            "softcap": config.softcap,
            "sinks": self.layers[index].sinks,
            "backend": backend,
        }
        decodes, decode_tokens = batch.num_decodes, batch.num_decodes * batch.query_len
        parts = []
        if decodes:
            parts.append(
                decode_attention(
                    q[:decode_tokens],
                    k_cache,
                    v_cache,
                    block_tables=batch.block_tables[:decodes],
                    context_lens=batch.context_lens[:decodes],
                    query_len=batch.query_len,
                    tree_mask=batch.tree_mask,
                    tree_len=batch.tree_len,
                    **_cache_scales(self.layers[index], k_cache),
                    **options,
                )
            )
        if batch.cu_seqlens is not None:
            past: dict[str, Any] = {
                "block_tables": batch.block_tables[decodes:],
                "context_lens": batch.context_lens[decodes:],
                **_cache_scales(self.layers[index], k_cache),
            }
            parts.append(
                prefill_attention(
                    q[decode_tokens:],
                    k[decode_tokens:] if reads_packed else k_cache,
                    v[decode_tokens:] if reads_packed else v_cache,
                    cu_seqlens=batch.cu_seqlens,
                    **({} if reads_packed else past),
                    **options,
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)
