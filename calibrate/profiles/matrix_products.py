"""Matrix products of any shape from measured ones: utilisation of the neighbours, blended.

Utilisation is roofline time over measured time. Between two measured widths (and depths) it is
blended linearly, at each measured number of rows; beyond the grid that of its edge is held. Rows
are never interpolated here: steps at tile boundaries stay where they were measured.

Taking a width (512 and above) away from the package's grid and composing it from its neighbours
errs by 3.8 % (median) on an H200, 5.7 % on an A100, 7.6 % on an L40S. Blending slowdowns instead of
utilisations errs by 4.5, 6.5 and 8.0 %.

*Slow now and then.* About a fifth of the package's products whose weights come from memory take
15 % longer (H100; 12 % on H200) than the same product with a row less and a row more, and hardly
any is in between: a state of the machine, not of the kernel, whose steps last. Such a point takes
the best utilisation of those with fewer rows or with more, whichever is less.

*Scales of inputs.* Products in float8 of one scale a tensor were timed with the kernels before them
that find the scale of their input and divide it, 7 to 9 us of TensorRT-LLM's 12 and more, 1 of
vLLM's 5. A checkpoint has these scales (ModelOpt's ``input_scale``), so nothing finds them; and the
kernel that wrote the input divided it already where that is an attention or an activation. The
package timed both kernels apart, and its own compositions take them off likewise.

*Launches timed for kernels.* Block-scaled float8 products of vLLM take 55 to 420 µs in the package,
by GPU, whatever their size, a product of 32 x 32 too: what was timed is the host that launches
them, which an engine's CUDA graphs do without. (SGLang's, the same DeepGEMM kernels, start at
3.4 µs, and one whole attention module of vLLM's with five such products takes 94 µs.) Where the
least product of a format takes that long, times near it are replaced by those of the same format by
another engine, else of one scale a tensor, which large products match within a tenth on Hopper.

*Kernels of the same libraries.* Products in NVFP4 are CUTLASS's, cuBLASLt's and CuTe DSL's in every
engine (TensorRT-LLM tunes among all three; vLLM and SGLang take FlashInfer's, which has them). The
package timed one for each engine, TensorRT-LLM's such that a product of 8,192 x 8,192 takes as long
as in 16 bits. Each is taken as it was fastest.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache

from calibrate.profiles.kernel_tables import KernelTables, NotMeasured, Points, System
from calibrate.profiles.precision import WEIGHT_BYTES
from sim.latency.grid import Line
from sim.latency.table_folder import TableError

# The least product of every other format and engine takes 1.5 to 12 µs, on cards of Intel 17 to 32.
LONGEST_START_US = 40.0
NEAR_A_LAUNCH = 1.5
# What products that keep the tensor cores busy (at BUSY of their peak, by proportion below) take
# longer in a server, whose power is limited, than timed for some milliseconds: those of 8 bits and
# of 4. From serving points in float8 on H100, of TensorRT-LLM's Qwen3-32B (1.4: a prompt of 1,024
# tokens takes 77 ms from the others' decodes on one GPU) and of vLLM's Llama-3.1-70B (1.15 to 1.4).
# In 16 bits prompts take 5 to 10 % longer there than forecast; nothing is made of that.
SUSTAINED = 1.3
BUSY = 0.5
WEIGHTS_ALONE = ("int4_wo", "int8_wo", "w4a16_mxfp4")  # computed in 16 bits
# Kinds of products whose input an attention or an activation wrote.
KERNELS_BEFORE = ("scale_matrix", "computescale")
WRITTEN_SCALED = ("o", "down", "shared_down")

SHARED = ("nvfp4",)  # formats whose kernels all engines have of the same libraries

LEAST_READ_BYTES = 2**25  # smaller weights stay in the cache between takes
AROUND = 5  # measured numbers of rows on either side
STEADY = 0.95  # of the best utilisation there
ANOTHER = 0.75  # below it is another kernel's

Shapes = dict[tuple[int, int], dict[int, float]]


class Products:
    """The measured products of one number format; `how` says which of them are another's.

    Raises NotMeasured where there are none.
    """

    def __init__(self, tables: KernelTables, dtype: str) -> None:
        self._tables, self._dtype = tables, dtype
        self._scales = InputScales(tables, dtype)
        points, self.how = _without_launches(tables, dtype)
        if dtype in SHARED:
            points, self.how = _fastest(tables, dtype, points)
        self._shapes: Shapes = {}
        for (n, k, m), time_us in points.items():
            self._shapes.setdefault((n, k), {})[m] = time_us
        self._widths = sorted({n for n, _ in self._shapes})
        self._depths = sorted({k for _, k in self._shapes})
        self._mended: Shapes = {}

    def _times_us(self, shape: tuple[int, int]) -> dict[int, float]:
        """A measured shape's times by rows, those that were slow now and then mended."""
        if shape not in self._mended:
            times_us, read = self._shapes[shape], WEIGHT_BYTES[self._dtype] * shape[0] * shape[1]
            if read >= LEAST_READ_BYTES:
                times_us = _without_slow_ones(self._tables.system, shape, times_us, self._dtype)
            self._mended[shape] = times_us
        return self._mended[shape]

    @property
    def borrowed(self) -> dict[str, str]:
        """What was taken from another version: family -> "BACKEND VERSION"."""
        return self._tables.borrowed

    def times_us(
        self, width: int, depth: int, *, written_scaled: bool = False
    ) -> list[tuple[int, float]]:
        """[rows, depth] x [depth, width]: (rows, µs) at every measured number of rows.

        `written_scaled`: the input comes as the product's numbers. Raises NotMeasured where no
        neighbour was measured.
        """
        shapes, system = self._shapes, self._tables.system
        corners = {
            (n, k): share_n * share_k
            for n, share_n in _neighbours(self._widths, width)
            for k, share_k in _neighbours(self._depths, depth)
            if (n, k) in shapes
        }
        if not corners:
            raise NotMeasured(
                f"{system.name}, {self._tables.backend} {self._tables.version}: "
                f"no product near {width} x {depth} in {self._dtype}"
            )
        total = sum(corners.values())
        found = []
        measured = {shape: self._times_us(shape) for shape in corners}
        for m in sorted(set.intersection(*(set(times_us) for times_us in measured.values()))):
            utilisation = sum(
                share / total * _ideal_us(system, (m, *shape), self._dtype) / measured[shape][m]
                for shape, share in corners.items()
            )
            ideal_us = _ideal_us(system, (m, width, depth), self._dtype)
            scales_us = self._scales.times_us(m, depth, written_scaled=written_scaled)
            timed_us = ideal_us / utilisation
            alone_us = max(timed_us - scales_us, min(ideal_us, timed_us))
            found.append((m, alone_us * self._sustained((m, width, depth), alone_us)))
        return found

    def _sustained(self, shape: tuple[int, int, int], time_us: float) -> float:
        """How much longer a product takes among others than alone."""
        if WEIGHT_BYTES[self._dtype] > 1 or self._dtype in WEIGHTS_ALONE:
            return 1.0
        m, n, k = shape
        busy = 2e6 * m * n * k / self._tables.system.flops_per_s(self._dtype) / time_us
        return 1.0 + (SUSTAINED - 1.0) * min(busy / BUSY, 1.0)


def products_of(tables: KernelTables, dtype: str) -> Products:
    """`Products` of these tables, read once for all that are composed of them."""
    made = _made(tables.system, tables.backend, tables.version, dtype)
    tables.borrowed.update(made.borrowed)
    return made


@lru_cache(maxsize=8)
def _made(system: System, backend: str, version: str, dtype: str) -> Products:
    return Products(KernelTables(system, backend, version), dtype)


class InputScales:
    """What products of one number format were timed with, and a checkpoint's own scales spare.

    That were the kernels which the least product takes as long as, with the least in 16 bits.
    """

    def __init__(self, tables: KernelTables, dtype: str) -> None:
        self._finding: dict[int, Line] = {}
        self._dividing: dict[int, Line] = {}
        if dtype != "fp8":
            return
        try:
            least_us = min(tables.products(dtype).values())
            least_us -= min(tables.products("bfloat16").values())
        except NotMeasured:
            return
        dividing, finding = (_by_depth(tables, f"{name}_perf") for name in KERNELS_BEFORE)
        if dividing and (beside_us := _least_us(dividing)) <= least_us:
            self._dividing = dividing
            if finding and beside_us + _least_us(finding) <= least_us:
                self._finding = finding

    def times_us(self, rows: int, depth: int, *, written_scaled: bool) -> float:
        """Finding the scale of an input [rows, depth]; and dividing it, where that was done."""
        divided_us = _at(self._dividing, rows, depth) if written_scaled else 0.0
        return _at(self._finding, rows, depth) + divided_us


def _by_depth(tables: KernelTables, name: str) -> dict[int, Line]:
    """µs by rows, for each measured depth; empty where the package timed none."""
    try:
        points = tables.points("quantize", name, "k", "m", quant_dtype="fp8")
    except TableError:
        return {}  # of an engine that has no such kernel, times of zero
    depths: dict[int, dict[int, float]] = {}
    for (depth, rows), time_us in points.items():
        depths.setdefault(depth, {})[rows] = time_us
    return {k: Line(sorted(of), [of[m] for m in sorted(of)]) for k, of in depths.items()}


def _least_us(lines: dict[int, Line]) -> float:
    return min(line(1) for line in lines.values())


def _at(lines: dict[int, Line], rows: int, depth: int) -> float:
    if not lines:
        return 0.0
    return sum(share * lines[k](rows) for k, share in _neighbours(sorted(lines), depth))


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


def _fastest(tables: KernelTables, dtype: str, points: Points) -> tuple[Points, str | None]:
    """Each product as the engine timed it that was fastest, and whether another was."""
    fastest, engines = dict(points), []
    for other in tables.elsewhere():
        try:
            found = other.products(dtype)
        except NotMeasured:
            continue
        faster = {key: us for key, us in found.items() if key in fastest and us < fastest[key]}
        if faster:
            fastest.update(faster)
            engines.append(f"{other.backend} {other.version}")
    named = " and ".join(engines)
    return fastest, f"{dtype} products as {named} ran them, where faster" if engines else None


def _without_slow_ones(
    system: System, shape: tuple[int, int], times_us: dict[int, float], dtype: str
) -> dict[int, float]:
    """The same by rows; those that were slow, where reading weights is what takes long, mended."""
    compute_us = 2 * shape[0] * shape[1] / system.flops_per_s(dtype) * 1e6
    ideals_us = {rows: _ideal_us(system, (rows, *shape), dtype) for rows in sorted(times_us)}
    read = [rows for rows, ideal_us in ideals_us.items() if ideal_us > compute_us * rows]
    reached = [ideals_us[rows] / times_us[rows] for rows in read]
    mended = dict(times_us)
    for i in range(1, len(read) - 1):
        around = reached[max(i - AROUND, 0) : i], reached[i + 1 : i + 1 + AROUND]
        usual = min(map(max, around))
        if ANOTHER * usual < reached[i] < STEADY * usual:
            mended[read[i]] = ideals_us[read[i]] / usual
    return mended


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
