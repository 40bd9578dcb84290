"""A layer of a decoder: how its tokens look at one another, and its MLP.

A `Mixer` is any way in which a token learns of those before it. What they have in common is what a
simulator asks: matrices, numbers a token leaves in the cache, how many tokens back are looked at,
FLOPs for each of them, and a state that does not grow.

    full           every token before; keys and values of every token are kept
    sliding        the last ``window`` tokens; what is behind them can be freed
    chunked        those of the same chunk of ``window`` tokens (Llama 4)
    latent         multi-head latent attention: one latent a token (DeepSeek-V2, section 2.1)
    sparse         an indexer scores all tokens and picks ``selected`` (DeepSeek-V3.2)
    linear, state  a state of fixed size (Gated DeltaNet, Mamba, short convolutions)
    shared         full or sliding over an earlier layer's cache (Gemma 3n)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from sim.model.matrix import Formats, Matrix, Share
from sim.model.weight_format import WeightFormat


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """Mixture of experts: ``num_layers`` layers of ``num_experts`` experts of this width.

    ``shared_intermediate_size`` is the width of the always-active shared expert (0: none).
    """

    num_layers: int
    num_experts: int
    experts_per_token: int
    intermediate_size: int
    shared_intermediate_size: int = 0


@dataclass(frozen=True, slots=True)
class MlaSpec:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): low-rank queries and a KV latent."""

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Numbers cached per token and layer, whatever the number of heads."""
        return self.kv_lora_rank + self.qk_rope_head_dim


@dataclass(frozen=True, slots=True)
class Mixer:
    """One way tokens look at one another; see the module's docstring for the kinds.

    ``cache`` are the numbers a token leaves in the KV cache, ``cache_bytes`` what it leaves beside
    them in a type of its own (an indexer's keys). ``pair_flops`` is for one head and (query, key)
    in a prefill, ``context_flops`` the same in a decode; ``index_flops`` for all heads of an
    indexer, ``token_flops`` for a token's update of a state. ``state_bytes`` is a sequence's,
    whatever its length. ``parameters`` are those that are in no matrix.
    """

    kind: str
    matrices: tuple[Matrix, ...]
    num_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    v_head_dim: int = 0
    cache: tuple[Share, ...] = ()
    cache_bytes: int = 0
    window: int | None = None
    selected: int | None = None
    pair_flops: int = 0
    context_flops: int = 0
    index_flops: int = 0
    token_flops: int = 0
    state_bytes: int = 0
    parameters: int = 0
    latent: MlaSpec | None = None
    compression: int = 1  # tokens that leave one entry in the cache together
    borrowed: bool = False  # another layer's cache is read, nothing is kept

    @property
    def label(self) -> str:
        """The kind and its number, for people."""
        words = self.kind
        if self.window is not None:
            words += f" {self.window:,}"
        if self.compression > 1:
            words += f", 1 of {self.compression}"
        if self.selected is not None:
            words += f", top {self.selected:,}"
        return words

    @property
    def attends(self) -> bool:
        """Whether it scores tokens one by one, so that a context's length costs."""
        return self.num_heads > 0

    def heads_on_gpu(self, tensor_parallel: int) -> int:
        return self.num_heads // tensor_parallel

    def read_bytes(self, bytes_each: int, tensor_parallel: int) -> int:
        """Bytes of a token's keys and values that a query reads on each GPU, an indexer's apart."""
        numbers = sum(share.on_gpu(tensor_parallel) for share in self.cache)
        return numbers * bytes_each // self.compression

    def cached_bytes(self, bytes_each: int, tensor_parallel: int) -> int:
        """Bytes one token leaves in the cache of each GPU."""
        if self.borrowed:
            return 0
        beside = self.cache_bytes // self.compression
        return self.read_bytes(bytes_each, tensor_parallel) + beside


@dataclass(frozen=True, slots=True)
class Layer:
    """Mixers (in parallel where there are two), an MLP, and what is in no matrix (``parameters``).

    ``mlp`` are the matrices that every token passes, ``experts`` those of one routed expert.
    ``reductions`` counts the all-reduces of tensor parallelism: two, or one where attention and MLP
    are added up together.
    """

    mixers: tuple[Mixer, ...]
    mlp: tuple[Matrix, ...] = ()
    experts: tuple[Matrix, ...] = ()
    moe: MoeSpec | None = None
    parameters: int = 0
    reductions: int = 2
    gated: bool = True

    @property
    def label(self) -> str:
        """Attention and MLP in words."""
        mixed = " + ".join(mixer.label for mixer in self.mixers)
        if self.moe is not None:
            shared = " + shared" if self.moe.shared_intermediate_size else ""
            mlp = f"{self.moe.num_experts} experts, {self.moe.experts_per_token} a token{shared}"
        else:
            mlp = "dense MLP" if self.mlp else ""
        return "; ".join(part for part in (mixed, mlp) if part)

    @property
    def has_dense_mlp(self) -> bool:
        return bool(self.mlp) and self.moe is None

    @property
    def dense_width(self) -> int:
        """Inputs of the dense MLP's last matrix; 0 without one."""
        down = [one for one in self.mlp if one.kind == "down"]
        return down[0].inputs.units if down and isinstance(down[0].inputs, Share) else 0

    def matrices(self) -> tuple[Matrix, ...]:
        """Those that every token passes, attention's first."""
        return (*(one for mixer in self.mixers for one in mixer.matrices), *self.mlp)

    def formatted(self, formats: Formats) -> Layer:
        """The same layer, its weights as ``formats`` says of their modules."""
        return self._changed(lambda matrix: matrix.formatted(formats))

    def quantised(self, weights: WeightFormat) -> Layer:
        """The same layer in this format, but for what is in its type already."""
        return self._changed(lambda matrix: matrix.quantised(weights))

    def rescaled(self, weights: WeightFormat) -> Layer:
        """The same layer, what is in this format's type in this format."""
        return self._changed(lambda matrix: matrix.rescaled(weights))

    def _changed(self, change: Callable[[Matrix], Matrix]) -> Layer:
        return replace(
            self,
            mixers=tuple(
                replace(mixer, matrices=tuple(map(change, mixer.matrices))) for mixer in self.mixers
            ),
            mlp=tuple(map(change, self.mlp)),
            experts=tuple(map(change, self.experts)),
        )
