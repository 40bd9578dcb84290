"""Timing kernels on a GPU against torch's: rows of a table of ratios."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from calibrate.device.timer import Call, Ceilings, graph_timing, rotations


@dataclass(slots=True)
class Row:
    """One line of the table; times in µs, ``spread`` is (p90 − p10) ÷ median of our replays.

    NaN is the time of a kernel that failed; the note says how.
    """

    operation: str
    shape: str
    ours_us: float
    spread: float
    torch_us: float | None = None
    torch_kernel: str = ""
    share: float | None = None
    share_of: str = ""
    reference_us: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """torch ÷ ours: above 1, ours is faster."""
        return None if self.torch_us is None else self.torch_us / self.ours_us

    def line(self) -> str:
        """The row for the terminal."""
        ratio = "" if self.ratio is None else f"{self.ratio:5.2f}x {self.torch_kernel}"
        share = "" if self.share is None else f"{self.share:6.1%} {self.share_of}"
        other = "" if self.reference_us is None else f"reference {self.reference_us:.1f}"
        head = f"{self.operation:24} {self.shape:24} {self.ours_us:10.1f} us"
        return f"{head} {ratio:26} {share:14} {other} {self.note}".rstrip()


def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
    """Random bf16 data on the GPU; zeros would run faster."""
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * scale


def time_us(calls: list[Call], *, replays: int = 15) -> tuple[float, float]:
    """Median time of one call and its spread; the calls are captured in one graph, ten at least."""
    timing = graph_timing(calls, replays=replays, least_calls=10)
    return timing.time_us, timing.spread


def compare(
    operation: str,
    shape: str,
    make: Callable[[], tuple[Call, dict[str, Call]]],
    *,
    ceilings: Ceilings,
    moved_bytes: int = 0,
    flops: int = 0,
    note: str = "",
) -> Row:
    """Time ours and torch's alternatives over rotating inputs; keep torch's fastest.

    Args:
        make: draws one set of inputs; gives our call and torch's calls by name.
        moved_bytes: the fewest bytes a call moves; the share is of copy bandwidth.
        flops: if given, the share is of the matrix rate instead. Without ``moved_bytes`` as many
            sets rotate as together exceed three L2 caches with all that they hold.

    A kernel of ours that fails, too large for the GPU for instance, costs its own row. Raises what
    ``torch.cuda.synchronize`` does where the GPU took harm.
    """
    before_bytes = torch.cuda.memory_allocated()
    try:
        sets = [make()]
        held_bytes = torch.cuda.memory_allocated() - before_bytes
        sets += [make() for _ in range(rotations(moved_bytes or held_bytes) - 1)]
        ours_us, spread = time_us([ours for ours, _ in sets])
    except Exception as error:
        torch.cuda.synchronize()
        said = (str(error).splitlines() or [""])[0][:100]
        note = f"{note} failed: {type(error).__name__}: {said}".lstrip()
        return Row(operation, shape, math.nan, math.nan, note=note)
    row = Row(operation, shape, ours_us, spread, note=note)
    for name in sets[0][1]:
        try:
            theirs_us, _ = time_us([others[name] for _, others in sets])
        except RuntimeError as error:  # a backend that does not take this shape
            row.note += f" {name}: {str(error).splitlines()[0][:60]}"
            torch.cuda.synchronize()
            continue
        row.note += f" {name} {theirs_us:.1f} us"
        if row.torch_us is None or theirs_us < row.torch_us:
            row.torch_us, row.torch_kernel = theirs_us, name
    if flops:
        row.share, row.share_of = flops / ours_us * 1e6 / ceilings.matrix_flops_per_s, "matrix"
    elif moved_bytes:
        row.share = moved_bytes / ours_us * 1e6 / ceilings.copy_bytes_per_s
        row.share_of = "copy"
    return row


def start_csv(path: Path) -> None:
    """A table without rows yet: the fields of a row, and the ratio."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerow([*_FIELDS, "ratio"])


def append_csv(row: Row, path: Path) -> None:
    """Add one row, on disk at once: a run that is killed keeps what it had."""
    with path.open("a", newline="") as file:
        csv.writer(file).writerow([*(getattr(row, name) for name in _FIELDS), row.ratio])


_FIELDS = tuple(field.name for field in dataclasses.fields(Row))
