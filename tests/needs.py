"""What a test may need that a machine may lack. Every skip of these tests names one of these kinds.

    @needs.browser                        a mark; several may be combined
    @needs.shared("azure/trace.csv")      a mark with what is looked for
    needs.skip("data", "azure/trace.csv") inside a test that finds out by itself
    pytest.importorskip("torch", reason=needs.KERNELS)   for a whole file

``tests/conftest.py`` skips what is marked, counts the skips by kind in the last lines of a run, and
makes failures of those whose kind ``--require`` names (``make test REQUIRE=browser``).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
BESIDE = Path(__file__).parents[1] / ".." / "shared" / "data"
SHARED = Path(os.environ.get("ORCAST_SHARED_DATA", BESIDE))

WORDS = {
    "browser": "a browser (make test installs Chromium where it may)",
    "cuda": "a CUDA GPU (test_interpreter.py runs the kernels without one)",
    "no-cuda": "a machine without a CUDA GPU",
    "data": "recorded data in ../shared/data beside the checkout",
    "kernels": "torch and Triton (make test KERNELS=1)",
    "tables": "the package aiconfigurator-core (no wheels for this machine)",
    "ray": "Ray (extra cluster)",
    "dash": "Dash (extra ui)",
    "serve": "Starlette, uvicorn, httptools, prometheus-client (extra serve), openai and httpx",
    "tokenizers": "the package tokenizers",
    "kaleido": "kaleido (extra images)",
    "not-root": "a user who may not read and write everything, as root may",
    "linux": "Linux",
    "float32": "float32 (in bf16 the router's near ties fall either way)",
}


def _cuda() -> bool:
    if find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


_MET: dict[str, Callable[[], bool]] = {
    "browser": lambda: CHROMIUM is not None,
    "cuda": _cuda,
    "no-cuda": lambda: not _cuda(),
    "kernels": lambda: find_spec("torch") is not None and find_spec("triton") is not None,
    "tables": lambda: find_spec("aiconfigurator_core") is not None,
    "ray": lambda: find_spec("ray") is not None,
    "dash": lambda: find_spec("dash") is not None,
    "serve": lambda: all(
        find_spec(one) is not None
        for one in ("starlette", "uvicorn", "httptools", "prometheus_client", "openai", "httpx")
    ),
    "tokenizers": lambda: find_spec("tokenizers") is not None,
    "kaleido": lambda: find_spec("kaleido") is not None,
    "not-root": lambda: os.geteuid() != 0,
    "linux": lambda: sys.platform == "linux",
}


def reason(kind: str, detail: str = "") -> str:
    """What a skip says; `kind_of` finds the kind in it again."""
    return f"needs {WORDS[kind]}" + (f": {detail}" if detail else "")


def kind_of(text: str) -> str | None:
    """The kind of a skip by what it says; None for a skip that names none."""
    said = text.removeprefix("Skipped: ")
    return next((kind for kind in WORDS if said.startswith(reason(kind))), None)


def lacking(kind: str, detail: str = "") -> str | None:
    """Why a test that needs this cannot run here; None if it can."""
    met = (SHARED / detail).exists() if kind == "data" else _MET[kind]()
    return None if met else reason(kind, detail)


def skip(kind: str, detail: str = "") -> NoReturn:
    """Leave a test that found out by itself."""
    pytest.skip(reason(kind, detail))


def shared(path: str) -> pytest.MarkDecorator:
    """A file or folder of the recorded data that is not in the repository."""
    return pytest.mark.needs("data", path)


browser = pytest.mark.needs("browser")
cuda = pytest.mark.needs("cuda")
no_cuda = pytest.mark.needs("no-cuda")
kernels = pytest.mark.needs("kernels")
tables = pytest.mark.needs("tables")
ray = pytest.mark.needs("ray")
kaleido = pytest.mark.needs("kaleido")
not_root = pytest.mark.needs("not-root")
linux = pytest.mark.needs("linux")

KERNELS = reason("kernels")
DASH = reason("dash")
SERVE = reason("serve")
TOKENIZERS = reason("tokenizers")
