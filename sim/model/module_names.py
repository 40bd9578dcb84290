"""Modules that a quantisation names, met by the names of a layer's matrices.

Checkpoints call the same thing differently, and wrappers put prefixes before ``layers``; a pattern
is a literal (a whole name or a run of its parts), has stars, or is a regular expression (``re:``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)(?:\.|$)")
_ELSEWHERE = ("vision", "visual", "audio", "image", "encoder", "mtp", "projector", "draft")

# Other names for the parts of a layer and for their matrices.
_PARTS = {
    "self_attn": ("self_attn", "attn", "attention", "self_attention", "mixer"),
    "mlp": ("mlp", "feed_forward", "block_sparse_moe", "ffn", "mixer", "moe"),
    "mixer": ("mixer", "mamba"),
    "linear_attn": ("linear_attn", "mixer"),
}
_LEAVES = {
    "q_proj": ("q_proj", "qkv_proj", "query_key_value", "wqkv", "W_pack", "c_attn", "wq"),
    "o_proj": ("o_proj", "out_proj", "dense", "wo"),
    "gate_proj": ("gate_proj", "gate_up_proj", "w1"),
    "up_proj": ("up_proj", "gate_up_proj", "fc1", "c_fc", "dense_h_to_4h", "w3"),
    "down_proj": ("down_proj", "w2", "fc2", "dense_4h_to_h"),
    "in_proj_qkv": ("in_proj_qkv", "in_proj_qkvz", "in_proj_z"),
}


@cache  # of some dozens of modules that a layer may have
def _names(module: str) -> tuple[str, ...]:
    """What checkpoints call ``self_attn.q_proj`` and the like."""
    part, *within = module.split(".")
    *path, leaf = within or [part]
    if not within:
        return (module,)
    paths = [path]
    if path[:1] == ["shared_experts"]:
        paths.append(["shared_expert", *path[1:]])
    if path[:1] == ["experts"]:
        paths.append(["experts"])
    return tuple(
        ".".join([one, *way, name])
        for one in _PARTS.get(part, (part,))
        for way in paths
        for name in _LEAVES.get(leaf, (leaf,))
    )


class ModulePatterns:
    """Patterns of modules, sorted so that a layer is only held against what may meet it."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = tuple(patterns)
        self._of_layer: dict[int, list[str]] = {}
        self._anywhere: list[str] = []
        self._compiled: list[re.Pattern[str]] = []
        starred: list[str] = []
        for pattern in self._patterns:
            self._sort(pattern, starred)
        if starred:  # in one, which tries them all at once
            self._compiled.append(re.compile(rf"(?:.*\.)?(?:{'|'.join(starred)})(?:\..*)?$"))

    def _sort(self, pattern: str, starred: list[str]) -> None:
        if pattern.startswith("re:"):
            self._compiled.append(re.compile(pattern[3:]))
        elif "*" in pattern:
            starred.append(re.escape(pattern).replace(r"\*", ".*"))
        else:
            found = _LAYER.search(pattern)
            if found is None:
                self._anywhere.append(f".{pattern}.")
            elif not any(word in pattern[: found.start()] for word in _ELSEWHERE):
                rest = pattern[found.end() :]
                self._of_layer.setdefault(int(found[1]), []).append(rest)

    def and_also(self, patterns: Iterable[str]) -> ModulePatterns:
        return ModulePatterns((*self._patterns, *patterns))

    def meet(self, layer: int, module: str) -> bool:
        """Whether a pattern means this module of the layer of this number."""
        if not self._patterns:
            return False
        here = self._of_layer.get(layer, ())
        for name in _names(module):
            if any(name == one or name.startswith(f"{one}.") or not one for one in here):
                return True
            if any(pattern in f".{name}." for pattern in self._anywhere):
                return True
            for before in ("model.layers", "language_model.model.layers", "backbone.layers"):
                full = f"{before}.{layer}.{name}"
                if any(pattern.match(full) for pattern in self._compiled):
                    return True
        return False
