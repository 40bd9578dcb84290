"""How a checkpoint's weights lie: which module in which format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from sim.model import weight_format
from sim.model.matrix import Formats
from sim.model.module_names import ModulePatterns
from sim.model.weight_format import WeightFormat


@dataclass(frozen=True, slots=True)
class Quantisation:
    """Formats by rules: the first whose patterns meet a module is its; ``ignored`` ones are plain.

    ``everywhere`` formats embeddings and the output head too (MLX). ``experts`` is the format of
    routed experts where it is another.
    """

    method: str
    rules: tuple[tuple[ModulePatterns | None, WeightFormat], ...]
    ignored: ModulePatterns = field(default_factory=lambda: ModulePatterns(()))
    experts: WeightFormat | None = None
    only_experts: bool = False
    everywhere: bool = False
    kv_cache_dtype: str | None = None

    def formats(self, plain: WeightFormat) -> Callable[[int], Formats]:
        """For a layer's number, the format of each of its modules."""

        def of_layer(number: int) -> Formats:
            return lambda module: self._format(number, module) or plain

        return of_layer

    def _format(self, layer: int, module: str) -> WeightFormat | None:
        routed = ".experts." in module
        if self.only_experts and not routed:
            return None
        if self.ignored.meet(layer, module):
            return None
        if routed and self.experts is not None:
            return self.experts
        for patterns, weights in self.rules:
            if patterns is None or patterns.meet(layer, module):
                return weights
        return None

    @property
    def main(self) -> WeightFormat:
        """The format that is most of it."""
        return self.experts or self.rules[-1][1]

    def with_experts(self, said: object) -> Quantisation:
        """The same with routed experts in the type that a configuration names (expert_dtype)."""
        if said in ("fp4", "mxfp4"):
            return replace(self, experts=weight_format.mxfp4())
        return self
