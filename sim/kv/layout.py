"""How a model's layers share out a KV block: which tables a sequence has, what a block takes.

As vLLM's ``kv_cache_utils.get_kv_cache_groups``: layers that keep the same tokens are one type, and
each type is dealt out to tables of equally many layers, so that a block of any table takes the
same: as many as the smallest type has, or the largest where that is less than half as many again.
Where states are larger than a block's keys and values of a layer, blocks hold as many
tokens more as it takes (``_align_hybrid_block_size``).

Types whose layers keep different bytes of a token vLLM gives blocks of different tokens; here those
that keep more have more tables, which takes the same bytes to within the rounding of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from sim.kv.tables import TableRule
from sim.model.spec import ModelSpec

ALIGNMENT = 16  # tokens: attention kernels take blocks of no other multiples


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers that keep the same tokens: ``label`` in words, and the tables that they share."""

    label: str
    num_layers: int
    rule: TableRule


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """``block_size`` is in tokens; a block takes ``block_bytes`` of a GPU.

    ``sequence_bytes`` are set aside for each sequence that may run, outside the blocks.
    """

    block_size: int
    block_bytes: int
    groups: tuple[CacheGroup, ...]
    sequence_bytes: int = 0

    @property
    def rules(self) -> tuple[TableRule, ...]:
        """None where a sequence has one table that keeps every token."""
        rules = tuple(group.rule for group in self.groups)
        plain = len(rules) == 1 and rules[0].kind == "full" and rules[0].tables == 1
        return () if plain else rules

    @property
    def tables(self) -> int:
        """Block tables of a sequence."""
        return sum(group.rule.tables for group in self.groups)

    @property
    def full_tables(self) -> int:
        """Of those, how many keep every token."""
        return sum(group.rule.tables for group in self.groups if group.rule.kind == "full")

    @property
    def state_tables(self) -> int:
        """Of those, how many hold a state."""
        return sum(group.rule.tables for group in self.groups if not group.rule.grows)

    def blocks_held(self, tokens: int) -> int:
        """Blocks of a sequence of so many tokens, once windows have given back what they can."""
        size = self.block_size
        return sum(
            (rule.blocks_for(tokens, size) - rule.skipped_blocks(tokens, size)) * rule.tables
            for rule in (group.rule for group in self.groups)
        )


def cache_layout(
    model: ModelSpec,
    *,
    block_size: int = 16,
    kv_cache_dtype: str = "auto",
    tensor_parallel: int = 1,
    by_groups: bool = True,
    stage: ModelSpec | None = None,
) -> CacheLayout:
    """The layout of a model's cache; `block_bytes` is that of a `stage` of its layers, or of all.

    Without `by_groups` every layer keeps every token, as in engines without a hybrid cache, and
    states lie outside the blocks. Raises ValueError for an unknown ``kv_cache_dtype`` and for
    chunks that are no whole number of blocks.
    """
    types = _types(model, kv_cache_dtype, tensor_parallel)
    here = _types(stage or model, kv_cache_dtype, tensor_parallel)
    token_bytes = sum(one.token_bytes for one in here.values())
    state = sum(one.state_bytes for one in here.values())
    alike = len(types) == 1 and not state
    if alike or not by_groups:
        rule = next(iter(types.values())).rule if alike and by_groups else TableRule("full")
        label = "; ".join(one.label for one in types.values() if one.token_bytes)
        layers = sum(one.num_layers for one in types.values() if one.token_bytes)
        group = CacheGroup(label, layers, rule)
        return CacheLayout(block_size, block_size * token_bytes, (group,), state)
    size = _aligned(types.values(), block_size)
    for one in types.values():
        if one.rule.kind == "chunked" and one.rule.window % size:
            raise ValueError(
                f"{model.name} attends within chunks of {one.rule.window:,} tokens, which are no "
                f"whole number of blocks of {size}: change block_size, or set "
                "disable_hybrid_kv_cache_manager"
            )
    tables = _tables(types, size)
    page = max(one.page(size) for one in types.values())
    block_bytes = 0.0
    for key, one in here.items():
        each: float = one.num_layers / tables[key]
        held = math.ceil(each) * page if _equal_pages(types) else each * one.page(size)
        block_bytes = max(block_bytes, held)
    groups = [
        CacheGroup(one.label, one.num_layers, replace(one.rule, tables=tables[key]))
        for key, one in types.items()
    ]
    groups.sort(key=lambda group: not group.rule.grows)
    return CacheLayout(size, math.ceil(block_bytes), tuple(groups))


@dataclass(slots=True)
class _Type:
    """Layers that keep the same tokens, on one GPU."""

    label: str
    rule: TableRule
    num_layers: int = 0
    token_bytes: int = 0
    state_bytes: int = 0

    def page(self, block_size: int) -> float:
        """Bytes of a block of one layer."""
        return max(block_size * self.token_bytes, self.state_bytes) / self.num_layers


def _types(model: ModelSpec, kv_cache_dtype: str, tensor_parallel: int) -> dict[str, _Type]:
    """By what they keep, in the order of the layers; layers that keep nothing are none."""
    each = model.kv_bytes_each(kv_cache_dtype)
    found: dict[str, _Type] = {}
    for layer, count in model.kinds.items():
        for mixer in layer.mixers:
            token_bytes = mixer.cached_bytes(each, tensor_parallel) if mixer.attends else 0
            state_bytes = mixer.state_bytes // tensor_parallel
            if token_bytes:
                kind = mixer.kind if mixer.kind in ("sliding", "chunked") else "full"
                key = kind if kind == "full" else mixer.label
                one = found.setdefault(key, _Type(mixer.label, TableRule(kind, mixer.window or 0)))
                one.num_layers += count
                one.token_bytes += token_bytes * count
            if state_bytes:
                state = found.setdefault("state", _Type("state", TableRule("state")))
                state.num_layers += count
                state.state_bytes += state_bytes * count
    return found


def _aligned(types: Iterable[_Type], block_size: int) -> int:
    """So many tokens a block that a layer's keys and values are as large as a layer's state."""
    types = list(types)
    tokens = max((one.token_bytes / one.num_layers for one in types if one.token_bytes), default=0)
    states = max(one.state_bytes / one.num_layers for one in types)
    if not states or not tokens:
        return block_size
    step = max(ALIGNMENT, block_size)
    return max(block_size, step * math.ceil(states / (step * tokens)))


def _equal_pages(types: Mapping[str, _Type]) -> bool:
    sizes = {one.token_bytes / one.num_layers for one in types.values() if one.token_bytes}
    return len(sizes) <= 1


def _tables(types: Mapping[str, _Type], block_size: int) -> dict[str, int]:
    """How many tables each type's layers are dealt out to."""
    if _equal_pages(types):
        fewest, most = (pick(one.num_layers for one in types.values()) for pick in (min, max))
        together = most if most < 1.5 * fewest else fewest
        return {key: math.ceil(one.num_layers / together) for key, one in types.items()}
    held = {key: one.page(block_size) * one.num_layers for key, one in types.items()}
    return {key: max(round(each / min(held.values())), 1) for key, each in held.items()}
