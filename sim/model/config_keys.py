"""A Hugging Face configuration, read key by key: aliases, defaults, one clear line where it fails.

Families call the same thing by different names, and leave out what equals their class's default
(a nested ``text_config`` is saved as differences). `DEFAULTS` holds those defaults, as transformers
5.19 has them (Apache-2.0), for the keys that are read here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

MOST = 10**9  # of any count in a configuration; the largest vocabularies have a few 10^5
MOST_LAYERS = 10_000

HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", "kv_n_heads")
WIDTH = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff")
VOCABULARY = ("vocab_size", "padded_vocab_size")
POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "model_max_length",
    "n_ctx",
)
HEAD_DIM = ("head_dim", "kv_channels", "attention_head_dim")
# What is not taken from a class in a configuration of its own, which is saved with all it has.
WINDOW = ("sliding_window",)
REQUIRED = (HIDDEN, LAYERS, WINDOW)


@cache
def defaults() -> dict[str, dict[str, Any]]:
    """Defaults by model_type."""
    text = (Path(__file__).parent / "config_defaults.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


@dataclass(frozen=True, slots=True)
class Keys:
    """A configuration whose reads name the model and the key when they fail.

    ``nested``: a part of another configuration, which may leave out what its class has.
    """

    config: Mapping[str, Any]
    name: str
    model_type: str
    nested: bool = False

    def get(self, *names: str) -> Any:
        """The first of these keys that is given, null or not; else the type's default; else None.

        DBRX and MPT keep some keys in a section of their own.
        """
        for name in names:
            if name in self.config:
                return self.config[name]
        for section in ("attn_config", "ffn_config"):
            within = self.config.get(section)
            if isinstance(within, Mapping):
                for name in names:
                    if name in within:
                        return within[name]
        if names in REQUIRED and not self.nested:
            return None
        known = defaults().get(self.model_type, {})
        return next((known[name] for name in names if name in known), None)

    def given(self, *names: str) -> bool:
        """Whether one of these keys says something."""
        return self.get(*names) is not None

    def integer(
        self, *names: str, default: int | None = None, least: int = 1, most: int = MOST
    ) -> int:
        value = self.get(*names)
        if value is None:
            if default is None:
                raise ValueError(
                    f"{self.name}: config key {names[0]} is missing (model_type {self.model_type})"
                )
            return default
        return self.checked(value, names, least=least, most=most)

    def checked(
        self, value: Any, names: tuple[str, ...], *, least: int = 1, most: int = MOST
    ) -> int:
        """``value`` as an integer of this key; lists of one number are that number."""
        key = next((name for name in names if name in self.config), names[0])
        if isinstance(value, list) and value and all(one == value[0] for one in value):
            value = value[0]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:57]}..."
            raise ValueError(f"{self.name}: {key} must be an integer >= {least}, not {shown}")
        if value > most:
            raise ValueError(f"{self.name}: {key} must be at most {most:,}")
        return value

    def flag(self, *names: str, default: bool = False) -> bool:
        value = self.get(*names)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ValueError(f"{self.name}: {names[0]} must be true or false, not {value!r}")
        return value

    def sequence(self, *names: str, length: int | None = None) -> list[Any] | None:
        """A list, of at least so many entries where that is said; None where there is none."""
        value = self.get(*names)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise ValueError(f"{self.name}: {names[0]} must be a list, not {value!r}")
        if length is not None and len(value) < length:
            raise ValueError(
                f"{self.name}: {names[0]} has {len(value)} entries for {length} layers"
            )
        return list(value)

    @property
    def layers(self) -> int:
        """How many layers; those whose kinds are listed need not be counted besides."""
        if self.get(*LAYERS) is None:
            for listed in ("hybrid_override_pattern", "layers_block_type", "layer_types"):
                if self.get(listed):
                    return len(self.get(listed))
        return self.integer(*LAYERS, most=MOST_LAYERS)

    @property
    def hidden(self) -> int:
        return self.integer(*HIDDEN)

    def head_dim(self) -> int:
        hidden, heads = self.hidden, self.integer(*HEADS)
        if self.given(*HEAD_DIM):
            return self.integer(*HEAD_DIM)
        if hidden % heads:
            key = next((key for key in HEADS if key in self.config), HEADS[0])
            size = next((key for key in HIDDEN if key in self.config), HIDDEN[0])
            raise ValueError(f"{self.name}: {key} {heads} does not divide {size} {hidden}")
        return hidden // heads

    def dtype(self) -> str:
        """Activation dtype; like vLLM, float32 (also HF's default) is served in 16 bits."""
        value = self.config.get("torch_dtype") or self.config.get("dtype") or "float32"
        value = str(value).removeprefix("torch.")
        if value in ("float32", "float"):
            return "float16"
        if value not in ("bfloat16", "float16"):
            raise ValueError(
                f"{self.name}: torch_dtype {value!r} is not understood; "
                "understood: bfloat16, float16, float32"
            )
        return value
