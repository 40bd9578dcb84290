"""Attention with heads, as a configuration describes it: full, windowed, latent, sparse."""

from __future__ import annotations

from dataclasses import replace

from sim.model.config_keys import HEADS, KV_HEADS, Keys
from sim.model.families import Family
from sim.model.layers import Mixer, MlaSpec
from sim.model.matrix import Matrix, Share
from sim.model.weight_format import WeightFormat

INDEX_SCALE_BYTES = 4  # an indexer's keys lie in fp8 with a float32 scale (DeepSeek-V3.2-Exp)


def says(keys: Keys, answer: bool | str) -> bool:
    """A family's answer: itself, or what the key it names says."""
    if isinstance(answer, bool):
        return answer
    if answer == "noaux_tc":
        return bool(keys.get("topk_method") in (None, "noaux_tc"))
    return keys.flag(answer)


def kv_heads(keys: Keys, heads: int) -> int:
    """Key/value heads; as many as query heads where nothing is said."""
    if keys.model_type == "falcon":
        if not keys.flag("new_decoder_architecture"):
            return 1 if keys.flag("multi_query", default=True) else heads
        return keys.integer("num_kv_heads", default=heads)
    if keys.model_type == "chatglm" and keys.flag("multi_query_attention"):
        return keys.integer("multi_query_group_num")
    if keys.model_type == "gpt_bigcode":
        return 1 if keys.flag("multi_query", default=True) else heads
    return keys.integer(*KV_HEADS, default=heads)


def heads_attention(
    keys: Keys,
    family: Family,
    weights: WeightFormat,
    *,
    kind: str = "full",
    window: int | None = None,
    heads: int | None = None,
    kv: int | None = None,
    head_dim: int | None = None,
    v_head_dim: int | None = None,
    borrowed: bool = False,
    one_for_both: bool = False,
    sinks: bool | None = None,
) -> Mixer:
    """Multi-head attention, grouped or not.

    ``borrowed``: keys and values are an earlier layer's. ``one_for_both``: values are the keys
    (Gemma 4's global layers), cached as both all the same.
    """
    heads = keys.integer(*HEADS) if heads is None else heads
    kv = kv_heads(keys, heads) if kv is None else kv
    dim = keys.head_dim() if head_dim is None else head_dim
    v_dim = dim if v_head_dim is None else v_head_dim
    if heads % kv:
        raise ValueError(
            f"{keys.name}: num_key_value_heads {kv} does not divide num_attention_heads {heads}"
        )
    gate = family.output_gate if keys.get("attn_output_gate", "gating") is not False else ""
    query = Share("attention heads", heads, dim + {"": 0, "element": dim, "head": 1}[gate])
    key = Share("key/value heads", kv, dim, replicable=True)
    value = Share("key/value heads", kv, v_dim, replicable=True)
    kept = () if borrowed else (key,) if one_for_both else (key, value)
    out = Share("attention heads", heads, v_dim)
    hidden = keys.hidden
    parameters = _qk_norm(keys, family, heads, 0 if borrowed else kv, dim)
    if family.sinks if sinks is None else sinks:
        parameters += heads
    return Mixer(
        kind=kind,
        matrices=(
            Matrix(
                "qkv_proj", "qkv", hidden, (query, *kept), weights, "self_attn.q_proj",
                says(keys, family.qkv_bias),
            ),
            Matrix(
                "o_proj", "o", out, hidden, weights, "self_attn.o_proj", says(keys, family.o_bias)
            ),
        ),
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=dim,
        v_head_dim=v_dim,
        cache=(key, value),
        window=window,
        pair_flops=2 * (dim + v_dim),
        context_flops=2 * (dim + v_dim),
        parameters=parameters,
        borrowed=borrowed,
    )  # fmt: skip


def cross_attention(keys: Keys, weights: WeightFormat) -> Mixer:
    """Attention to an image's tokens alone (Llama 3.2 Vision): text leaves nothing in its cache."""
    like = heads_attention(keys, Family(qkv_bias=False, o_bias=False), weights)
    return Mixer(kind="cross", matrices=like.matrices, parameters=2 * like.head_dim + 2)


def _qk_norm(keys: Keys, family: Family, heads: int, kv: int, dim: int) -> int:
    """Parameters of the norms of queries and keys."""
    if not family.qk_norm:
        return 0
    if family.qk_norm_key and not keys.flag(family.qk_norm_key):
        return 0
    if family.qk_norm.startswith("head"):
        return (dim + (dim if kv else 0)) * (2 if "bias" in family.qk_norm else 1)
    return (heads + kv) * dim


def latent_attention(keys: Keys, weights: WeightFormat) -> Mixer:
    """Multi-head latent attention, with an indexer where there is one."""
    rank = keys.get("q_lora_rank")
    mla = MlaSpec(
        q_lora_rank=None if not rank else keys.integer("q_lora_rank"),
        kv_lora_rank=keys.integer("kv_lora_rank"),
        qk_nope_head_dim=keys.integer("qk_nope_head_dim"),
        qk_rope_head_dim=keys.integer("qk_rope_head_dim"),
        v_head_dim=keys.integer("v_head_dim"),
    )
    heads, hidden = keys.integer(*HEADS), keys.hidden
    queries = (Share("attention heads", heads, mla.qk_head_dim),)
    expanded = (Share("attention heads", heads, mla.qk_nope_head_dim + mla.v_head_dim),)
    out = Share("attention heads", heads, mla.v_head_dim)
    bias = keys.flag("attention_bias")

    def matrix(
        name: str, kind: str, inputs: int | Share, outputs: int | tuple[Share, ...],
        *, bias: bool = False, module: str = "",
    ) -> Matrix:  # fmt: skip
        module = f"self_attn.{module or name}"
        return Matrix(name, kind, inputs, outputs, weights, module, bias)

    if mla.q_lora_rank is None:
        first = [matrix("q_proj", "qkv", hidden, queries)]
    else:
        first = [
            matrix("q_a_proj", "latent", hidden, mla.q_lora_rank, bias=bias),
            matrix("q_b_proj", "qkv", mla.q_lora_rank, queries),
        ]
    mixer = Mixer(
        kind="latent",
        matrices=(
            *first,
            matrix(
                "kv_a_proj", "latent", hidden, mla.latent_dim, bias=bias,
                module="kv_a_proj_with_mqa",
            ),
            matrix("kv_b_proj", "qkv", mla.kv_lora_rank, expanded),
            matrix("o_proj", "o", out, hidden, bias=bias),
        ),
        num_heads=heads,
        num_kv_heads=keys.integer(*KV_HEADS, default=heads),
        head_dim=mla.qk_head_dim,
        v_head_dim=mla.v_head_dim,
        cache=(Share("latent", 1, mla.latent_dim, replicable=True),),
        pair_flops=2 * (mla.qk_head_dim + mla.v_head_dim),
        context_flops=2 * (mla.latent_dim + mla.kv_lora_rank),
        parameters=mla.kv_lora_rank + (mla.q_lora_rank or 0),
        latent=mla,
    )  # fmt: skip
    return _indexed(keys, mixer, weights) if keys.given("index_topk") else mixer


def _indexed(keys: Keys, mixer: Mixer, weights: WeightFormat) -> Mixer:
    """With DeepSeek-V3.2's lightning indexer: it scores every token and attention sees the best.

    Its queries come of the low-rank ones, its keys are cached in fp8 beside the latents.
    """
    heads, dim = keys.integer("index_n_heads"), keys.integer("index_head_dim")
    hidden, rank = keys.hidden, keys.integer("q_lora_rank")
    matrices = (
        Matrix("index_q_proj", "latent", rank, heads * dim, weights, "self_attn.indexer.wq_b"),
        Matrix("index_k_proj", "latent", hidden, dim, weights, "self_attn.indexer.wk"),
        Matrix("index_weights", "latent", hidden, heads, weights),
    )
    return replace(
        mixer,
        kind="sparse",
        matrices=(*mixer.matrices, *matrices),
        cache_bytes=dim + INDEX_SCALE_BYTES,
        selected=keys.integer("index_topk"),
        index_flops=2 * heads * dim,
        parameters=mixer.parameters + 2 * dim,
    )
