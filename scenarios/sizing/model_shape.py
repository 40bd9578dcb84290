"""A concrete transformer near a number of parameters: layers, width, heads, experts.

The family is the one most open models share (Llama, Qwen3): pre-norm, rotary positions, gated MLP
of about 8/3 of the width, grouped-query attention. Width grows with depth at a fixed aspect ratio:
Llama's models are 102 to 130 wide per layer from 7B to 405B, and Kaplan et al. 2020 (section 3.1)
find the loss hardly changes between 50 and 200. Widths are multiples of four heads and the MLP's of
256, as matrix units want them; heads come in eights, so that 8 GPUs can share them, even where
together they are a little wider than the model (Qwen3-4B: width 2,560, 32 heads of 128). Models
below eight heads of width are multiples of one.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sim.model.config import read_config
from sim.model.spec import ModelSpec

WIDTH_MULTIPLE = 256  # of the MLP: tiles of tensor cores, split 2 ways and still whole
MOST_LAYERS = 256
# How far off the aspect ratio may be (as a factor) before a shape no longer counts.
ASPECT_FACTOR = 2.0
# One unit of |log N error| weighs as much as this many of |log aspect error|: 5 % of size are worth
# a third of depth. Budgets and losses are computed with the shape's own N, so nothing is lost.
SIZE_WEIGHT = 6.0
TOO_LARGE = 4 / 3  # a model larger than wanted by this factor is another model


@dataclass(frozen=True, slots=True)
class ShapeRules:
    """What the shapes of a study have in common.

    ``num_experts`` 0: a dense model. Experts are ``expert_width_ratio`` times the hidden width.
    """

    vocab_size: int = 128_256
    head_dim: int = 128
    kv_heads: int = 8
    mlp_ratio: float = 8 / 3
    aspect_ratio: float = 128.0
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 8192
    num_experts: int = 0
    experts_per_token: int = 2
    expert_width_ratio: float = 2 / 3


Count = Callable[[ModelSpec], int]  # what a law counts as N


def activated(model: ModelSpec) -> int:
    """All parameters that a token uses: what Hoffmann et al. 2022 count, experts apart."""
    return model.num_activated_parameters


def nearest_shape(
    parameters: float, rules: ShapeRules, *, name: str, count: Count = activated
) -> ModelSpec:
    """The model whose `count` comes nearest to `parameters` at a sound aspect ratio.

    Raises ``ValueError`` where even the smallest such model is more than a third larger.
    """
    sizes = _Sizes(rules, count)
    _, layers, units = min(_candidates(parameters, sizes))
    best = _shape(layers, units, rules, name)
    if count(best) > parameters * TOO_LARGE:
        least = smallest_shape(rules, name=name)
        raise ValueError(
            f"{parameters:.3g} parameters are too few for a model: the smallest, "
            f"{least.num_layers} layer of width {least.hidden_size} with a vocabulary of "
            f"{rules.vocab_size:,}, has {count(least):.3g}"
        )
    return best


def smallest_shape(rules: ShapeRules, *, name: str) -> ModelSpec:
    """One layer, one head."""
    return _shape(1, 1, rules, name)


class _Sizes:
    """Parameters of shapes by layers and width in heads, two models read for each width.

    All layers are alike, so a count is linear in their number.
    """

    def __init__(self, rules: ShapeRules, count: Count) -> None:
        self.rules, self._count = rules, count
        self._of_width: dict[int, tuple[int, int]] = {}  # of no layer, of each

    def __call__(self, layers: int, units: int) -> int:
        if units not in self._of_width:
            one, two = (self._count(_shape(each, units, self.rules, "sized")) for each in (1, 2))
            self._of_width[units] = 2 * one - two, two - one
        rest, each = self._of_width[units]
        return rest + layers * each

    def ideal_units(self, layers: int) -> float:
        return self.rules.aspect_ratio * layers / self.rules.head_dim

    def narrowest(self, layers: int) -> int:
        return max(1, round(self.ideal_units(layers) / ASPECT_FACTOR))

    def widest(self, layers: int) -> int:
        return max(self.narrowest(layers), round(self.ideal_units(layers) * ASPECT_FACTOR))


def _candidates(parameters: float, sizes: _Sizes) -> Iterator[tuple[float, int, int]]:
    """How far off, layers and width of the shapes that may be the nearest.

    Parameters grow with depth and width: from the first depth that has a shape large enough on,
    search up and down until the size alone is farther off than the best shape.
    """
    depths = range(1, MOST_LAYERS + 1)
    first = bisect_left(depths, parameters, key=lambda layers: sizes(layers, sizes.widest(layers)))
    best = math.inf
    for layers in depths[first:]:
        if SIZE_WEIGHT * math.log(sizes(layers, sizes.narrowest(layers)) / parameters) > best:
            break
        for found in _of_depth(layers, parameters, sizes):
            best = min(best, found[0])
            yield found
    for layers in reversed(depths[:first]):
        if SIZE_WEIGHT * math.log(parameters / sizes(layers, sizes.widest(layers))) > best:
            break
        for found in _of_depth(layers, parameters, sizes):
            best = min(best, found[0])
            yield found


def _of_depth(layers: int, parameters: float, sizes: _Sizes) -> Iterator[tuple[float, int, int]]:
    """The best one or two widths of a depth."""
    low, high = sizes.narrowest(layers), sizes.widest(layers)
    below, above = low, high  # bisection: parameters grow with the width
    while above - below > 1:
        middle = (below + above) // 2
        if sizes(layers, middle) < parameters:
            below = middle
        else:
            above = middle
    for units in {low, *(_whole(units) for units in (below, above, above + 4))}:
        if low <= units <= high:
            off = abs(math.log(sizes(layers, units) / parameters))
            aspect = abs(math.log(units / sizes.ideal_units(layers)))
            yield SIZE_WEIGHT * off + aspect, layers, units


def _whole(units: int) -> int:
    return units if units < 8 else units // 4 * 4


def _shape(layers: int, units: int, rules: ShapeRules, name: str) -> ModelSpec:
    return read_config(shape_config(layers, units, rules), name=name)


def shape_config(layers: int, units: int, rules: ShapeRules) -> dict[str, Any]:
    """The Hugging Face configuration of a model `units` heads wide."""
    hidden = units * rules.head_dim
    heads = units if units < 8 else -(-units // 8) * 8
    config: dict[str, Any] = {
        "model_type": "qwen3_moe" if rules.num_experts else "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": math.gcd(rules.kv_heads, heads),
        "head_dim": rules.head_dim,
        "intermediate_size": _multiple(hidden * rules.mlp_ratio),
        "vocab_size": rules.vocab_size,
        "max_position_embeddings": rules.max_position_embeddings,
        "tie_word_embeddings": rules.tie_word_embeddings,
        "torch_dtype": "bfloat16",
    }
    if rules.num_experts:
        config |= {
            "num_experts": rules.num_experts,
            "num_experts_per_tok": rules.experts_per_token,
            "moe_intermediate_size": _multiple(hidden * rules.expert_width_ratio),
        }
    return config


def config_of(model: ModelSpec, rules: ShapeRules) -> dict[str, Any]:
    """The configuration of a model that `nearest_shape` made."""
    return shape_config(model.num_layers, model.hidden_size // rules.head_dim, rules)


def _multiple(width: float) -> int:
    return max(WIDTH_MULTIPLE, round(width / WIDTH_MULTIPLE) * WIDTH_MULTIPLE)
