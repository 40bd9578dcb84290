"""What single layers say for themselves: lists of heads and widths, blocks that a search chose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.model.config_keys import HEADS, Keys

# Lists with an entry a layer, and the key that an entry stands for in its layer.
LISTED = {
    "num_attention_heads_per_layer": "num_attention_heads",
    "num_key_value_heads_per_layer": "num_key_value_heads",
}


def own_keys(keys: Keys, layers: int) -> list[dict[str, Any]]:
    """For each layer the keys that it has of its own; none where all are alike."""
    blocks = keys.sequence("block_configs", length=layers)
    if blocks is not None:
        return [_block(keys, block) for block in blocks[:layers]]
    own: list[dict[str, Any]] = [{} for _ in range(layers)]
    for listed, key in LISTED.items():
        entries = keys.sequence(listed, length=layers) or []
        for mine, entry in zip(own, entries, strict=False):
            mine[key] = keys.checked(entry, (listed,))
    return own


def _block(keys: Keys, block: Any) -> dict[str, Any]:
    """A block of a searched architecture (Bercovich et al., "Puzzle", 2024; Llama-Nemotron)."""
    parts = [block.get(part) for part in ("attention", "ffn")] if isinstance(block, Mapping) else []
    told = [part for part in parts if isinstance(part, Mapping)]
    if len(told) != 2:
        raise ValueError(f"{keys.name}: block_configs must each have attention and ffn")
    attention, ffn = told
    for part in told:
        for unknown in ("replace_with_linear", "sparsify", "window_length", "num_sink_tokens"):
            if part.get(unknown):
                raise ValueError(f"{keys.name}: block_configs with {unknown} are not modelled")
    own: dict[str, Any] = {}
    if attention.get("no_op"):
        own["attention_no_op"] = True
    else:
        grouped = keys.checked(attention.get("n_heads_in_group"), ("n_heads_in_group",))
        heads = keys.integer(*HEADS)
        if heads % grouped:
            raise ValueError(
                f"{keys.name}: n_heads_in_group {grouped} does not divide num_attention_heads "
                f"{heads}"
            )
        own["num_key_value_heads"] = heads // grouped
    if ffn.get("no_op"):
        return own | {"ffn_no_op": True}
    width = ffn.get("intermediate_size")
    if width is None:
        width = _rounded(2 * _number(keys, ffn.get("ffn_mult")) * keys.hidden / 3, 256)
    return own | {"intermediate_size": width}


def _number(keys: Keys, given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < 1e3:
        raise ValueError(f"{keys.name}: a multiple of the width must be positive, not {given!r}")
    return float(given)


def _rounded(width: float, multiple: int) -> int:
    return -(-int(width) // multiple) * multiple
