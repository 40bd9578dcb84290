"""The image tower of a multimodal model, counted from its configuration.

Images come into the decoder as prompt tokens, so a scenario says them as such; what the tower takes
is memory. Counted are its layers, patch embedding, positions and the projector into the decoder;
projectors differ, so the count may be off by a few per cent (of the tower, a percent of the whole).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.model.config_keys import Keys

_GATED = ("pixtral", "qwen2_5_vl", "gemma4_vision", "glm4v", "glm4v_moe", "mllama")


def vision_parameters(config: Mapping[str, Any], *, hidden: int, name: str) -> int:
    """Parameters of the tower and its projector; 0 where no tower's size is told."""
    section = config.get("vision_config")
    if not isinstance(section, Mapping):
        return 0
    kind = str(section.get("model_type") or "")
    keys = Keys(section, f"{name}: vision_config", kind, nested=True)
    wide = _first(keys, "embed_dim", "vt_hidden_size", "width", "hidden_size")
    layers = _first(keys, "depth", "vt_num_hidden_layers", "num_hidden_layers", "layers")
    if not wide or not layers:
        return 0
    # Qwen2-VL calls the decoder's width hidden_size and the tower's embed_dim.
    inner = _first(keys, "vt_intermediate_size", "intermediate_size")
    inner = inner or round(wide * float(section.get("mlp_ratio") or 4))
    patch = _first(keys, "patch_size") or 14
    frames = _first(keys, "temporal_patch_size") or 1
    gated = kind in _GATED
    one = 4 * wide * wide + (3 if gated else 2) * wide * inner
    one += 4 * wide + wide + inner + 4 * wide  # biases and two norms
    positions = _first(keys, "num_position_embeddings", "position_embedding_size")
    image = _first(keys, "image_size")
    if not positions and image and kind != "pixtral":
        positions = (image // patch) ** 2
    table = (positions or 0) * wide
    embedding = 3 * patch * patch * frames * wide + wide
    return layers * one + embedding + table + _projector(keys, wide, hidden)


def _projector(keys: Keys, wide: int, hidden: int) -> int:
    """From the tower's width (several patches side by side) to the decoder's."""
    merge = _first(keys, "spatial_merge_size")
    if not merge:
        return wide * hidden
    side = wide * merge * merge
    return side * side + side * hidden


def _first(keys: Keys, *names: str) -> int:
    return keys.integer(*names, default=0, least=0)
