"""Every tensor of a transformer's layer by name and shape: its weights, and what training keeps.

Shapes are in b (sequences at once), s (tokens of each), h (hidden size), i (width of the MLP), n
(heads), k (key/value heads), d (head dimension) and v (vocabulary). Mixtures have also e (experts),
a (experts of a token), j (an expert's width) and j' (the shared expert's); latent attention c (the
keys' and values' latent with its rotary part), q (the queries' latent), d (of queries and keys) and
d' (of values).

What the backward pass needs, 16 bits each, counted as Korthikanti et al. 2022 ("Reducing Activation
Recomputation", section 4.1) count GPT's 34 h + 5 a s:

- inputs of both norms, of the attention and of the MLP: 4 x hidden;
- queries, keys, values, and the input of the output projection; with a fused attention kernel
  one float32 log-sum per head, else the softmax's output for every (query, key) pair;
- MLP: the outputs of its up (and gate) matrices and the input of its down matrix; with a gate also
  the activated gate. Experts: that of every chosen one, with its input and its output;
- dropout, where there is any: a mask of one byte for the outputs of attention and MLP, and of the
  scores a mask and the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sim.model.spec import ModelSpec

HALF, SINGLE = 2, 4  # bytes
Checkpointing = Literal["none", "layer"]


@dataclass(frozen=True, slots=True)
class ActivationSettings:
    """What decides the activations: tokens at once, and what is kept of them.

    ``fused_attention``: no scores are stored (FlashAttention). ``dropout``: masks are.
    """

    micro_batch: int = 1
    sequence_length: int = 4096
    checkpointing: Checkpointing = "layer"
    fused_attention: bool = True
    dropout: bool = False

    @property
    def tokens(self) -> int:
        return self.micro_batch * self.sequence_length


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: its shape in letters, elements and bytes of each.

    ``whole``: every tensor-parallel rank has all of it (Shoeybi et al. 2019, section 3), as inputs
    and outputs of the norms; others are divided among them.
    """

    name: str
    shape: str
    elements: int
    bytes_each: int = HALF
    whole: bool = False

    @property
    def num_bytes(self) -> int:
        return self.elements * self.bytes_each

    def on_rank(self, tensor_parallel: int) -> float:
        """Bytes of it on each of so many tensor-parallel ranks."""
        return self.num_bytes if self.whole else self.num_bytes / tensor_parallel


def lists_tensors_of(model: ModelSpec) -> bool:
    """Whether every layer attends with heads or latents: others' tensors have no names here."""
    return all(mixer.kind in ("full", "sliding", "latent") for mixer in model.mixers)


def layer_weights(model: ModelSpec, *, experts: bool = False) -> list[Tensor]:
    """The matrices of a dense layer, or of one with experts. ValueError for layers of others."""
    _check(model, experts)
    h = model.hidden_size
    found = list(_attention_weights(model))
    if experts:
        assert model.moe is not None
        e, j, shared = (
            model.moe.num_experts,
            model.moe.intermediate_size,
            model.moe.shared_intermediate_size,
        )
        found.append(Tensor("router", "(h, e)", h * e, whole=True))
        found += [Tensor(name, "(e, h, j)", e * h * j) for name in _matrices(model)[:-1]]
        found.append(Tensor("down", "(e, j, h)", e * j * h))
        if shared:
            found += [
                Tensor(f"shared {name}", "(h, j')", h * shared) for name in _matrices(model)[:-1]
            ]
            found.append(Tensor("shared down", "(j', h)", shared * h))
    else:
        i = model.intermediate_size
        found += [Tensor(name, "(h, i)", h * i) for name in _matrices(model)[:-1]]
        found.append(Tensor("down", "(i, h)", i * h))
    return [
        *found,
        *(Tensor(f"{where} norm", "(h)", h, whole=True) for where in ("first", "second")),
    ]


def outer_weights(model: ModelSpec) -> list[Tensor]:
    """What lies outside the layers: the embedding, the head (where it is another), the norm."""
    h, v = model.hidden_size, model.vocab_size
    head = [] if model.tie_word_embeddings else [Tensor("head", "(h, v)", h * v)]
    return [Tensor("embedding", "(v, h)", v * h), *head, Tensor("last norm", "(h)", h, whole=True)]


def layer_activations(
    model: ModelSpec, settings: ActivationSettings, *, experts: bool = False
) -> list[Tensor]:
    """What a dense layer, or one with experts, keeps for its backward pass."""
    tokens = settings.tokens
    wide = tokens * model.hidden_size

    def outside(name: str, size: int = wide, bytes_each: int = HALF) -> Tensor:
        return Tensor(name, "(b, s, h)", size, bytes_each, whole=True)

    found = [
        outside("input of the attention's norm"),
        outside("input of attention"),
        *_attention_activations(model, settings),
        outside("input of the MLP's norm"),
        outside("input of the MLP"),
        *(_expert_activations(model, tokens) if experts else _mlp(model, tokens)),
    ]
    if settings.dropout:
        found += [
            outside(f"mask of {what}'s dropout", wide, 1) for what in ("attention", "the MLP")
        ]
    return found


def outer_activations(model: ModelSpec, settings: ActivationSettings) -> list[Tensor]:
    """What the last norm and the head keep, and the loss: logits in 32 bits."""
    wide, tokens = settings.tokens * model.hidden_size, settings.tokens
    return [
        Tensor("input of the last norm", "(b, s, h)", wide, whole=True),
        Tensor("input of the head", "(b, s, h)", wide, whole=True),
        Tensor("logits", "(b, s, v)", tokens * model.vocab_size, SINGLE),
    ]


def embedding_mask(model: ModelSpec, settings: ActivationSettings) -> int:
    """Bytes of the mask of the embedding's dropout."""
    return settings.tokens * model.hidden_size if settings.dropout else 0


def _check(model: ModelSpec, experts: bool) -> None:
    if not lists_tensors_of(model):
        raise ValueError(f"{model.name}: tensors are listed of layers that attend with heads")
    if experts and model.moe is None:
        raise ValueError(f"{model.name} has no experts")


def _matrices(model: ModelSpec) -> list[str]:
    return ["gate", "up", "down"] if model.gated_mlp else ["up", "down"]


def _attention_weights(model: ModelSpec) -> Iterator[Tensor]:
    h, n = model.hidden_size, model.num_attention_heads
    if model.mla is None:
        q, kv = n * model.head_dim, model.num_kv_heads * model.head_dim
        yield Tensor("query", "(h, n d)", h * q)
        yield Tensor("key", "(h, k d)", h * kv)
        yield Tensor("value", "(h, k d)", h * kv)
        yield Tensor("output", "(n d, h)", q * h)
        return
    mla = model.mla
    q = n * mla.qk_head_dim
    if mla.q_lora_rank is None:
        yield Tensor("query", "(h, n d)", h * q)
    else:
        yield Tensor("query, down", "(h, q)", h * mla.q_lora_rank, whole=True)
        yield Tensor("query, up", "(q, n d)", mla.q_lora_rank * q)
    yield Tensor("latent", "(h, c)", h * mla.latent_dim, whole=True)
    up = n * (mla.qk_nope_head_dim + mla.v_head_dim)
    yield Tensor("keys and values, up", "(c, n (d + d'))", mla.kv_lora_rank * up)
    yield Tensor("output", "(n d', h)", n * mla.v_head_dim * h)


def _attention_activations(model: ModelSpec, settings: ActivationSettings) -> Iterator[Tensor]:
    tokens, n = settings.tokens, model.num_attention_heads
    if model.mla is None:
        kv = tokens * model.num_kv_heads * model.head_dim
        yield Tensor("queries", "(b, n, s, d)", tokens * n * model.head_dim)
        yield Tensor("keys", "(b, k, s, d)", kv)
        yield Tensor("values", "(b, k, s, d)", kv)
        projected, shape = n * model.head_dim, "(b, s, n d)"
    else:
        mla = model.mla
        if mla.q_lora_rank:
            yield Tensor("queries' latent", "(b, s, q)", tokens * mla.q_lora_rank, whole=True)
        yield Tensor("latent", "(b, s, c)", tokens * mla.latent_dim, whole=True)
        for what in ("queries", "keys"):
            yield Tensor(what, "(b, n, s, d)", tokens * n * mla.qk_head_dim)
        yield Tensor("values", "(b, n, s, d')", tokens * n * mla.v_head_dim)
        projected, shape = n * mla.v_head_dim, "(b, s, n d')"
    if settings.fused_attention:
        yield Tensor("log-sums of the scores", "(b, n, s)", tokens * n, SINGLE)
    else:
        pairs = tokens * n * settings.sequence_length
        yield Tensor("scores", "(b, n, s, s)", pairs)
        if settings.dropout:
            yield Tensor("mask of the scores' dropout", "(b, n, s, s)", pairs, 1)
            yield Tensor("scores after dropout", "(b, n, s, s)", pairs)
    yield Tensor("input of the output projection", shape, tokens * projected)


def _mlp(
    model: ModelSpec,
    tokens: int,
    *,
    width: int | None = None,
    shape: str = "(b, s, i)",
    of: str = "",
) -> list[Tensor]:
    names = ("gate", "up", "activated gate", "input of down")
    if not model.gated_mlp:
        names = ("up", "input of down")  # type: ignore[assignment]
    each = tokens * (model.intermediate_size if width is None else width)
    return [Tensor(of + name, shape, each) for name in names]


def _expert_activations(model: ModelSpec, tokens: int) -> Iterator[Tensor]:
    moe = model.moe
    assert moe is not None
    yield Tensor("router's logits", "(b, s, e)", tokens * moe.num_experts, SINGLE, whole=True)
    chosen = tokens * moe.experts_per_token
    yield Tensor("inputs of experts", "(b, s, a, h)", chosen * model.hidden_size, whole=True)
    yield from _mlp(
        model, chosen, width=moe.intermediate_size, shape="(b, s, a, j)", of="experts' "
    )
    yield Tensor("outputs of experts", "(b, s, a, h)", chosen * model.hidden_size, whole=True)
    if moe.shared_intermediate_size:
        yield from _mlp(
            model, tokens, width=moe.shared_intermediate_size, shape="(b, s, j')", of="shared "
        )
