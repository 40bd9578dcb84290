"""Matrix products of any shape from measured ones: utilisation of the neighbours, blended.

Utilisation is roofline time over measured time. Between two measured widths (and depths) it is
blended linearly, at each measured number of rows; beyond the grid that of its edge is held. Rows
are never interpolated here: steps at tile boundaries stay where they were measured.

Taking a width (512 and above) away from the package's grid and composing it from its neighbours
errs by 3.8 % (median) on an H200, 5.7 % on an A100, 7.6 % on an L40S. Blending slowdowns instead of
utilisations errs by 4.5, 6.5 and 8.0 %.
"""

from __future__ import annotations

from bisect import bisect_right

from calibrate.profiles.kernel_tables import KernelTables, NotMeasured, System

# Bytes of a weight in the package's number formats; inputs and outputs take two.
WEIGHT_BYTES = {"bfloat16": 2, "fp8": 1, "fp8_block": 1, "int4_wo": 0.5}


def product_us(tables: KernelTables, width: int, depth: int, dtype: str) -> list[tuple[int, float]]:
    """[rows, depth] x [depth, width] in `dtype`: (rows, µs) at every measured number of rows.

    Raises NotMeasured where no neighbour was measured.
    """
    shapes: dict[tuple[int, int], dict[int, float]] = {}
    for (n, k, m), time_us in tables.products(dtype).items():
        shapes.setdefault((n, k), {})[m] = time_us
    corners = {
        (n, k): share_n * share_k
        for n, share_n in _neighbours(sorted({n for n, _ in shapes}), width)
        for k, share_k in _neighbours(sorted({k for _, k in shapes}), depth)
        if (n, k) in shapes
    }
    if not corners:
        raise NotMeasured(
            f"{tables.system.name}, {tables.backend} {tables.version}: "
            f"no product near {width} x {depth} in {dtype}"
        )
    total = sum(corners.values())
    found = []
    for m in sorted(set.intersection(*(set(shapes[shape]) for shape in corners))):
        utilisation = sum(
            share / total * _ideal_us(tables.system, (m, *shape), dtype) / shapes[shape][m]
            for shape, share in corners.items()
        )
        found.append((m, _ideal_us(tables.system, (m, width, depth), dtype) / utilisation))
    return found


def _ideal_us(system: System, shape: tuple[int, int, int], dtype: str) -> float:
    """The roofline's time of [m, k] x [k, n] for (m, n, k)."""
    m, n, k = shape
    moved = WEIGHT_BYTES[dtype] * n * k + 2 * m * (n + k)
    compute_s = 2 * m * n * k / system.flops_per_s(dtype)
    return max(compute_s, moved / system.bytes_per_s) * 1e6


def _neighbours(axis: list[int], value: int) -> list[tuple[int, float]]:
    """The values on either side with their shares; one alone on the grid and beyond it."""
    inside = min(max(value, axis[0]), axis[-1])
    i = bisect_right(axis, inside) - 1
    if axis[i] == inside:
        return [(inside, 1.0)]
    share = (inside - axis[i]) / (axis[i + 1] - axis[i])
    return [(axis[i], 1.0 - share), (axis[i + 1], share)]
