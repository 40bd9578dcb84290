"""The GPU a kernel runs on: what tile choices and grids depend on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""True where TRITON_INTERPRET was set before import: kernels then run on CPU tensors."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as the launchers see it; ``capability`` is (8, 0) for an A100, (9, 0) for an H200."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int

    @property
    def is_hopper(self) -> bool:
        """True where the tensor copy engine and warpgroup matrix instructions exist (sm_90)."""
        return self.capability[0] == 9

    @property
    def has_float8(self) -> bool:
        """True where float8_e4m3fn is a type of the hardware (sm_89 and later)."""
        return self.capability >= (8, 9)

    @property
    def has_tensor_memory(self) -> bool:
        """True where matrix instructions accumulate in a memory of their own (sm_100)."""
        return self.capability[0] == 10


# Four multiprocessors, so that persistent loops and split-KV run more than once on small tests.
INTERPRETER = Gpu("interpreter", (9, 0), 4)


@cache
def _cuda_gpu(index: int) -> Gpu:
    properties = torch.cuda.get_device_properties(index)
    return Gpu(
        name=properties.name,
        capability=(properties.major, properties.minor),
        multiprocessors=properties.multi_processor_count,
    )


def runs_triton(tensor: torch.Tensor) -> bool:
    """Whether Triton kernels can run on this tensor: on CUDA, or anywhere in the interpreter."""
    return tensor.is_cuda or INTERPRETED


def gpu_of(tensor: torch.Tensor) -> Gpu:
    """The GPU that holds ``tensor``; the interpreter's stand-in for a CPU tensor."""
    if not tensor.is_cuda:
        return INTERPRETER
    index = tensor.device.index
    return _cuda_gpu(torch.cuda.current_device() if index is None else index)
