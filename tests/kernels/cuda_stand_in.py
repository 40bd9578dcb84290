"""A GPU that computes nothing: CUDA's calls are taken, watched and counted, without a GPU.

`install()` makes this process believe in an H200. Tensors "on cuda" have shapes, strides, dtypes
and addresses, and no memory: any size fits. Operations on them cost their Python. A Triton launch
is bound and keyed as Triton does it, alignment and divisibility included, and not compiled. What is
read back is zero (true, where it is a truth). A device clock advances with every launch, so that
events, graph replays and all that is divided by times have plausible numbers.

What would go wrong, or cost time, on a GPU is written to a file of JSON lines in the folder
`ORCAST_STAND_IN`, each with its process and the functions of ours that led there:

- ``kernel``: a specialisation launched for the first time, so one compilation; ``benched``: cuBLAS
  measured against our kernel; both with ``capturing`` where a graph was being captured
- ``sync``: the host waits for the device during a capture, or while the engine that decides ahead
  has a batch in flight and does not collect one
- ``mixed``: an operation on tensors of both sides; ``pinned``: host memory pinned during a capture
- ``capture``: a graph was captured

Modules that `ORCAST_STAND_IN_LACKS` names cannot be imported.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER, LACKS = "ORCAST_STAND_IN", "ORCAST_STAND_IN_LACKS"
READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"}
READS |= {"__repr__", "__format__", "__array__", "equal", "allclose", "is_nonzero"}
UNKNOWN_SIZES = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive"}
ALIKE = {"clamp", "isfinite", "__and__"}
FILLS = {"normal_", "uniform_", "random_", "fill_", "zero_", "masked_fill_"}
COPIES = {"copy_", "to", "cuda", "__getitem__", "__setitem__", "index_put_"}
NOT_TIMED = {
    "calibrate/engine/warm_up.py:warm_up",
    "calibrate/measure/service.py:__init__",
    "calibrate/measure/host_time.py:engine_host_s",
}
GIB = 2**30
LAUNCH_S, ELEMENT_S, OPERATION_S = 3e-6, 1e-12, 1e-6


class _Lacking(importlib.abc.MetaPathFinder):
    """Finds nothing of these names, and says so."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r} (on this machine)", name=name)

    def lets(self, find_spec: Any) -> Any:
        """`importlib.util.find_spec` that says of them what it says of what is not there."""

        def found(name: str, package: str | None = None) -> Any:
            return None if name.split(".")[0] in self.names else find_spec(name, package)

        return found


class Device:
    """What the stand-in knows: its clock, what is captured, what has been launched."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.allocated_bytes = 0
        self.graph: Any = None
        self.keys: set[tuple[str, str]] = set()
        self.pinned: set[int] = set()  # storages

    def spend(self, seconds: float) -> None:
        if self.graph is None:
            self.now_s += seconds
        else:
            self.graph.seconds += seconds

    def note(self, kind: str, **what: Any) -> None:
        """Write an event down, on disk at once."""
        line = {"kind": kind, **what, "capturing": self.graph is not None, "where": _where()}
        line["process"] = os.getpid()
        folder = os.environ.get(FOLDER)
        if folder:
            with (Path(folder) / f"events-{os.getpid()}.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    def waited(self, what: str) -> None:
        """The host waited; that is worth a note where it must not."""
        if self.graph is not None:
            self.note("sync", what=what)
            return
        ahead, frame = False, sys._getframe(1)
        while frame is not None:
            name, path = frame.f_code.co_name, frame.f_code.co_filename
            if name == "collect" and path.endswith("transformer_executor.py"):
                return
            mine = frame.f_locals.get("self")
            ahead = ahead or (path.endswith("engine/device.py") and type(mine).__name__ == "Apart")
            frame = frame.f_back
        if ahead:
            self.note("sync", what=what)


DEVICE = Device()


def _where() -> list[str]:
    """The functions of this repository that are being called, the outermost first."""
    places, frame = [], sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(f"{ROOT}{os.sep}") and ".venv" not in path and path != __file__:
            name = Path(path).relative_to(ROOT).as_posix()
            places.append(f"{name}:{frame.f_code.co_name}")
        frame = frame.f_back
    return places[::-1]


def events(folder: Path) -> list[dict[str, Any]]:
    """All that the processes of a rehearsal wrote down."""
    lines = [line for path in sorted(folder.glob("events-*")) for line in path.open()]
    return [json.loads(line) for line in lines]


def violations(noted: list[dict[str, Any]]) -> list[str]:
    """What would go wrong on a GPU, or cost the time of something that is timed; a line each."""
    found = []
    for event in noted:
        kind, where = event["kind"], event["where"]
        what = {"kernel": "compiled", "benched": "measured against cuBLAS"}.get(kind, kind)
        told = f"{what}: {event.get('kernel') or event.get('what') or ''}"
        place = " > ".join(where[-4:])
        if event["capturing"] and kind != "capture":
            found.append(f"in a capture, {told} ({place})")
        elif kind in ("sync", "mixed"):
            found.append(f"{told} ({place})")
        elif kind in ("kernel", "benched") and _in_service(where):
            found.append(f"in service, {told} ({place})")
    return found


def _in_service(where: list[str]) -> bool:
    """Whether an engine served, not to warm up nor for its least disturbed iteration alone."""
    serves = any(place.endswith("ngine.py:_serve") for place in where)
    return serves and not any(place in NOT_TIMED for place in where)


def _is_cpu(value: Any) -> bool:
    """Whether it names the host, as the argument of a copy."""
    return value == "cpu" if isinstance(value, str) else getattr(value, "type", None) == "cpu"


def _is_meta(value: Any) -> bool:
    """Whether it names the device without memory."""
    if isinstance(value, str):
        return value == "meta"
    return type(value).__name__ == "device" and value.type == "meta"


def _masks(index: Any) -> bool:
    many = index if isinstance(index, tuple | list) else (index,)
    return any("bool" in str(getattr(one, "dtype", "")) for one in many)


class _Event:
    def __init__(self, enable_timing: bool = False, **more: Any) -> None:
        self.at_s = 0.0

    def record(self, stream: Any = None) -> None:
        self.at_s = DEVICE.now_s

    def elapsed_time(self, other: _Event) -> float:
        return max((other.at_s - self.at_s) * 1e3, 1e-3)

    def synchronize(self) -> None:
        DEVICE.waited("Event.synchronize")

    def query(self) -> bool:
        return True


class _Stream:
    cuda_stream = 0

    def __init__(self, *given: Any, **more: Any) -> None: ...
    def wait_stream(self, other: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None:
        DEVICE.waited("Stream.synchronize")


class _Graph:
    def __init__(self, *given: Any, **more: Any) -> None:
        self.seconds = 0.0

    def replay(self) -> None:
        assert DEVICE.graph is None, "a graph is replayed in a capture"
        DEVICE.now_s += self.seconds

    def pool(self) -> tuple[int, int]:
        return (0, 1)

    def reset(self) -> None: ...


@contextlib.contextmanager
def _capture(graph: _Graph, **options: Any) -> Iterator[None]:
    assert DEVICE.graph is None, "a capture in a capture"
    DEVICE.note("capture")
    DEVICE.graph = graph
    try:
        yield
    finally:
        DEVICE.graph = None


def install() -> None:
    """Stand in for CUDA in this process, from now on."""
    lacks = [name for name in os.environ.get(LACKS, "").split(",") if name]
    lacking = _Lacking(lacks)
    sys.meta_path.insert(0, lacking)
    importlib.util.find_spec = lacking.lets(importlib.util.find_spec)
    import torch
    import triton
    from torch.fx.experimental import _config
    from torch.overrides import TorchFunctionMode
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction, compute_cache_key

    _config.meta_nonzero_assume_all_nonzero = True  # of masks, whose sizes nobody knows
    cuda = torch.device("cuda", 0)

    class OnGpu(torch.Tensor):
        """A tensor without memory that says it is on the GPU."""

        device = property(lambda self: cuda)
        is_cuda = property(lambda self: True)
        is_meta = property(lambda self: False)
        __torch_function__ = torch._C._disabled_torch_function_impl

        def data_ptr(self) -> int:
            with torch._C.DisableTorchFunction():
                return 0x7F00_0000_0000 + self.storage_offset() * self.element_size()

    def zeros(tensor: torch.Tensor) -> torch.Tensor:
        """What is read of a tensor."""
        make = torch.ones if tensor.dtype == torch.bool else torch.zeros
        return make(tensor.shape, dtype=tensor.dtype)

    class Mode(TorchFunctionMode):
        """Every call of torch: devices and tensors of the GPU become memoryless ones and back."""

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = getattr(func, "__name__", "")
            if func is torch.device:
                return func(*args, **(kwargs or {}))
            if name == "__get__":
                found = func(*args)
                made = isinstance(found, torch.Tensor) and isinstance(args[0], OnGpu)
                return found.as_subclass(OnGpu) if made else found
            return self.call(func, name, args, dict(kwargs or {}))

        def call(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            ours, theirs, mapped = False, [], False  # GPU tensors, CPU tensors, a GPU device

            def plain(value: Any) -> Any:
                nonlocal ours, mapped
                if isinstance(value, OnGpu):
                    ours = True
                    return value.as_subclass(torch.Tensor)
                if isinstance(value, torch.Tensor):
                    theirs.append(value)
                elif isinstance(value, torch.device) and value.type == "cuda":
                    mapped = True
                    return torch.device("meta")
                elif isinstance(value, str) and value.split(":")[0] == "cuda":
                    mapped = True
                    return "meta"
                elif type(value) in (list, tuple):
                    return type(value)(plain(one) for one in value)
                return value

            if any(map(_is_meta, (*args, *kwargs.values()))):  # as somebody asked
                return func(*map(plain, args), **{k: plain(v) for k, v in kwargs.items()})
            pins = kwargs.pop("pin_memory", False) or name == "pin_memory"
            given = tuple(plain(value) for value in args)
            options = {key: plain(value) for key, value in kwargs.items()}
            if pins:
                return self.pinned(given[0] if name == "pin_memory" else func(*given, **options))
            if not ours and not mapped:
                return func(*given, **options)
            options.pop("generator", None)
            first = args[0] if args else None
            home = name == "cpu" or (
                name == "to" and any(_is_cpu(v) for v in (*args, *kwargs.values()))
            )
            if name in READS or (home and ours):
                return self.read(name, first, args)
            self.look(name, args, kwargs, theirs, mapped=mapped)
            if name == "copy_" and not isinstance(first, OnGpu):
                return first.zero_()
            if name == "cuda" or name in FILLS:
                return first
            if name in UNKNOWN_SIZES:
                DEVICE.waited(name)
            if name in ("rand", "randn"):
                func = torch.empty
            if name in ALIKE:  # torch knows their shapes too, and thinks for a millisecond
                dtype = torch.bool if name == "isfinite" else given[0].dtype
                found = torch.empty(given[0].shape, dtype=dtype, device="meta")
            else:
                found = func(*given, **options)
            DEVICE.spend(OPERATION_S)
            if not ours and isinstance(found, torch.Tensor):
                DEVICE.allocated_bytes += found.numel() * found.element_size()
            if name.endswith("_") and isinstance(first, OnGpu) and not name.startswith("__"):
                return first
            return wrapped(found)

        def read(self, name: str, first: Any, args: tuple[Any, ...]) -> Any:
            DEVICE.waited(name)
            if name in ("equal", "allclose"):
                return True
            values = zeros(first)
            if name in ("cpu", "to"):
                return values
            return getattr(values, name)(*args[1:])

        def look(
            self, name: str, args: Any, kwargs: dict[str, Any], theirs: list[Any], *, mapped: bool
        ) -> None:
            """Note copies that wait, and operations on tensors of both sides."""
            if name in ("tensor", "as_tensor"):
                DEVICE.waited(f"torch.{name}")
            many = [one for one in theirs if one.dim() > 0]
            if not many:
                if name in ("__getitem__", "__setitem__", "index_put_") and _masks(args[1]):
                    DEVICE.waited("a mask as an index")
                return
            if name not in COPIES:
                DEVICE.note("mixed", what=name)
                return
            ready = all(one.untyped_storage()._cdata in DEVICE.pinned for one in many)
            if not (ready and kwargs.get("non_blocking")):
                DEVICE.waited(f"a copy between host and device ({name})")

        def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
            if DEVICE.graph is not None:
                DEVICE.note("pinned")
            DEVICE.pinned.add(tensor.untyped_storage()._cdata)
            return tensor

    def wrapped(found: Any) -> Any:
        if isinstance(found, torch.Tensor) and found.device.type == "meta":
            return found.as_subclass(OnGpu)
        if isinstance(found, tuple | list):
            return type(found)([wrapped(one) for one in found])
        return found

    def launch(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        """Bind and key a launch as Triton does, and remember the key."""
        kwargs["debug"] = kwargs.get("debug", self.debug)
        _, key_cache, _, _, binder = self.device_caches[0]
        bound, specialization, options = binder(*args, **kwargs)
        key = compute_cache_key(key_cache, specialization, options)
        sizes = grid(bound) if callable(grid) else grid
        assert all(1 <= size < 2**31 for size in sizes[:1]), f"{self.__name__}: grid {sizes}"
        assert all(1 <= size < 2**16 for size in sizes[1:]), f"{self.__name__}: grid {sizes}"
        if (self.__name__, key) not in DEVICE.keys:
            DEVICE.keys.add((self.__name__, key))
            DEVICE.note("kernel", kernel=self.__name__, key=key)
        elements = sum(one.numel() for one in args if isinstance(one, torch.Tensor))
        DEVICE.spend(LAUNCH_S + ELEMENT_S * elements)

    def do_bench(call: Any, **options: Any) -> float:
        DEVICE.note("benched")
        began_s = DEVICE.now_s
        call()
        return (DEVICE.now_s - began_s) * 1e3

    def nothing(*given: Any, **more: Any) -> None: ...

    def synchronize(device: Any = None) -> None:
        DEVICE.waited("torch.cuda.synchronize")

    def empty_cache() -> None:
        assert DEVICE.graph is None, "memory is given back in a capture"

    properties = SimpleNamespace(
        name="NVIDIA H200", major=9, minor=0, multi_processor_count=132,
        L2_cache_size=60 * 2**20, total_memory=140 * GIB, uuid="stand-in",
    )  # fmt: skip
    stream = _Stream()
    real_generator = torch.Generator

    class Generator(real_generator):  # type: ignore[misc, valid-type]
        """One that may be on the GPU."""

        def __new__(cls, device: Any = "cpu") -> Any:
            self = super().__new__(cls)
            self.on = torch.device(device)
            return self

        device = property(lambda self: cuda if self.on.type == "cuda" else self.on)

    torch.Generator = Generator  # type: ignore[assignment, misc]
    torch.version.cuda = "13.0"
    for name, value in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: properties.name,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: properties,
        "mem_get_info": lambda device=None: (139 * GIB, 140 * GIB),
        "memory_allocated": lambda device=None: DEVICE.allocated_bytes,
        "max_memory_allocated": lambda device=None: DEVICE.allocated_bytes,
        "reset_peak_memory_stats": nothing,
        "is_current_stream_capturing": lambda: DEVICE.graph is not None,
        "current_stream": lambda device=None: stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "synchronize": synchronize,
        "empty_cache": empty_cache,
        "Event": _Event,
        "Stream": _Stream,
        "CUDAGraph": _Graph,
        "graph": _capture,
    }.items():
        setattr(torch.cuda, name, value)

    target = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=partial(GPUTarget, "cuda", 90, 32),
        get_device_interface=lambda: torch.cuda,
    )
    driver.set_active(target)
    JITFunction.run = launch
    triton.testing.do_bench = do_bench
    # What some references need besides takes seconds to import: once, not in every fork.
    os.register_at_fork(before=lambda: importlib.import_module("torch._dynamo"))
    Mode().__enter__()  # never left
