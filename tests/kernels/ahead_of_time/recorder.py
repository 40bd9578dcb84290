"""Compile what a launcher would launch, without a GPU.

Inside ``recording(arch)`` every Triton launch is compiled for that architecture and not run, so the
tiles, warps and stages under test are the launcher's own. Launchers may be given tensors on the
``meta`` device: nothing is read. Needs an interpreter-free Triton (TRITON_INTERPRET unset).
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from kernels import gpu

GPUS = {
    80: gpu.Gpu("sm_80", (8, 0), 108),
    90: gpu.Gpu("sm_90", (9, 0), 132),
}


@dataclass(slots=True)
class Compiled:
    """One compiled kernel and what ptxas says of it."""

    kernel: str
    arch: int
    num_warps: int
    num_stages: int
    constants: dict[str, object]
    shared_bytes: int
    registers: int
    spill_bytes: int
    stack_bytes: int
    tensor_core: str
    async_copies: int
    tma_loads: int


@dataclass(slots=True)
class _StandInDriver:
    arch: int

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


@dataclass(slots=True)
class Recorder:
    """Collects the distinct kernels compiled so far."""

    arch: int
    compiled: list[Compiled] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def add(self, function: JITFunction, kernel: object, log: str) -> None:
        if id(kernel) in self.seen:
            return
        self.seen.add(id(kernel))
        ptx = kernel.asm["ptx"]
        numbers = {
            name: int(found[1]) if (found := re.search(pattern, log)) else -1
            for name, pattern in {
                "registers": r"Used (\d+) registers",
                "spill_bytes": r"(\d+) bytes spill stores",
                "stack_bytes": r"(\d+) bytes stack frame",
            }.items()
        }
        names = [parameter.name for parameter in function.params]
        unit = "wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else ""
        self.compiled.append(
            Compiled(
                kernel=function.__name__,
                arch=self.arch,
                num_warps=kernel.metadata.num_warps,
                num_stages=kernel.metadata.num_stages,
                constants={names[p[0]]: v for p, v in kernel.src.constants.items()},
                shared_bytes=kernel.metadata.shared,
                tensor_core=unit,
                async_copies=ptx.count("cp.async.cg"),
                tma_loads=ptx.count("cp.async.bulk.tensor"),
                **numbers,
            )
        )


@contextlib.contextmanager
def recording(arch: int) -> Iterator[Recorder]:
    """Compile launches for ``arch`` (80 or 90) instead of running them."""
    recorder = Recorder(arch)
    run, gpu_of, runs_triton = JITFunction.run, gpu.gpu_of, gpu.runs_triton

    def compile_only(self, *args, grid, warmup, **kwargs):
        sizes = grid if isinstance(grid, tuple) else ()
        assert all(1 <= size < 2**31 for size in sizes[:1]), f"{self.__name__}: grid {sizes}"
        assert all(1 <= size < 2**16 for size in sizes[1:]), f"{self.__name__}: grid {sizes}"
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        recorder.add(self, kernel, log.getvalue())
        return kernel

    driver.set_active(_StandInDriver(arch))
    triton.knobs.nvidia.dump_ptxas_log = True
    triton.knobs.compilation.always_compile = True
    JITFunction.run = compile_only
    gpu.gpu_of = lambda tensor: GPUS[arch]
    gpu.runs_triton = lambda tensor: True
    try:
        yield recorder
    finally:
        JITFunction.run, gpu.gpu_of, gpu.runs_triton = run, gpu_of, runs_triton
