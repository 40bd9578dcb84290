"""MLPs, dense and mixed of experts, as a configuration describes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sim.model.config_attention import says
from sim.model.config_keys import WIDTH, Keys
from sim.model.families import Family
from sim.model.layers import MoeSpec
from sim.model.matrix import Matrix, Share
from sim.model.weight_format import WeightFormat

EXPERTS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_routed_experts",
)
CHOSEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
    "moe_topk",
)
EXPERT_WIDTH = ("moe_intermediate_size", "expert_ffn_hidden_size")
SHARED_WIDTH = (
    "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "share_expert_dim",
    "shared_intermediate_size",
)
SHARED_COUNT = (
    "n_shared_experts",
    "num_shared_experts",
    "moe_num_shared_experts",
    "num_shared_expert",
)
FIRST_DENSE = ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers")


@dataclass(frozen=True, slots=True)
class Mlp:
    """What a layer's MLP is made of, and parameters of it that are in no matrix."""

    matrices: tuple[Matrix, ...]
    experts: tuple[Matrix, ...] = ()
    moe: MoeSpec | None = None
    parameters: int = 0


def is_mixed(keys: Keys) -> bool:
    """Whether any layer has experts."""
    if keys.get("enable_moe_block") is False or keys.get("use_moe") is False:
        return False
    return keys.integer(*EXPERTS, default=0, least=0) > 1


def mixed_layers(keys: Keys, layers: int) -> list[bool]:
    """Which layers have experts, however the configuration says so."""
    if not is_mixed(keys):
        return [False] * layers
    listed = keys.sequence("mlp_layer_types", length=layers)
    if listed is not None:
        return [kind != "dense" for kind in listed[:layers]]
    chosen = keys.get("moe_layers", "moe_layers_enum")
    if chosen is not None:
        named = _numbers(keys, chosen)
        return [layer in named for layer in range(layers)]
    dense = keys.sequence("mlp_only_layers") or []
    first = keys.integer(*FIRST_DENSE, default=0, least=0)
    last = keys.get("moe_layer_end_index")
    last = layers - 1 if last in (None, -1) else keys.integer("moe_layer_end_index", least=0)
    every = keys.get("moe_layer_freq", "decoder_sparse_step", "interleave_moe_layer_step",
                     "moe_layer_interval", "expert_layer_period")  # fmt: skip
    if isinstance(every, list):
        if len(every) < layers:
            raise ValueError(f"{keys.name}: moe_layer_freq has {len(every)} entries for {layers}")
        return [bool(every[layer]) for layer in range(layers)]
    return [
        first <= layer <= last and layer not in dense and _is_due(keys, layer)
        for layer in range(layers)
    ]


def _is_due(keys: Keys, layer: int) -> bool:
    """Whether it is this layer's turn to have experts, where only some of them have."""
    if keys.given("expert_layer_period"):
        offset = keys.integer("expert_layer_offset", default=0, least=0)
        return (layer - offset) % keys.integer("expert_layer_period") == 0
    if keys.given("moe_layer_freq"):
        return layer % keys.integer("moe_layer_freq") == 0
    step = keys.integer(
        "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval", default=1
    )
    return (layer + 1) % step == 0


def _numbers(keys: Keys, listed: Any) -> set[int]:
    """Layers listed as numbers, or as text with commas between (Step-3)."""
    parts = listed.split(",") if isinstance(listed, str) else listed
    try:
        return {int(part) for part in parts}
    except (TypeError, ValueError):
        raise ValueError(f"{keys.name}: moe_layers must list layers, not {listed!r}") from None


def dense_mlp(
    keys: Keys, family: Family, weights: WeightFormat, *, width: int | None = None
) -> Mlp:
    """Two matrices, or three with a gate."""
    width = dense_width(keys) if width is None else width
    bias = says(keys, family.mlp_bias)
    share = Share("intermediate_size", width)
    up = (share, share) if family.gated else (share,)
    name = "gate_up_proj" if family.gated else "up_proj"
    module = "mlp.gate_proj" if family.gated else "mlp.up_proj"
    return Mlp(
        (
            Matrix(name, "gate_up", keys.hidden, up, weights, module, bias),
            Matrix("down_proj", "down", share, keys.hidden, weights, "mlp.down_proj", bias),
        )
    )


def dense_width(keys: Keys) -> int:
    """Of a dense layer; four times the model's where nothing is said (GPT-2, Falcon, MPT)."""
    if keys.model_type == "llama4_text" and keys.given("intermediate_size_mlp"):
        return keys.integer("intermediate_size_mlp")
    if keys.model_type == "mpt":
        ratio = keys.get("expansion_ratio")
        return round((4 if ratio is None else ratio) * keys.hidden)
    if keys.model_type in ("recurrent_gemma", "qwen"):  # gate and up together
        return keys.integer(*WIDTH) // 2
    if keys.model_type in ("lfm2", "lfm2_moe"):
        return _lfm2_width(keys)
    optional = ("gpt2", "gpt3", "gpt_bigcode", "gpt_neo", "gptj", "codegen", "falcon", "bloom",
                "phi-msft")  # fmt: skip
    default = 4 * keys.hidden if keys.model_type in optional else None
    return keys.integer(*WIDTH, default=default)


def _lfm2_width(keys: Keys) -> int:
    """LFM2 takes two thirds of what is said, rounded up, unless told not to."""
    width = keys.integer("block_ff_dim", *WIDTH)
    if keys.model_type == "lfm2_moe" or not keys.flag("block_auto_adjust_ff_dim", default=True):
        return width
    scaled = int((keys.get("block_ffn_dim_multiplier") or 1.0) * int(2 * width / 3))
    multiple = keys.integer("block_multiple_of", default=256)
    return -(-scaled // multiple) * multiple


def mixed_mlp(keys: Keys, family: Family, weights: WeightFormat, plain: WeightFormat) -> Mlp:
    """A router, experts, and what every token passes besides.

    Raises ``ValueError`` where tokens choose more experts than there are.
    """
    hidden, experts = keys.hidden, keys.integer(*EXPERTS)
    chosen = keys.integer(*CHOSEN)
    if chosen > experts:
        key = next((key for key in CHOSEN if key in keys.config), CHOSEN[0])
        raise ValueError(f"{keys.name}: {key} {chosen} exceeds {experts} experts")
    width, for_images = _expert_widths(keys)
    shared = _shared_width(keys, family, width)
    # Experts that do nothing (LongCat, 2025) take their share of the choices.
    idle = keys.integer("zero_expert_num", default=0, least=0)
    chosen = max(1, round(chosen * experts / (experts + idle)))
    into = keys.integer("moe_latent_size", default=hidden)
    one = Share("expert intermediate size", width)
    common = Share("shared expert's width", shared)
    twice = 2 if family.gated else 1
    matrices = [
        Matrix(
            "router", "router", hidden, experts + idle, plain, "", says(keys, family.router_bias)
        )
    ]
    if into != hidden:
        matrices += [
            Matrix("latent_in", "other", hidden, into, weights, "mlp.fc1_latent_proj"),
            Matrix("latent_out", "other", into, hidden, weights, "mlp.fc2_latent_proj"),
        ]
    if shared:
        matrices += [
            Matrix(
                "shared_gate_up", "shared_gate_up", hidden, (common,) * twice, weights,
                "mlp.shared_experts.gate_proj" if family.gated else "mlp.shared_experts.up_proj",
            ),
            Matrix(
                "shared_down", "shared_down", common, hidden, weights,
                "mlp.shared_experts.down_proj",
            ),
        ]  # fmt: skip
    bias = family.expert_bias
    return Mlp(
        tuple(matrices),
        (
            Matrix(
                "experts_gate_up", "experts_gate_up", into, (one,) * twice, weights,
                "mlp.experts.0.gate_proj" if family.gated else "mlp.experts.0.up_proj", bias,
            ),
            Matrix(
                "experts_down", "experts_down", one, into, weights, "mlp.experts.0.down_proj", bias
            ),
        ),
        MoeSpec(1, experts, chosen, width, shared),
        parameters=(hidden if shared and family.shared_gate else 0)
        + (experts * (hidden + (1 + twice) * hidden * for_images) if for_images else 0),
    )  # fmt: skip


def _expert_widths(keys: Keys) -> tuple[int, int]:
    """Of an expert; and of one that images alone choose, 0 without any (ERNIE-4.5-VL: a list)."""
    said = keys.get(*EXPERT_WIDTH)
    if isinstance(said, list) and len(said) == 2:
        text, image = (keys.checked(one, EXPERT_WIDTH) for one in said)
        return text, image
    return keys.integer(*EXPERT_WIDTH, *WIDTH), 0


def _shared_width(keys: Keys, family: Family, width: int) -> int:
    """Of the experts that every token passes, together; 0 without any."""
    if family.shared == "expert":
        return width
    said = keys.get(*SHARED_WIDTH)
    if said is not None:
        return keys.integer(*SHARED_WIDTH, least=0)
    return keys.integer(*SHARED_COUNT, default=0, least=0) * width
