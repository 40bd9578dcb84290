"""A decoder-only transformer composed of the kernels (Llama and Qwen3, dense or experts).

    h ← h + attention(norm(h)),   h ← h + mlp(norm(h)),   logits = norm(h) Wᵀ

One forward pass serves a mixed batch, packed: first the tokens of decoding sequences, then the new
tokens of prefilling ones. Everything but attention runs on all tokens at once (selective batching,
Orca, OSDI 2022). All new keys and values are written to the paged cache before attention reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch

from kernels.checks import HALF_TYPES, Backend, LinearBackend, float_types, require, require_backend
from kernels.decode_attention import decode_attention
from kernels.embedding import embedding
from kernels.kv_cache_write import kv_cache_write
from kernels.linear import Product, fastest_backend, linear
from kernels.model_config import ModelConfig
from kernels.moe import moe
from kernels.prefill_attention import prefill_attention
from kernels.rms_norm import rms_norm
from kernels.rotary import rotary_table
from kernels.swiglu_mlp import gate_up, swiglu_mlp


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


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The tensors of one decoder layer; dense layers have no expert tensors, and vice versa."""

    input_norm: torch.Tensor  # [hidden]
    qkv: torch.Tensor  # [qkv_features, hidden], query rows, key rows, value rows
    output: torch.Tensor  # [hidden, num_heads · head_dim]
    mlp_norm: torch.Tensor  # [hidden]
    q_norm: torch.Tensor | None = None  # [head_dim]
    k_norm: torch.Tensor | None = None  # [head_dim]
    gate_up: torch.Tensor | None = None  # [2 · intermediate, hidden]
    down: torch.Tensor | None = None  # [hidden, intermediate]
    router: torch.Tensor | None = None  # [num_experts, hidden]
    experts_gate_up: torch.Tensor | None = None  # [num_experts, 2 · moe_intermediate, hidden]
    experts_down: torch.Tensor | None = None  # [num_experts, hidden, moe_intermediate]

    def tensors(self) -> list[torch.Tensor]:
        """Those that are present."""
        values = (getattr(self, field.name) for field in fields(self))
        return [value for value in values if value is not None]


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
    if config.num_experts:
        experts, width = config.num_experts, config.moe_intermediate_size
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
}


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
        self.table = rotary_table(
            config.head_dim,
            config.max_positions,
            theta=config.rope_theta,
            scaling=config.rope_scaling,
            device=embeddings.device,
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

        def draw(shape: tuple[int, ...]) -> torch.Tensor:
            if len(shape) == 1:
                return torch.ones(shape, dtype=dtype, device=device)
            weight = torch.empty(shape, dtype=dtype, device=device)
            return weight.normal_(0.0, shape[-1] ** -0.5, generator=generator)

        shapes = _layer_shapes(config)
        embeddings = draw((config.vocab_size, config.hidden_size))
        return cls(
            config,
            embeddings=embeddings,
            layers=[
                LayerWeights(**{name: draw(shape) for name, shape in shapes.items()})
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

        ``tensors`` is asked for one name at a time, so a mapping that reads a file on access keeps
        one copy in memory. Raises: ValueError for a missing name or a wrong shape.
        """

        def get(name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
            if name not in tensors:
                raise ValueError(f"tensors: {name} is missing")
            tensor = tensors[name]
            fits = shape is None or tuple(tensor.shape) == shape
            require(fits, f"tensors: {name} must be {shape}, got {tuple(tensor.shape)}")
            return tensor.to(device=device, dtype=dtype)

        def stacked(prefix: str, names: tuple[str, ...]) -> torch.Tensor:
            parts = [get(f"{prefix}{name}.weight") for name in names]
            return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)

        def layer(index: int) -> LayerWeights:
            prefix = f"model.layers.{index}."
            weights: dict[str, torch.Tensor] = {}
            for name, shape in _layer_shapes(config).items():
                if name.startswith("experts_"):
                    weight = torch.empty(shape, dtype=dtype, device=device)
                    for expert in range(config.num_experts):
                        of_expert = stacked(f"{prefix}mlp.experts.{expert}.", _SOURCES[name])
                        fits = of_expert.shape == weight[expert].shape
                        require(fits, f"tensors: {prefix}{name} does not fit {shape}")
                        weight[expert] = of_expert
                else:
                    weight = stacked(prefix, _SOURCES[name])
                    fits = tuple(weight.shape) == shape
                    require(
                        fits,
                        f"tensors: {prefix}{name} must be {shape}, got {tuple(weight.shape)}",
                    )
                weights[name] = weight
            return LayerWeights(**weights)

        table = (config.vocab_size, config.hidden_size)
        embeddings = get("model.embed_tokens.weight", table).contiguous()
        tied = config.tie_word_embeddings
        return cls(
            config,
            embeddings=embeddings,
            layers=[layer(index) for index in range(config.num_layers)],
            final_norm=get("model.norm.weight", (config.hidden_size,)),
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

    def new_kv_cache(self, num_blocks: int, block_size: int = 16) -> torch.Tensor:
        """A zeroed cache: [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim]."""
        config = self.config
        shape = (
            config.num_layers, 2, num_blocks, block_size, config.num_kv_heads, config.head_dim
        )  # fmt: skip
        return torch.zeros(shape, dtype=self.embeddings.dtype, device=self.embeddings.device)

    def forward(self, batch: ForwardBatch, kv_cache: torch.Tensor) -> torch.Tensor:
        """Hidden states after the final norm, [T, hidden]; new keys and values go to the cache."""
        config, backend = self.config, self.backend
        eps = config.rms_norm_eps
        residual = embedding(
            batch.token_ids,
            self.embeddings,
            backend="torch" if backend == "best" else backend,  # torch's own refuses padded ids
        )
        hidden = rms_norm(residual, self.layers[0].input_norm, eps=eps, backend=backend)
        for index, layer in enumerate(self.layers):
            if index > 0:
                hidden = rms_norm(
                    hidden, layer.input_norm, residual=residual, eps=eps, backend=backend
                )
            hidden = self._attention(hidden, layer, batch, kv_cache[index])
            hidden = rms_norm(hidden, layer.mlp_norm, residual=residual, eps=eps, backend=backend)
            hidden = self._mlp(hidden, layer)
        return rms_norm(hidden, self.final_norm, residual=residual, eps=eps, backend=backend)

    def logits(self, hidden: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of the given rows of ``hidden`` (all by default): [num_rows, vocab_size]."""
        if rows is not None:
            hidden = hidden.index_select(0, rows)
        return self._linear(hidden, self.head)

    def _linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return linear(x, weight, backend=self._backend_for(x, weight))

    def _backend_for(
        self, x: torch.Tensor, weight: torch.Tensor, product: Product = linear
    ) -> Backend:
        if self.linear_backend == "fastest":
            return fastest_backend(x.shape[0], weight, product=product)
        return self.linear_backend

    def _mlp(self, hidden: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
        config = self.config
        if layer.gate_up is not None and layer.down is not None:
            return swiglu_mlp(
                hidden,
                layer.gate_up,
                layer.down,
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
            backend=self.backend,
        )

    def _attention(
        self,
        hidden: torch.Tensor,
        layer: LayerWeights,
        batch: ForwardBatch,
        layer_cache: torch.Tensor,
    ) -> torch.Tensor:
        config, backend = self.config, self.backend
        packed = self._linear(hidden, layer.qkv).unflatten(1, (-1, config.head_dim))
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
            table=self.table,
            q_norm_weight=layer.q_norm,
            k_norm_weight=layer.k_norm,
            eps=config.rms_norm_eps,
            update_k=reads_packed,
            backend=backend,
        )
        attended = self.attend(q, k, v, batch, layer_cache)
        return self._linear(attended.flatten(1), layer.output)

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        batch: ForwardBatch,
        layer_cache: torch.Tensor,
    ) -> torch.Tensor:
        """Attention of one layer, new keys and values already written and rotated.

        Args:
            q: [T, num_heads, head_dim]; k, v: [T, num_kv_heads, head_dim], of the same tokens.
            layer_cache: [2, num_blocks, block_size, num_kv_heads, head_dim].

        Returns: [T, num_heads, head_dim], contiguous.
        """
        config, backend = self.config, self.backend
        reads_packed = batch.cu_seqlens is not None and not batch.has_past
        k_cache, v_cache = layer_cache[0], layer_cache[1]
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
                    window=config.window,
                    backend=backend,
                )
            )
        if batch.cu_seqlens is not None:
            past = {
                "block_tables": batch.block_tables[decodes:],
                "context_lens": batch.context_lens[decodes:],
            }
            parts.append(
                prefill_attention(
                    q[decode_tokens:],
                    k[decode_tokens:] if reads_packed else k_cache,
                    v[decode_tokens:] if reads_packed else v_cache,
                    cu_seqlens=batch.cu_seqlens,
                    **({} if reads_packed else past),
                    window=config.window,
                    backend=backend,
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)
