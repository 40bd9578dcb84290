"""The layers that a configuration describes, made once a kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from sim.model.config_attention import cross_attention, heads_attention, latent_attention
from sim.model.config_compressed import compressed_attention, hyper_connections
from sim.model.config_keys import WINDOW, Keys
from sim.model.config_kinds import layer_kinds
from sim.model.config_mlp import Mlp, dense_mlp, is_mixed, mixed_layers, mixed_mlp
from sim.model.config_own import own_keys
from sim.model.config_states import (
    gated_delta,
    gated_recurrence,
    kimi_delta,
    lightning,
    mamba,
    mamba2,
    short_convolution,
)
from sim.model.families import Family
from sim.model.layers import Layer, Mixer
from sim.model.matrix import Formats, Matrix
from sim.model.weight_format import WeightFormat

STATE_HEADS = ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads")


def read_runs(
    keys: Keys, family: Family, plain: WeightFormat, formats: Callable[[int], Formats] | None
) -> tuple[tuple[Layer, int], ...]:
    """Runs of equal layers. ``formats`` gives the format of a module of the layer of that number.

    Layers are made once a kind, however many there are.
    """
    layers = keys.layers
    kinds = layer_kinds(keys, family, layers)
    mixed = mixed_layers(keys, layers)
    borrowing = keys.integer("num_kv_shared_layers", default=0, least=0)
    own = own_keys(keys, layers)
    made: dict[tuple[object, ...], Layer] = {}
    built: list[Layer] = []
    for number, kind in enumerate(kinds):
        for block in range(family.blocks):  # only the first has experts
            expert, borrowed = mixed[number] and block == 0, number >= layers - borrowing
            key = (kind, expert, borrowed, *own[number].items())
            if key not in made:
                mine = replace(keys, config={**keys.config, **own[number]}) if own[number] else keys
                made[key] = _layer(mine, family, plain, kind, mixed=expert, borrowed=borrowed)
            built.append(made[key])
    if formats is not None:
        built = [layer.formatted(formats(number)) for number, layer in enumerate(built)]
    return tuple(_runs(built))


def _runs(layers: Iterable[Layer]) -> Iterable[tuple[Layer, int]]:
    """Equal layers in a row with their number; equal ones are one object."""
    same: dict[Layer, Layer] = {}
    known: dict[int, tuple[Layer, Layer]] = {}  # by identity: to hash a layer is to visit all of it
    last: Layer | None = None
    count = 0
    for layer in layers:
        if id(layer) not in known:
            known[id(layer)] = layer, same.setdefault(layer, layer)
        one = known[id(layer)][1]
        if last is not None and one is not last:
            yield last, count
            count = 0
        last, count = one, count + 1
    if last is not None:
        yield last, count


def _layer(
    keys: Keys, family: Family, plain: WeightFormat, kind: str, *, mixed: bool, borrowed: bool
) -> Layer:
    norm = {"rms": 1, "layer": 2, "none": 0}[family.norm] * keys.hidden
    mixers = _mixers(keys, family, plain, kind, borrowed=borrowed)
    alone = kind in ("mlp", "moe") or keys.model_type in (
        "nemotron_h", "mamba", "mamba2", "falcon_mamba",
    )  # fmt: skip
    if alone:  # one of the two, with one norm
        mlp = Mlp(())
        if kind == "mlp":
            mlp = dense_mlp(keys, family, plain)
        elif kind == "moe":
            mlp = mixed_mlp(keys, family, plain, plain)
        norms, reductions = norm, 1
    else:
        mlp = _mlp(keys, family, plain, mixed=mixed, borrowed=borrowed)
        norms, reductions = norm * _norms(keys, family), 1 if _is_parallel(keys, family) else 2
    extra, more = _beside(keys, plain)
    return Layer(
        mixers=mixers,
        mlp=(*mlp.matrices, *extra),
        experts=mlp.experts,
        moe=mlp.moe,
        parameters=norms + mlp.parameters + more,
        reductions=reductions,
        gated=family.gated,
    )


def _mlp(keys: Keys, family: Family, plain: WeightFormat, *, mixed: bool, borrowed: bool) -> Mlp:
    """A layer's MLP; Gemma 4 has a dense one beside its experts, Granite's may be only shared."""
    if keys.get("ffn_no_op"):
        return Mlp(())
    if not mixed:
        width = None
        if keys.model_type == "granitemoehybrid" and not is_mixed(keys):
            width = keys.integer("shared_intermediate_size")
        if borrowed and keys.flag("use_double_wide_mlp"):
            width = 2 * keys.integer("intermediate_size")
        return dense_mlp(keys, family, plain, width=width)
    mlp = mixed_mlp(keys, family, plain, plain)
    if family.beside and keys.get(family.beside) not in (None, False):
        return replace(mlp, matrices=(*dense_mlp(keys, family, plain).matrices, *mlp.matrices))
    if not keys.model_type.startswith("gemma4_"):
        return mlp
    dense, assert_moe = dense_mlp(keys, family, plain), mlp.moe
    assert assert_moe is not None
    # Three more norms, a scale of the router's input and one of each expert.
    more = 4 * keys.hidden + assert_moe.num_experts
    return replace(mlp, matrices=(*dense.matrices, *mlp.matrices), parameters=more)


def _norms(keys: Keys, family: Family) -> int:
    """Norms of a layer with attention and MLP."""
    if keys.model_type == "falcon":
        if not keys.flag("parallel_attn", default=True):
            return 2
        two = keys.flag("new_decoder_architecture")
        return keys.integer("num_ln_in_parallel_attn", default=2 if two else 1)
    if keys.model_type == "stablelm" and keys.flag("use_parallel_residual"):
        return 1
    return family.norms


def _is_parallel(keys: Keys, family: Family) -> bool:
    if keys.model_type in ("gpt_neox", "stablelm"):
        return keys.flag("use_parallel_residual", default=keys.model_type == "gpt_neox")
    if keys.model_type == "falcon":
        return keys.flag("parallel_attn", default=True)
    return family.parallel


def _beside(keys: Keys, plain: WeightFormat) -> tuple[tuple[Matrix, ...], int]:
    """What some families have in a layer besides: matrices, and parameters in none."""
    hidden, kind = keys.hidden, keys.model_type
    if kind == "bitnet":
        return (), hidden + keys.integer("intermediate_size")
    if kind == "apertus":
        return (), 2
    if kind == "deepseek_v4":
        return hyper_connections(keys, plain)
    if kind != "gemma3n_text" and not kind.startswith("gemma4_"):
        return (), 0
    each = keys.integer("hidden_size_per_layer_input", default=0, least=0)
    matrices: list[Matrix] = []
    parameters = 0
    if each:  # embeddings of this layer's own
        matrices += [
            Matrix("per_layer_gate", "other", hidden, each, plain, "per_layer_input_gate"),
            Matrix("per_layer_projection", "other", each, hidden, plain, "per_layer_projection"),
        ]
        parameters += hidden
    if kind == "gemma3n_text":  # AltUp's predictions and corrections, and LAuReL's low rank
        rank, inputs = keys.integer("laurel_rank"), keys.integer("altup_num_inputs")
        matrices += [
            Matrix("laurel_left", "other", hidden, rank, plain, "laurel.linear_left"),
            Matrix("laurel_right", "other", rank, hidden, plain, "laurel.linear_right"),
        ]
        parameters += hidden + 2 * hidden + inputs * (inputs + inputs**2 + hidden)
    return tuple(matrices), parameters


# -- attention ----------------------------------------------------------------------------------


def _mixers(
    keys: Keys, family: Family, plain: WeightFormat, kind: str, *, borrowed: bool
) -> tuple[Mixer, ...]:
    if kind in ("mlp", "moe") or keys.get("attention_no_op"):
        return ()
    if kind == "cross":
        return (cross_attention(keys, plain),)
    if kind == "state":
        return (_state(keys, plain),)
    if kind == "hybrid":
        return (mamba2(keys, plain), heads_attention(keys, family, plain))
    if kind == "convolution":
        return (short_convolution(keys, plain),)
    if kind == "recurrence":
        return (gated_recurrence(keys, plain),)
    if kind == "linear":
        return (_linear(keys, family, plain),)
    if keys.model_type == "deepseek_v4":
        ratio = int(kind.split()[1]) if kind.startswith("compressed") else 0
        return compressed_attention(keys, plain, ratio)
    if family.latent:
        return (latent_attention(keys, plain),)
    window = _window(keys, kind)
    # A window as long as the model's positions never closes.
    if window is None:
        kind = "full"
    if keys.model_type.startswith("gemma4_"):
        return (_gemma4(keys, family, plain, kind, window, borrowed=borrowed),)
    if keys.model_type == "mimo_v2_flash":
        return (_mimo(keys, family, plain, kind, window),)
    return (heads_attention(keys, family, plain, kind=kind, window=window, borrowed=borrowed),)


def _state(keys: Keys, plain: WeightFormat) -> Mixer:
    if keys.model_type == "mamba2" or keys.given(*STATE_HEADS):
        return mamba2(keys, plain)
    return mamba(keys, plain)


def _linear(keys: Keys, family: Family, plain: WeightFormat) -> Mixer:
    if keys.given(*STATE_HEADS):  # newer transformers call Mamba's layers so, too
        return mamba2(keys, plain)
    if keys.given("linear_attn_config", "linear_num_heads"):
        return kimi_delta(keys, plain)
    if keys.given("linear_num_value_heads"):
        return gated_delta(keys, plain)
    like = heads_attention(keys, family, plain)
    return lightning(keys, plain, heads=like.num_heads, dim=like.head_dim)


def _window(keys: Keys, kind: str) -> int | None:
    """Tokens that a layer of this kind looks back; None where that is all of them."""
    if kind == "sliding":
        names = (*WINDOW, "attention_window_size", "sliding_window_size", "window_size")
        window = keys.integer(*(WINDOW if keys.given(*WINDOW) else names[1:]), default=0, least=0)
    elif kind == "chunked":
        window = keys.integer("attention_chunk_size")
    else:
        return None
    longest = keys.integer("max_position_embeddings", default=0)
    return window if window and not 0 < longest <= window else None


def _gemma4(
    keys: Keys, family: Family, plain: WeightFormat, kind: str, window: int | None, *,
    borrowed: bool,
) -> Mixer:  # fmt: skip
    """Gemma 4's global layers have wider heads, fewer of them, and keys that are values too."""
    if kind != "full":
        return heads_attention(keys, family, plain, kind=kind, window=window, borrowed=borrowed)
    both = keys.flag("attention_k_eq_v")
    kv = keys.integer("num_key_value_heads")
    return heads_attention(
        keys, family, plain, borrowed=borrowed, one_for_both=both,
        head_dim=keys.integer("global_head_dim", default=512),
        kv=keys.integer("num_global_key_value_heads", default=kv) if both else kv,
    )  # fmt: skip


def _mimo(keys: Keys, family: Family, plain: WeightFormat, kind: str, window: int | None) -> Mixer:
    """MiMo-V2's sliding layers have heads of their own."""
    if kind == "full":
        return heads_attention(
            keys, family, plain, v_head_dim=keys.integer("v_head_dim", "head_dim"),
            sinks=keys.flag("add_full_attention_sink_bias"),
        )  # fmt: skip
    return heads_attention(
        keys, family, plain, kind=kind, window=window,
        heads=keys.integer("swa_num_attention_heads", "num_attention_heads"),
        kv=keys.integer("swa_num_key_value_heads", "num_key_value_heads"),
        head_dim=keys.integer("swa_head_dim", "head_dim"),
        v_head_dim=keys.integer("swa_v_head_dim", "v_head_dim"),
        sinks=keys.flag("add_swa_attention_sink_bias", default=True),
    )  # fmt: skip
