"""Which layer is of which kind, however a configuration says so: lists, letters, rules."""

from __future__ import annotations

from sim.model.config_keys import WINDOW, Keys
from sim.model.families import Family

# What lists of layers call their kinds, and the letters of a hybrid_override_pattern.
WORDS = {
    "full_attention": "full",
    "attention": "full",
    "global": "full",
    "dense": "full",
    "sliding_attention": "sliding",
    "local": "sliding",
    "local_attention": "sliding",
    "chunked_attention": "chunked",
    "linear_attention": "linear",
    "mamba": "state",
    "mamba2": "state",
    "recurrent": "recurrence",
    "conv": "convolution",
    "hybrid": "hybrid",
    "mlp": "mlp",
    "moe": "moe",
    "sparse_attention": "full",
    "indexed_attention": "full",
    "compressed_sparse_attention": "compressed 4",
    "heavily_compressed_attention": "compressed 128",
}
LETTERS = {"M": "state", "*": "full", "-": "mlp", "E": "moe"}


def layer_kinds(keys: Keys, family: Family, layers: int) -> list[str]:
    """The kind of every layer's attention (or of its MLP, where a layer is only that)."""
    pattern = keys.get("hybrid_override_pattern")
    if isinstance(pattern, str) and pattern:
        _check_letters(keys, pattern, layers)
        return [LETTERS[letter] for letter in pattern[:layers]]
    ratios = keys.sequence("compress_ratios", length=layers)
    if ratios is not None:
        numbers = [keys.checked(one, ("compress_ratios",), least=0) for one in ratios[:layers]]
        return [f"compressed {ratio}" for ratio in numbers]
    listed = keys.sequence("layer_types", "layers_block_type", length=layers)
    if listed is not None:
        return [_word(keys, word) for word in listed[:layers]]
    cycle = keys.sequence("block_types", "_block_types")
    if cycle:
        return [_word(keys, cycle[layer % len(cycle)]) for layer in range(layers)]
    return _ruled_kinds(keys, family, layers)


def _ruled_kinds(keys: Keys, family: Family, layers: int) -> list[str]:
    """The kinds by a rule: an interval, an offset, a list of the exceptions."""
    kind = keys.model_type
    crossing = keys.sequence("cross_attention_layers")
    if crossing is not None:
        return ["cross" if n in crossing else "full" for n in range(layers)]
    if kind in ("mamba", "mamba2", "falcon_mamba"):
        return ["state"] * layers
    if kind == "falcon_h1":
        return ["hybrid"] * layers
    linear = keys.get("linear_attn_config")
    if isinstance(linear, dict) and "kda_layers" in linear:
        marked = Keys(linear, keys.name, kind, nested=True).sequence("kda_layers") or []
        return ["linear" if n + 1 in marked else "full" for n in range(layers)]
    marks = keys.sequence("attn_type_list", length=layers)
    if marks is not None:
        return ["full" if mark else "linear" for mark in marks[:layers]]
    marks = keys.sequence("hybrid_layer_pattern", length=layers)
    if marks is not None:
        return ["sliding" if mark else "full" for mark in marks[:layers]]
    if keys.given("attn_layer_period"):
        period = keys.integer("attn_layer_period")
        offset = keys.integer("attn_layer_offset", default=0, least=0)
        return ["full" if n % period == offset else "state" for n in range(layers)]
    indices = keys.sequence("attn_layer_indices", "full_attn_idxs")
    if indices is not None:
        other = "convolution" if kind.startswith("lfm2") else "state"
        return ["full" if n in indices else other for n in range(layers)]
    if kind in ("bamba", "granitemoehybrid"):
        return ["state"] * layers
    if kind == "minimax":
        return ["full" if n % 2 else "linear" for n in range(layers)]
    if kind.startswith(("qwen3_next", "qwen3_5")):
        every = keys.integer("full_attention_interval", default=4)
        return ["linear" if (n + 1) % every else "full" for n in range(layers)]
    if kind == "llama4_text":
        return _llama4_kinds(keys, layers)
    if kind == "gpt_neo":
        return ["sliding" if n % 2 else "full" for n in range(layers)]
    return _windowed_kinds(keys, family, layers)


def _windowed_kinds(keys: Keys, family: Family, layers: int) -> list[str]:
    """Where there is a window at all, and which layers it is of."""
    if family.window == "none" or not keys.given(*WINDOW):
        return ["full"] * layers
    if family.window == "all":
        return ["sliding"] * layers
    if family.window == "switched":
        if not keys.flag("use_sliding_window"):
            return ["full"] * layers
        first = keys.integer("max_window_layers", default=layers, least=0)
        return ["sliding" if n >= first else "full" for n in range(layers)]
    pattern = keys.get("sliding_window_pattern", "_sliding_window_pattern")
    if isinstance(pattern, str):  # LLLG
        return ["sliding" if pattern[n % len(pattern)] == "L" else "full" for n in range(layers)]
    every = family.pattern
    if pattern is not None:
        every = keys.integer("sliding_window_pattern", "_sliding_window_pattern")
    kinds = ["sliding" if (n + 1) % every else "full" for n in range(layers)]
    if keys.model_type.startswith("gemma4_"):
        kinds[-1] = "full"
    return kinds


def _llama4_kinds(keys: Keys, layers: int) -> list[str]:
    """Layers without rotary positions see everything, the others their chunk."""
    if not keys.given("attention_chunk_size"):
        return ["full"] * layers
    rotary = keys.sequence("no_rope_layers") or []
    if not rotary:
        every = keys.integer("no_rope_layer_interval", default=4)
        rotary = [(n + 1) % every for n in range(layers)]
    if len(rotary) < layers:
        raise ValueError(
            f"{keys.name}: no_rope_layers has {len(rotary)} entries for {layers} layers"
        )
    return ["chunked" if mark else "full" for mark in rotary[:layers]]


def _word(keys: Keys, word: object) -> str:
    if not isinstance(word, str) or word not in WORDS:
        known = ", ".join(sorted(WORDS))
        raise ValueError(f"{keys.name}: layer type {word!r} is not understood; known: {known}")
    return WORDS[word]


def _check_letters(keys: Keys, pattern: str, layers: int) -> None:
    unknown = sorted(set(pattern) - set(LETTERS))
    if unknown:
        raise ValueError(
            f"{keys.name}: hybrid_override_pattern has {unknown[0]!r}; "
            f"known: {' '.join(LETTERS)} (Mamba, attention, MLP, experts)"
        )
    if len(pattern) < layers:
        raise ValueError(
            f"{keys.name}: hybrid_override_pattern has {len(pattern)} entries for {layers} layers"
        )
