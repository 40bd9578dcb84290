"""Hugging Face ``config.json`` -> `ModelSpec`: any decoder whose family is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.model.config_attention import says
from sim.model.config_compressed import hyper_head
from sim.model.config_keys import HEADS, KV_HEADS, POSITIONS, VOCABULARY, Keys
from sim.model.config_layers import read_runs
from sim.model.families import (
    ARCHITECTURES,
    FAMILIES,
    NOT_DECODERS,
    NOT_MODELLED,
    VERSIONED,
    WRAPPED,
    Family,
)
from sim.model.quantisation_methods import read_quantisation
from sim.model.spec import ModelSpec
from sim.model.vision import vision_parameters
from sim.model.weight_format import plain

MODEL_TYPES = tuple(sorted({*FAMILIES, *WRAPPED}))
# What architectures that do not write text are called.
_NOT_WRITING = {
    "ForSequenceClassification": "scores a text",
    "ForTokenClassification": "labels tokens",
    "ForQuestionAnswering": "marks answers",
    "ForRewardModel": "is a reward model",
    "ForProcessRewardModel": "is a reward model",
    "RewardModel": "is a reward model",
    "ForMaskedLM": "fills in masked tokens",
    "ForTextEncoding": "embeds a text",
}
# Parts of a checkpoint that nothing here counts, by the keys that tell of them.
_BESIDE = {
    "audio towers": ("audio_config", "audio_processor", "talker_config"),
    "adapters": ("vision_lora", "speech_lora"),
}
# Sections that hold the decoder of a multimodal model.
_TEXT = ("text_config", "llm_config", "language_config", "thinker_config")


def read_config(
    config: Mapping[str, Any], *, name: str, quantised: Mapping[str, Any] | None = None
) -> ModelSpec:
    """The architecture that a Hugging Face configuration describes.

    ``quantised`` is what a hf_quant_config.json beside it says. Raises ``ValueError``, one line, on
    what is no decoder, an unknown ``model_type``, a missing or bad key, or a quantisation that is
    not understood.
    """
    _refuse_what_does_not_write(config, name)
    text, nested = _text_of(config)
    kind = _type_of(config, text, name, nested=nested)
    keys = Keys(text, name, kind, nested=nested)
    family = FAMILIES[kind]
    dtype = Keys({**text, **_dtype_of(config, text)}, name, kind).dtype()
    form = plain(dtype)
    quantisation = read_quantisation(
        config if config.get("quantization_config") or not nested else {**text, **config},
        quantised,
        name=name,
    )
    if quantisation is not None:
        quantisation = quantisation.with_experts(text.get("expert_dtype"))
    _check_heads(keys, family)
    runs = read_runs(
        keys, family, form, None if quantisation is None else quantisation.formats(form)
    )
    hidden = keys.hidden
    tables = form if quantisation is None or not quantisation.everywhere else quantisation.main
    longest, notes = _longest(keys)
    tied = _tied(config, keys, family, nested=nested)
    extra_table, beside = _outside(keys)
    norm = {"rms": 1, "layer": 2, "none": 0}[family.norm] * hidden
    return ModelSpec(
        name=name,
        model_type=kind,
        hidden_size=hidden,
        vocab_size=keys.integer(*VOCABULARY),
        max_position_embeddings=longest,
        dtype=dtype,
        tie_word_embeddings=tied,
        runs=runs,
        head_weights=tables,
        table_weights=tables,
        position_rows=0 if family.positions is None else _positions(keys) + family.positions,
        final_norm=norm,
        head_bias=says(keys, family.head_bias),
        extra_table=extra_table,
        other_parameters=beside,
        vision_parameters=vision_parameters(config, hidden=hidden, name=name),
        quantisation="" if quantisation is None else quantisation.main.words,
        quantised_on_disk=quantisation is not None,
        kv_cache_dtype=None if quantisation is None else quantisation.kv_cache_dtype,
        notes=(*notes, *_uncounted(config)),
    )


def _refuse_what_does_not_write(config: Mapping[str, Any], name: str) -> None:
    """Encoders, speech, reward models: one line that says what it is."""
    outer = config.get("model_type")
    named = config.get("architectures") or []
    for architecture in named if isinstance(named, list) else []:
        for ending, does in _NOT_WRITING.items():
            if str(architecture).endswith(ending):
                raise ValueError(
                    f"{name}: {architecture} {does}: not a decoder that generates text"
                )
    if isinstance(outer, str) and outer in NOT_DECODERS:
        raise ValueError(
            f"{name}: model_type {outer!r} is {NOT_DECODERS[outer]}, not a decoder that "
            "generates text"
        )
    if config.get("is_encoder_decoder") is True:
        raise ValueError(
            f"{name}: model_type {outer!r} is an encoder with a decoder, not a decoder alone"
        )


def _text_of(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """The decoder's part of a configuration, and whether it is nested in another."""
    for section in _TEXT:
        inner = config.get(section)
        if isinstance(inner, Mapping):
            return _text_of(inner)[0], True
    return config, False


def _type_of(config: Mapping[str, Any], text: Mapping[str, Any], name: str, *, nested: bool) -> str:
    outer, kind = config.get("model_type"), text.get("model_type")
    if nested and (kind is None or kind not in FAMILIES):
        kind = WRAPPED.get(str(kind)) or WRAPPED.get(str(outer)) or kind or outer
    elif kind in WRAPPED and kind not in FAMILIES:
        kind = WRAPPED[str(kind)]
    if isinstance(kind, str) and kind in FAMILIES:
        return kind
    versions = VERSIONED.get(str(kind), {})
    if str(text.get("version")) in versions:
        return versions[str(text.get("version"))]
    for known in (kind, outer):
        if isinstance(known, str) and known in NOT_MODELLED:
            raise ValueError(
                f"{name}: model_type {known!r} has {NOT_MODELLED[known]}: not modelled"
            )
    named = text.get("architectures") or config.get("architectures")
    for architecture in named if isinstance(named, list) and kind is not None else []:
        if architecture in ARCHITECTURES:
            return ARCHITECTURES[architecture]
    what = "model_type is missing" if kind is None else f"unknown model_type {kind!r}"
    raise ValueError(f"{name}: {what}; understood: {', '.join(MODEL_TYPES)}")


def _dtype_of(config: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """The type said by the decoder's part, else by the whole."""
    said = text.get("torch_dtype") or text.get("dtype")
    said = said or config.get("torch_dtype") or config.get("dtype")
    if said is None and config.get("quantization_config"):
        said = "bfloat16"  # quantised checkpoints often leave it out; nobody serves them in fp32
    return {"torch_dtype": said, "dtype": said}


def _check_heads(keys: Keys, family: Family) -> None:
    """Said before anything is built of it."""
    narrow = keys.get("word_embed_proj_dim")
    if narrow is not None and narrow != keys.hidden:
        raise ValueError(f"{keys.name}: word_embed_proj_dim must equal hidden_size {keys.hidden}")
    if family.latent or not keys.given(*HEADS) or not keys.given(*KV_HEADS):
        return
    heads, kv = keys.integer(*HEADS), keys.integer(*KV_HEADS)
    if heads % kv:
        raise ValueError(
            f"{keys.name}: num_key_value_heads {kv} does not divide num_attention_heads {heads}"
        )


def _tied(config: Mapping[str, Any], keys: Keys, family: Family, *, nested: bool) -> bool:
    """Whether the output head is the embedding; a wrapper's word counts where it says so."""
    if nested and "tie_word_embeddings" not in keys.config:
        said = config.get("tie_word_embeddings")
        if isinstance(said, bool):
            return said
    return keys.flag("tie_word_embeddings", "tie_embeddings", default=family.tied)


def _uncounted(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What a multimodal checkpoint has besides its decoder and its image tower."""
    inner = [part for part in config.values() if isinstance(part, Mapping)]
    parts = [
        word
        for word, keys in _BESIDE.items()
        if any(k in one for one in [config, *inner] for k in keys)
    ]
    if not parts:
        return ()
    return (f"its {' and '.join(parts)} are not counted in the weights: they take more memory",)


def _positions(keys: Keys) -> int:
    return keys.integer(*POSITIONS)


def _longest(keys: Keys) -> tuple[int, tuple[str, ...]]:
    """Positions the model knows, rope scaling applied as vLLM does it.

    YaRN and the like multiply what the model was trained on; "llama3", "longrope" and Gemma 3's
    are in max_position_embeddings already.
    """
    if not keys.given(*POSITIONS):
        if keys.given("state_size", "mamba_d_state"):
            return 262_144, (
                "its configuration says no longest context; 262,144 tokens are assumed",
            )
        return 2048, ("its configuration says no longest context; 2,048 tokens are assumed",)
    longest = _positions(keys)
    scaling = keys.get("rope_scaling", "rope_parameters")
    if not isinstance(scaling, Mapping):
        return longest, ()
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    factor = scaling.get("factor")
    known = ("linear", "dynamic", "yarn", "deepseek_yarn", "ntk")
    if kind not in known or "gemma3" in keys.model_type or not isinstance(factor, int | float):
        return longest, ()
    trained = scaling.get("original_max_position_embeddings")
    if kind in ("yarn", "deepseek_yarn") and isinstance(trained, int):
        longest = trained
    if not 0 < factor <= 10_000:
        raise ValueError(f"{keys.name}: rope_scaling factor must be positive, not {factor!r}")
    return max(int(longest * factor), 1), ()


def _outside(keys: Keys) -> tuple[int, int]:
    """Numbers of further tables, and parameters outside layers and tables."""
    kind, hidden, layers = keys.model_type, keys.hidden, keys.layers
    if kind == "bloom":
        return 0, 2 * hidden  # a norm behind the embedding
    if kind == "deepseek_v4":
        return 0, hyper_head(keys)
    if kind != "gemma3n_text" and not kind.startswith("gemma4_"):
        return 0, 0
    each = keys.integer("hidden_size_per_layer_input", default=0, least=0)
    table = keys.integer("vocab_size_per_layer_input", default=0, least=0) * each * layers
    beside = (hidden * each * layers + each) if each else 0
    if kind == "gemma3n_text":
        beside += 2 * (keys.integer("altup_num_inputs") - 1) * hidden * hidden
    return table, beside
