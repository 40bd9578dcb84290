"""Gated DeltaNet from its measured kernels: a short convolution and the delta rule.

Both are timed for prompts (in chunks) and for decodes (one step of the recurrence), by key and
value heads on a GPU. What is in between, the gates and the norm behind, is counted with the layer's
small kernels. A state has no context: decodes' times go by their number alone.
"""

from __future__ import annotations

from calibrate.profiles.attention_kernels import Grid
from calibrate.profiles.kernel_tables import KernelTables, NotMeasured
from sim.model.layers import Mixer

HEAD_DIM = 128
CONTEXT = 1  # where the times of decodes, which have none, stand


def prefill_us(tables: KernelTables, mixer: Mixer, degree: int) -> tuple[Grid, str | None]:
    """µs of one layer by (new, 0) tokens of a lone prompt. Raises NotMeasured."""
    times = _times(tables, mixer, degree, "context", "seq_len", batch_size=1)
    return {(new, 0): time_us for new, time_us in times.items()}, None


def decode_us(tables: KernelTables, mixer: Mixer, degree: int) -> tuple[Grid, str | None]:
    """The same by (sequences, CONTEXT)."""
    times = _times(tables, mixer, degree, "generation", "batch_size")
    return {(sequences, CONTEXT): time_us for sequences, time_us in times.items()}, None


def _times(
    tables: KernelTables, mixer: Mixer, degree: int, phase: str, column: str, **wanted: int
) -> dict[int, float]:
    """Both kernels together, whichever variant of each is fastest."""
    heads = {
        (share.what, share.width): share.units
        for matrix in mixer.matrices
        if not isinstance(matrix.outputs, int)
        for share in matrix.outputs
    }
    keys = heads.get(("linear key heads", 2 * HEAD_DIM))
    values = heads.get(("linear value heads", HEAD_DIM))
    if keys is None or values is None:
        raise NotMeasured(f"{tables.system.name}, {tables.backend}: no kernels of this state")
    total: dict[int, float] = {}
    for kernel in ("causal_conv1d", "gated_delta_rule"):
        points = tables.points(
            "linear_attention",
            "gdn_perf",
            column,
            num_k_heads=max(keys // degree, 1),
            num_v_heads=max(values // degree, 1),
            head_k_dim=HEAD_DIM,
            head_v_dim=HEAD_DIM,
            phase=phase,
            kernel_source=lambda name, kernel=kernel: kernel in name,
            **wanted,
        )
        for (count,), time_us in points.items():
            total[count] = total.get(count, 0.0) + time_us
    return total
