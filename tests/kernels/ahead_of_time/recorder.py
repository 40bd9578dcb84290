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
    100: gpu.Gpu("sm_100", (10, 0), 148),
}


# The matrix instructions by the name that tests know them by; the first one found counts.
UNITS = {"tcgen05": "tcgen05.mma", "wgmma": "wgmma.mma_async", "mma": "mma.sync"}


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
    warnings: list[str]  # of ptxas: products one by one, registers it would not give, …
    loop_waits: list[int]  # copies still in flight where the product loops wait for some


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
        unit = next((unit for unit, word in UNITS.items() if word in ptx), "")
        self.compiled.append(
            Compiled(
                kernel=function.__name__,
                arch=self.arch,
                num_warps=kernel.metadata.num_warps,
                num_stages=kernel.metadata.num_stages,
                constants={names[p[0]]: v for p, v in kernel.src.constants.items()},
                shared_bytes=kernel.metadata.shared,
                tensor_core=unit,
                async_copies=len(re.findall(r"cp\.async\.c[ag]\.", ptx)),
                tma_loads=ptx.count("cp.async.bulk.tensor"),
                warnings=re.findall(r"\(C75\d\d\)[^\n]*", log),
                loop_waits=_loop_waits(ptx),
                **numbers,
            )
        )


def _loop_waits(ptx: str) -> list[int]:
    """``N`` of every ``cp.async.wait_group N`` in an innermost loop with matrix products."""
    lines = ptx.splitlines()
    marks = ((at, re.match(r"(\$\w+):", line)) for at, line in enumerate(lines))
    labels = {mark[1]: at for at, mark in marks if mark}
    jumps = ((at, re.search(r"bra(?:\.uni)?\s+(\$\w+);", line)) for at, line in enumerate(lines))
    loops = [(labels[to[1]], at) for at, to in jumps if to and labels[to[1]] < at]
    waits = []
    for first, last in loops:
        if any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops):
            continue
        body = "\n".join(lines[first:last])
        if any(word in body for word in UNITS.values()):
            waits += [int(n) for n in re.findall(r"cp\.async\.wait_group\s+(\d+)", body)]
    return waits


@contextlib.contextmanager
def recording(arch: int) -> Iterator[Recorder]:
    """Compile launches for ``arch`` (a key of GPUS) instead of running them."""
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
