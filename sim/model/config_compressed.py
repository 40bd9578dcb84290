"""DeepSeek-V4's attention: a short window, and beside it the past in compressed entries.

Every layer attends to the last ``sliding_window`` tokens. Most also to entries that stand for
``compress_ratio`` tokens each: with ratio 4 an indexer picks the best ``index_topk`` of them
(compressed sparse attention), with ratio 128 all are looked at (heavily compressed attention). One
vector is key and value for all heads; the output goes through groups of low rank.
"""

from __future__ import annotations

from sim.model.config_attention import INDEX_SCALE_BYTES
from sim.model.config_keys import HEADS, WINDOW, Keys
from sim.model.layers import Mixer
from sim.model.matrix import Matrix, Share
from sim.model.weight_format import WeightFormat

INDEXED_RATIO = 4  # entries so fine are picked by an indexer and overlap, so are made of two


def compressed_attention(keys: Keys, plain: WeightFormat, ratio: int) -> tuple[Mixer, ...]:
    """The window's mixer, and the compressed past's where the layer has one (``ratio`` not 0)."""
    window = _window(keys, plain)
    return (window,) if ratio == 0 else (window, _past(keys, plain, ratio))


def hyper_connections(keys: Keys, plain: WeightFormat) -> tuple[tuple[Matrix, ...], int]:
    """Several residual streams mixed before attention and MLP: their matrices, and the rest."""
    streams = keys.integer("hc_mult", default=1)
    mixed = (2 + streams) * streams
    one = Matrix("hyper_connection", "other", streams * keys.hidden, mixed, plain)
    return (one, one), 2 * (mixed + 3)


def hyper_head(keys: Keys) -> int:
    """Parameters of what makes one stream of them behind the last layer."""
    streams = keys.integer("hc_mult", default=1)
    return streams * streams * keys.hidden + streams + 1


def _window(keys: Keys, plain: WeightFormat) -> Mixer:
    hidden, heads, dim = keys.hidden, keys.integer(*HEADS), keys.integer("head_dim")
    rank, groups = keys.integer("q_lora_rank"), keys.integer("o_groups")
    low = Share("attention output groups", groups, keys.integer("o_lora_rank"))
    return Mixer(
        kind="sliding",
        matrices=(
            Matrix("q_a_proj", "latent", hidden, rank, plain, "self_attn.q_a_proj"),
            Matrix(
                "q_b_proj", "qkv", rank, (Share("attention heads", heads, dim),), plain,
                "self_attn.q_b_proj",
            ),
            Matrix("kv_proj", "latent", hidden, dim, plain, "self_attn.kv_proj"),
            Matrix(
                "o_a_proj", "other", heads * dim // groups, (low,), plain, "self_attn.o_a_proj"
            ),
            Matrix("o_b_proj", "o", low, hidden, plain, "self_attn.o_b_proj"),
        ),
        num_heads=heads,
        num_kv_heads=1,
        head_dim=dim,
        v_head_dim=dim,
        cache=(Share("latent", 1, dim, replicable=True),),
        window=keys.integer(*WINDOW, default=128),
        pair_flops=4 * dim,
        context_flops=4 * dim,
        parameters=heads + rank + dim,
    )  # fmt: skip


def _past(keys: Keys, plain: WeightFormat, ratio: int) -> Mixer:
    hidden, heads, dim = keys.hidden, keys.integer(*HEADS), keys.integer("head_dim")
    picked = ratio == INDEXED_RATIO
    wide = dim * (2 if picked else 1)
    module = "self_attn.compressor"
    matrices = [
        Matrix("compress_kv", "latent", hidden, wide, plain, f"{module}.kv_proj"),
        Matrix("compress_gate", "latent", hidden, wide, plain, f"{module}.gate_proj"),
    ]
    parameters = ratio * wide + dim
    index_flops = index_bytes = 0
    if picked:
        index_heads, index_dim = keys.integer("index_n_heads"), keys.integer("index_head_dim")
        rank = keys.integer("q_lora_rank")
        matrices += [
            Matrix("index_kv", "latent", hidden, 2 * index_dim, plain),
            Matrix("index_gate", "latent", hidden, 2 * index_dim, plain),
            Matrix(
                "index_q_proj", "latent", rank, index_heads * index_dim, plain,
                f"{module}.indexer.q_b_proj",
            ),
            Matrix("index_weights", "latent", hidden, index_heads, plain),
        ]  # fmt: skip
        parameters += ratio * 2 * index_dim + index_dim
        index_flops = 2 * index_heads * index_dim // ratio
        index_bytes = index_dim + INDEX_SCALE_BYTES
    return Mixer(
        kind="compressed",
        matrices=tuple(matrices),
        num_heads=heads,
        num_kv_heads=1,
        head_dim=dim,
        v_head_dim=dim,
        cache=(Share("latent", 1, dim, replicable=True),),
        cache_bytes=index_bytes,
        selected=keys.integer("index_topk") * ratio if picked else None,
        pair_flops=4 * dim // ratio,
        context_flops=4 * dim // ratio,
        index_flops=index_flops,
        parameters=parameters,
        compression=ratio,
    )
