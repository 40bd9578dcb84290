"""Which models' iterations are sums of the kernels that profiles measured."""

from __future__ import annotations

from sim.model.spec import ModelSpec

_WEIGHTS = ("bfloat16", "float16", "float8", "int4", "int8", "int8_wo", "nvfp4", "mxfp4")


def why_not_composed(model: ModelSpec) -> str | None:
    """What of this model no profile has measured; None where its products are of known kinds."""
    if model.weight_dtype not in _WEIGHTS:
        return f"products with weights in {model.weight_dtype}"
    return None
