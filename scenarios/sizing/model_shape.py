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
    best = min(_candidates(parameters, rules, name, count), key=lambda one: one[0])[1]
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


def _candidates(
    parameters: float, rules: ShapeRules, name: str, count: Count
) -> Iterator[tuple[float, ModelSpec]]:
    """Shapes and how far each is from what is wanted; per depth the best one or two widths."""
    for layers in range(1, MOST_LAYERS + 1):
        ideal = rules.aspect_ratio * layers
        low = max(1, round(ideal / ASPECT_FACTOR / rules.head_dim))
        high = max(low, round(ideal * ASPECT_FACTOR / rules.head_dim))
        below, above = low, high  # bisection: parameters grow with the width
        while above - below > 1:
            middle = (below + above) // 2
            if count(_shape(layers, middle, rules, name)) < parameters:
                below = middle
            else:
                above = middle
        for units in {low, *(_whole(units) for units in (below, above, above + 4))}:
            if not low <= units <= high:
                continue
            shape = _shape(layers, units, rules, name)
            off = abs(math.log(count(shape) / parameters))
            aspect = abs(math.log(units * rules.head_dim / ideal))
            yield SIZE_WEIGHT * off + aspect, shape


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
