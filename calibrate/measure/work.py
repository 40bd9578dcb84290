"""Operations and least bytes of each part, whole model, for the roofline of a calibration."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.model_config import ModelConfig
from sim.latency.attention_table import pairs


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations (a multiply-add is two) and bytes that must move."""

    flops: float
    bytes: float


class WorkOf:
    """Work by part and point (the part's columns in order) of one model in 16-bit types."""

    def __init__(self, config: ModelConfig, *, block_size: int, element_bytes: int = 2) -> None:
        self.config = config
        self.block_size = block_size
        self.element_bytes = element_bytes
        self._attended = config.num_heads * config.head_dim
        self._kv_features = 2 * config.num_kv_heads * config.head_dim

    def __call__(self, part: str, point: tuple[int, ...]) -> Work:
        """Of one pass through all layers. Parts without arithmetic of note give only bytes."""
        found: Work = getattr(self, f"_{part}")(*point)
        return Work(found.flops, found.bytes * self.element_bytes)

    def _linear(self, tokens: int) -> Work:
        config = self.config
        hidden, layers = config.hidden_size, config.num_layers
        qkv, attended = config.qkv_features, self._attended
        weights = hidden * (qkv + attended)
        # Two norms with their residuals; products' inputs and outputs; rotary with the cache write.
        moved = 8 * hidden + (hidden + qkv) + (2 * qkv) + (attended + hidden)
        if not config.num_experts:
            weights += 3 * hidden * config.intermediate_size
            moved += 2 * (hidden + config.intermediate_size)
        return Work(
            2.0 * tokens * weights * layers,
            layers * (weights + float(tokens) * moved) + 2.0 * tokens * hidden,
        )

    def _logits(self, sequences: int) -> Work:
        hidden, vocabulary = self.config.hidden_size, self.config.vocab_size
        moved = hidden * vocabulary + sequences * (hidden + 2 * vocabulary)
        return Work(2.0 * sequences * hidden * vocabulary, float(moved))

    def _prefill_attention(self, new: int, cached: int) -> Work:
        layers = self.config.num_layers
        scored = pairs(new, cached)
        moved = 2 * new * self._attended + (new + cached) * self._kv_features
        return Work(4.0 * layers * self._attended * scored, float(layers * moved))

    def _decode_attention(self, sequences: int, context: int) -> Work:
        layers, total = self.config.num_layers, sequences * context
        moved = 2 * sequences * self._attended + total * self._kv_features
        return Work(4.0 * layers * self._attended * total, float(layers * moved))

    def _decode_skew(self, sequences: int, context: int, longest: int) -> Work:
        del longest
        return self._decode_attention(sequences, context)

    def _moe(self, tokens: int, experts: int) -> Work:
        config = self.config
        weights = 3 * config.hidden_size * config.moe_intermediate_size
        rows = tokens * config.experts_per_token
        moved = experts * weights + rows * 2 * (config.hidden_size + config.moe_intermediate_size)
        return Work(2.0 * config.num_layers * rows * weights, float(config.num_layers * moved))

    def _swap(self, blocks: int) -> Work:
        moved = blocks * self.block_size * self._kv_features * self.config.num_layers
        return Work(0.0, float(moved))

    def _copy(self, blocks: int) -> Work:
        return Work(0.0, 2 * self._swap(blocks).bytes)

    def _host(self, sequences: int) -> Work:
        del sequences
        return Work(0.0, 0.0)
