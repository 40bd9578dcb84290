"""Mixers whose memory of a sequence does not grow: linear attention, state spaces, convolutions."""

from __future__ import annotations

from sim.model.config_keys import Keys
from sim.model.layers import Mixer
from sim.model.matrix import Matrix, Share
from sim.model.weight_format import WeightFormat

HALF, SINGLE = 2, 4  # bytes of a number


def _state_bytes_each(keys: Keys) -> int:
    """Bytes of a number in a recurrent state: what the configuration says, else 16 bits."""
    said = keys.get("mamba_ssm_dtype", "mamba_ssm_cache_dtype")
    return SINGLE if said == "float32" else HALF


def gated_delta(keys: Keys, weights: WeightFormat) -> Mixer:
    """Gated DeltaNet (Yang et al., 2024), as Qwen3-Next and Qwen3.5 have it.

    State: value heads x key dim x value dim, and the last tokens of a short convolution.
    """
    key_heads, key_dim = keys.integer("linear_num_key_heads"), keys.integer("linear_key_head_dim")
    heads, dim = keys.integer("linear_num_value_heads"), keys.integer("linear_value_head_dim")
    kernel = keys.integer("linear_conv_kernel_dim", default=4)
    hidden = keys.hidden
    key = Share("linear key heads", key_heads, 2 * key_dim)
    value = Share("linear value heads", heads, dim)
    gates = Share("linear value heads", heads, 2)
    channels = 2 * key_heads * key_dim + heads * dim
    return Mixer(
        kind="linear",
        matrices=(
            Matrix(
                "linear_qkvz_proj", "qkv", hidden, (key, value, value), weights,
                "linear_attn.in_proj_qkv",
            ),
            Matrix("linear_ba_proj", "qkv", hidden, (gates,), weights, "linear_attn.in_proj_ba"),
            Matrix("linear_o_proj", "o", value, hidden, weights, "linear_attn.out_proj"),
        ),
        token_flops=6 * heads * key_dim * dim,  # decay and update, correction, read-out
        state_bytes=heads * key_dim * dim * _state_bytes_each(keys)
        + channels * (kernel - 1) * HALF,
        parameters=channels * kernel + 2 * heads + dim,
    )  # fmt: skip


def kimi_delta(keys: Keys, weights: WeightFormat) -> Mixer:
    """Kimi Delta Attention (Kimi Team, 2025): a decay of its own for every channel."""
    linear = keys.get("linear_attn_config")
    if isinstance(linear, dict):
        inner = Keys(linear, keys.name, keys.model_type, nested=True)
        heads, dim = inner.integer("num_heads"), inner.integer("head_dim")
        kernel = inner.integer("short_conv_kernel_size", default=4)
    else:
        heads, dim = keys.integer("linear_num_heads"), keys.integer("linear_head_dim")
        kernel = keys.integer("linear_conv_kernel_dim", default=4)
    hidden, width = keys.hidden, heads * dim
    one = Share("linear heads", heads, dim)
    return Mixer(
        kind="linear",
        matrices=(
            Matrix(
                "linear_qkv_proj", "qkv", hidden, (one, one, one), weights, "self_attn.q_proj"
            ),
            Matrix("linear_gates_a", "latent", hidden, 2 * dim, weights, "self_attn.f_a_proj"),
            Matrix("linear_gate_f", "qkv", dim, (one,), weights, "self_attn.f_b_proj"),
            Matrix("linear_gate_g", "qkv", dim, (one,), weights, "self_attn.g_b_proj"),
            Matrix("linear_beta", "qkv", hidden, heads, weights, "self_attn.b_proj"),
            Matrix("linear_o_proj", "o", one, hidden, weights, "self_attn.o_proj"),
        ),
        token_flops=6 * heads * dim * dim,
        state_bytes=heads * dim * dim * SINGLE + 3 * width * (kernel - 1) * HALF,
        parameters=3 * width * kernel + width + heads + dim,
    )  # fmt: skip


def lightning(keys: Keys, weights: WeightFormat, *, heads: int, dim: int) -> Mixer:
    """Lightning attention (MiniMax-01, section 2.2): a head's state is dim x dim, gated output."""
    one = Share("attention heads", heads, dim)
    return Mixer(
        kind="linear",
        matrices=(
            Matrix(
                "linear_qkv_proj", "qkv", keys.hidden, (one, one, one), weights,
                "self_attn.qkv_proj",
            ),
            Matrix(
                "linear_gate", "qkv", keys.hidden, (one,), weights, "self_attn.output_gate"
            ),
            Matrix("linear_o_proj", "o", one, keys.hidden, weights, "self_attn.out_proj"),
        ),
        token_flops=4 * heads * dim * dim,
        state_bytes=heads * dim * dim * SINGLE,
        parameters=heads * dim,
    )  # fmt: skip


def mamba2(keys: Keys, weights: WeightFormat) -> Mixer:
    """Mamba-2 (Dao and Gu, 2024): heads x head dim x state, in several families' words."""
    hidden = keys.hidden
    heads = keys.integer("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads")
    state = keys.integer("mamba_d_state", "ssm_state_size", "state_size")
    groups = keys.integer("mamba_n_groups", "mamba_ngroups", "n_groups", default=1)
    kernel = keys.integer("mamba_d_conv", "conv_kernel", default=4)
    dim_keys = ("mamba_d_head", "mamba_head_dim", "mamba_headdim", "head_dim")
    given = keys.get(*dim_keys)
    if isinstance(given, int) and not isinstance(given, bool):
        dim = keys.integer(*dim_keys)
    else:  # granite and bamba write "auto"
        dim = hidden * keys.integer("mamba_expand", "expand", default=2) // heads
    if keys.given("mamba_d_ssm"):  # Falcon-H1 says their product
        dim = keys.integer("mamba_d_ssm") // heads
    inner = heads * dim
    wide = Share("state-space heads", heads, dim)
    shared = Share("state-space groups", groups, 2 * state, replicable=True)
    bias = keys.flag("mamba_proj_bias", "use_bias")
    conv_bias = keys.flag("mamba_conv_bias", "use_conv_bias", default=True)
    channels = inner + 2 * groups * state
    normed = keys.flag("mamba_rms_norm", default=keys.model_type != "falcon_h1")
    return Mixer(
        kind="state",
        matrices=(
            Matrix(
                "state_in_proj", "qkv", hidden,
                (wide, wide, shared, Share("state-space heads", heads)), weights,
                "mixer.in_proj", bias,
            ),
            Matrix("state_out_proj", "o", wide, hidden, weights, "mixer.out_proj", bias),
        ),
        token_flops=6 * inner * state,
        state_bytes=inner * state * _state_bytes_each(keys) + channels * (kernel - 1) * HALF,
        parameters=channels * (kernel + conv_bias) + 3 * heads + inner * normed,
    )  # fmt: skip


def mamba(keys: Keys, weights: WeightFormat) -> Mixer:
    """Mamba (Gu and Dao, 2023): every channel has a state of its own."""
    hidden = keys.hidden
    inner = keys.integer("mamba_expand", "expand", default=2) * hidden
    state = keys.integer("mamba_d_state", "state_size", default=16)
    kernel = keys.integer("mamba_d_conv", "conv_kernel", default=4)
    rank = keys.get("mamba_dt_rank", "time_step_rank")
    if not isinstance(rank, int):  # "auto"
        rank = -(-hidden // 16)
    bias = keys.flag("mamba_proj_bias", "use_bias")
    conv_bias = keys.flag("mamba_conv_bias", "use_conv_bias", default=True)
    wide = Share("state-space channels", inner)
    norms = rank + 2 * state if keys.model_type == "jamba" else 0
    return Mixer(
        kind="state",
        matrices=(
            Matrix("state_in_proj", "qkv", hidden, (wide, wide), weights, "mixer.in_proj", bias),
            Matrix("state_x_proj", "latent", wide, rank + 2 * state, weights, "mixer.x_proj"),
            Matrix("state_dt_proj", "latent", rank, (wide,), weights, "mixer.dt_proj", True),
            Matrix("state_out_proj", "o", wide, hidden, weights, "mixer.out_proj", bias),
        ),
        token_flops=6 * inner * state,
        state_bytes=inner * state * _state_bytes_each(keys) + inner * (kernel - 1) * HALF,
        parameters=inner * (state + 1 + kernel + conv_bias) + norms,
    )


def short_convolution(keys: Keys, weights: WeightFormat) -> Mixer:
    """LFM2's gated short convolution: what it remembers are the last inputs."""
    hidden, kernel = keys.hidden, keys.integer("conv_L_cache", default=3)
    bias = keys.flag("conv_bias")
    wide = Share("convolution channels", hidden)
    return Mixer(
        kind="convolution",
        matrices=(
            Matrix(
                "conv_in_proj", "qkv", hidden, (wide, wide, wide), weights, "conv.in_proj", bias
            ),
            Matrix("conv_out_proj", "o", wide, hidden, weights, "conv.out_proj", bias),
        ),
        token_flops=2 * hidden * kernel,
        state_bytes=hidden * (kernel - 1) * HALF,
        parameters=hidden * (kernel + bias),
    )


def gated_recurrence(keys: Keys, weights: WeightFormat) -> Mixer:
    """RG-LRU (Griffin, De et al., 2024): one number of state a channel, block-diagonal gates."""
    hidden = keys.hidden
    width = keys.integer("lru_width", default=hidden)
    kernel = keys.integer("conv1d_width", default=4)
    heads = keys.integer("num_attention_heads")
    wide = Share("recurrence channels", width)
    return Mixer(
        kind="state",
        matrices=(
            Matrix(
                "recurrence_in_proj", "qkv", hidden, (wide, wide), weights,
                "temporal_block.linear_x", True,
            ),
            Matrix(
                "recurrence_out_proj", "o", wide, hidden, weights, "temporal_block.linear_out",
                True,
            ),
        ),
        token_flops=4 * width * (width // heads),
        state_bytes=width * SINGLE + width * (kernel - 1) * HALF,
        parameters=width * (kernel + 1 + 1) + 2 * (width * (width // heads) + width),
    )  # fmt: skip
