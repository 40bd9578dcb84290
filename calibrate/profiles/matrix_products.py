"""Matrix products of any shape from measured ones: utilisation of the neighbours, blended.

Utilisation is roofline time over measured time. Between two measured widths (and depths) it is
blended linearly, at each measured number of rows; beyond the grid that of its edge is held. Rows
are never interpolated here: steps at tile boundaries stay where they were measured.

Taking a width (512 and above) away from the package's grid and composing it from its neighbours
errs by 3.8 % (median) on an H200, 5.7 % on an A100, 7.6 % on an L40S. Blending slowdowns instead of
utilisations errs by 4.5, 6.5 and 8.0 %.

*Launches timed for kernels.* Block-scaled float8 products of vLLM take 55 to 420 µs in the package,
by GPU, whatever their size, a product of 32 x 32 too: what was timed is the host that launches
them, which an engine's CUDA graphs do without. (SGLang's, the same DeepGEMM kernels, start at
3.4 µs, and one whole attention module of vLLM's with five such products takes 94 µs.) Where the
least product of a format takes that long, times near it are replaced by those of the same format by
another engine, else of one scale a tensor, which large products match within a tenth on Hopper.
"""

from __future__ import annotations

from bisect import bisect_right

from calibrate.profiles.kernel_tables import KernelTables, NotMeasured, Points, System
from calibrate.profiles.precision import WEIGHT_BYTES

# The least product of every other format and engine takes 1.5 to 12 µs, on cards of Intel 17 to 32.
LONGEST_START_US = 40.0
NEAR_A_LAUNCH = 1.5

Shapes = dict[tuple[int, int], dict[int, float]]


class Products:
    """The measured products of one number format; `how` says which of them are another's.

    Raises NotMeasured where there are none.
    """

    def __init__(self, tables: KernelTables, dtype: str) -> None:
        self._tables, self._dtype = tables, dtype
        points, self.how = _without_launches(tables, dtype)
        self._shapes: Shapes = {}
        for (n, k, m), time_us in points.items():
            self._shapes.setdefault((n, k), {})[m] = time_us

    def times_us(self, width: int, depth: int) -> list[tuple[int, float]]:
        """[rows, depth] x [depth, width]: (rows, µs) at every measured number of rows.

        Raises NotMeasured where no neighbour was measured.
        """
        shapes, system = self._shapes, self._tables.system
        corners = {
            (n, k): share_n * share_k
            for n, share_n in _neighbours(sorted({n for n, _ in shapes}), width)
            for k, share_k in _neighbours(sorted({k for _, k in shapes}), depth)
            if (n, k) in shapes
        }
        if not corners:
            raise NotMeasured(
                f"{system.name}, {self._tables.backend} {self._tables.version}: "
                f"no product near {width} x {depth} in {self._dtype}"
            )
        total = sum(corners.values())
        found = []
        for m in sorted(set.intersection(*(set(shapes[shape]) for shape in corners))):
            utilisation = sum(
                share / total * _ideal_us(system, (m, *shape), self._dtype) / shapes[shape][m]
                for shape, share in corners.items()
            )
            ideal_us = _ideal_us(system, (m, width, depth), self._dtype)
            found.append((m, ideal_us / utilisation))
        return found


def _without_launches(tables: KernelTables, dtype: str) -> tuple[Points, str | None]:
    """The measured points, and whose are those that were a launch's; None where none was."""
    points = tables.products(dtype)
    least_us: dict[int, float] = {}
    for (_, _, rows), time_us in points.items():
        least_us[rows] = min(time_us, least_us.get(rows, time_us))
    if min(least_us.values()) < LONGEST_START_US:
        return points, None
    found = tables.products_elsewhere(dtype, LONGEST_START_US)
    if found is None and dtype == "fp8_block":
        found = tables.products("fp8"), "one scale a tensor"
    if found is None:
        return points, None
    others, whose = found
    kept = {}
    for key, time_us in points.items():
        bound = time_us < NEAR_A_LAUNCH * least_us[key[2]]
        kept[key] = min(time_us, others.get(key, time_us)) if bound else time_us
    shortest = min(least_us.values())
    return kept, f"{dtype} products of {whose} where a launch of {shortest:.0f} µs was timed"


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
