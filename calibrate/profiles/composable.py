"""Which models' iterations are sums of the kernels that profiles measured."""

from __future__ import annotations

from sim.model.spec import ModelSpec

_WEIGHTS = ("bfloat16", "float16", "float8", "int4", "int8", "int8_wo", "nvfp4", "mxfp4")
_KINDS = ("full", "latent")


def why_not_composed(model: ModelSpec) -> str | None:
    """What of this model no profile has measured; None where its kernels are all of known kinds.

    Windows, chunks, indexers, states and layers of several kinds have kernels of their own.
    """
    if model.weight_dtype not in _WEIGHTS:
        return f"products with weights in {model.weight_dtype}"
    mixers = [layer.mixers for layer in model.kinds]
    kinds = {mixer.label for several in mixers for mixer in several}
    other = sorted(kinds - set(_KINDS))
    if other:
        return f"attention of kind {other[0]}"
    shapes = {
        (m.kind, m.num_heads, m.num_kv_heads, m.head_dim, m.v_head_dim)
        for several in mixers
        for m in several
    }
    if len(shapes) != 1 or any(len(several) != 1 for several in mixers):
        return "layers with different kinds of attention"
    return None
