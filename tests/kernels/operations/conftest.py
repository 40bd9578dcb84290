"""Every test here runs twice: on a GPU (``-m gpu``), and in Triton's interpreter without one.

In the interpreter (TRITON_INTERPRET=1, set by ``tests/kernels/test_interpreter.py`` for a process
of its own) tensors are on the CPU and in float32 or float16: it computes silently wrong on bf16.
On a GPU they are in bf16 and fp16. Outputs are poisoned: fresh memory holds NaN.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import needs

torch = pytest.importorskip("torch", reason=needs.KERNELS)
pytest.importorskip("triton", reason=needs.KERNELS)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TOLERANCES = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if INTERPRETED:
        return
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(needs.cuda)


@pytest.fixture(params=[torch.float32] if INTERPRETED else [torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The working dtype: strict float32 in the interpreter, bf16 on a GPU."""
    return request.param


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture
def draw(device: torch.device, dtype: torch.dtype, request: pytest.FixtureRequest):
    """Normal random tensors in the working dtype; each test has its own seed."""
    generator = torch.Generator().manual_seed(sum(map(ord, request.node.name)))

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(device=device, dtype=dtype)

    return normal


@pytest.fixture
def close():
    """Assert ‖out − reference‖ / ‖reference‖ within the dtype's tolerance; NaN never passes."""

    def check(out: torch.Tensor, reference: torch.Tensor, *, slack: float = 1.0) -> None:
        assert out.shape == reference.shape
        wide_out, wide_reference = out.double(), reference.double()
        assert torch.isfinite(wide_out).all(), "unwritten or non-finite output"
        deviation = (wide_out - wide_reference).norm()
        limit = TOLERANCES[out.dtype] * slack * wide_reference.norm()
        assert deviation <= limit + 1e-9, f"{deviation.item():.3g} > {limit.item():.3g}"

    return check


@pytest.fixture
def paged_cache(draw, device: torch.device):
    """A cache for sequences of these lengths: blocks dealt at random, unused slots hold NaN."""

    def make(
        lengths: list[int], *, kv_heads: int, head_dim: int, block_size: int = 16
    ) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(sum(lengths) + block_size)
        counts = [-(-length // block_size) for length in lengths]
        order = torch.randperm(sum(counts) + 2, generator=generator)
        caches = [draw(len(order), block_size, kv_heads, head_dim) for _ in range(2)]
        unused = torch.ones((len(order), block_size), dtype=torch.bool)
        tables = torch.zeros((len(lengths), max(*counts, 1)), dtype=torch.int32)
        for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            blocks, order = order[:count], order[count:]
            tables[row, :count] = blocks
            positions = torch.arange(length)
            unused[blocks[positions // block_size], positions % block_size] = False
        for cache in caches:
            cache[unused.to(device)] = float("nan")
        return {
            "k_cache": caches[0],
            "v_cache": caches[1],
            "block_tables": tables.to(device),
            "context_lens": torch.tensor(lengths, dtype=torch.int32, device=device),
        }

    return make


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what kernels allocate with NaN (integers with a large negative number)."""

    def poison(allocate):
        def poisoned(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            if tensor.is_floating_point():
                return tensor.fill_(float("nan"))
            indexes = tensor.dtype in (torch.int32, torch.int64)
            return tensor.fill_(-(2**30)) if indexes else tensor

        return poisoned

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
