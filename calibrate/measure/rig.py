"""What a calibration measures on: a random model and its cache, how far to go, a timer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from calibrate.device.timer import Call, Timer
from calibrate.measure.batches import Lengths, emitting_rows, forward_batch
from kernels.checks import Backend, LinearBackend
from kernels.logits_and_sample import sample
from kernels.model_config import ModelConfig
from kernels.transformer import ForwardBatch, LayerWeights, Transformer


@dataclass(frozen=True, slots=True)
class Limits:
    """How far to measure: tokens of a pass, sequences, tokens of context, tokens in the cache."""

    max_tokens: int
    max_seqs: int
    max_context: int
    cache_tokens: int

    def holds(self, lengths: Lengths, block_size: int) -> bool:
        """Whether a batch lies within, its blocks included."""
        return (
            lengths.num_tokens <= self.max_tokens
            and lengths.num_seqs <= self.max_seqs
            and lengths.num_blocks(block_size) * block_size <= self.cache_tokens
        )


class _SameWeights(Transformer):
    """A model on the weights of another."""

    def __init__(self, model: Transformer) -> None:
        super().__init__(
            model.config,
            embeddings=model.embeddings,
            layers=model.layers,
            final_norm=model.final_norm,
            head=model.head,
            backend=model.backend,
            linear_backend=model.linear_backend,
        )


class WithoutAttention(_SameWeights):
    """A model's pass without attention and experts."""

    def __init__(self, model: Transformer, max_tokens: int) -> None:
        super().__init__(model)
        config = model.config
        shape = (max_tokens, config.num_heads, config.head_dim)
        like = model.embeddings
        self._attended = torch.empty(shape, dtype=like.dtype, device=like.device).normal_()

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
        """What attention would return, made up beforehand."""
        return self._attended[: len(q)]

    def _mlp(self, hidden: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
        return hidden if self.config.num_experts else super()._mlp(hidden, layer)


class TimedAttention(_SameWeights):
    """A model's whole pass that knows how much of its time was attention; for eager passes."""

    def __init__(self, model: Transformer, clock: Callable[[], float]) -> None:
        super().__init__(model)
        self._clock, self._attention_s = clock, 0.0

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
        """As the model's, timed."""
        began = self._clock()
        attended = super().attend(q, k, v, batch, layer_cache, index=index)
        self._attention_s += self._clock() - began
        return attended

    def attention_s(self, batch: ForwardBatch, kv_cache: torch.Tensor) -> float:
        """Seconds of attention in one pass, a layer."""
        self._attention_s = 0.0
        self.forward(batch, kv_cache)
        return self._attention_s / self.config.num_layers

    def rest_s(self, batch: ForwardBatch, kv_cache: torch.Tensor) -> float:
        """Seconds of one pass without its attention."""
        self._attention_s = 0.0
        began = self._clock()
        self.forward(batch, kv_cache)
        return self._clock() - began - self._attention_s


class Rig:
    """A model with random weights, its cache full of random tokens, and a timer."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        timer: Timer,
        limits: Limits,
        block_size: int = 16,
        dtype: torch.dtype = torch.bfloat16,
        seed: int = 0,
        linear_backend: LinearBackend | None = None,
    ) -> None:
        device = timer.device
        generator = torch.Generator(device).manual_seed(seed)
        backend: Backend = "triton" if timer.on_gpu else "torch"
        self.timer, self.limits, self.block_size = timer, limits, block_size
        self.config, self.dtype, self.device = config, dtype, device
        self.model = Transformer.random(
            config,
            generator=generator,
            dtype=dtype,
            device=device,
            backend=backend,
            linear_backend=linear_backend,
        )
        self.bare = WithoutAttention(self.model, limits.max_tokens)
        self.timed = TimedAttention(self.model, timer.clock)
        self.num_blocks = -(-limits.cache_tokens // block_size)
        self.kv_cache = self.model.new_kv_cache(self.num_blocks, block_size)
        for layer in self.kv_cache:
            layer.normal_(generator=generator)
        self.block_order = np.random.default_rng(seed).permutation(self.num_blocks)

    def batch(self, lengths: Lengths) -> ForwardBatch:
        """The batch's tensors on the device."""
        return forward_batch(
            lengths,
            block_order=self.block_order,
            block_size=self.block_size,
            vocab_size=self.config.vocab_size,
            device=self.device,
            width=-(-self.limits.max_context // self.block_size),
        )

    def iteration(self, lengths: Lengths) -> Call:
        """A whole iteration but the host's part: the pass, its logits, its tokens."""
        batch, rows = self.batch(lengths), emitting_rows(lengths, self.device)

        def run() -> torch.Tensor:
            hidden = self.model.forward(batch, self.kv_cache)
            return self.emitted(hidden.index_select(0, rows))

        return run

    def emitted(self, hidden: torch.Tensor) -> torch.Tensor:
        """Greedy tokens of these rows and whether their logits are finite, as the engine does."""
        logits = self.model.logits(hidden)
        tokens = sample(logits, backend=self.model.backend)
        chosen = logits.gather(1, tokens.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        finite = chosen.isfinite() & hidden.sum(dim=1, dtype=torch.float32).isfinite()
        return torch.where(finite, tokens, -1)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device).normal_()

    def layers(self, bytes_per_call: float) -> range:
        """Layers that take turns in a measurement."""
        if not self.timer.on_gpu:
            return range(self.config.num_layers)
        return range(min(self.config.num_layers, self.timer.rotations(bytes_per_call)))
