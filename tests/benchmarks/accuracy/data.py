"""Where the measurements lie, and where each of them is public."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"

PUBLIC = {
    "recordings": "github.com/casys-kaist/LLMServingSim, bench/examples (MIT): vLLM 0.19, "
    "Llama-3.1-8B, 300 ShareGPT requests on an RTX 4090 and an RTX PRO 6000, and both cards' "
    "kernel profiles",
    "open-loop": "github.com/inference-sim (training; sim-to-real-accuracy-validation): vLLM 0.15 "
    "on H100 SXM, constant arrivals; errors of other simulators as published there",
    "kv-capacity": '"GPU KV cache size" in public logs and issues of vLLM, a source per row',
    "silicon": "PyPI package aiconfigurator-core (Apache-2.0), systems/silicon_sample.csv; rows of "
    "a dated file and db-dump are github.com/InferenceMAX/InferenceMAX",
}


def folder(name: str) -> Path:
    """A folder or file of measurements beside the checkout; without it the program ends."""
    path = SHARED / name
    if not path.exists():
        sys.exit(f"no measurements at {path}")
    return path


def package() -> Path:
    """The installed package aiconfigurator-core."""
    found = find_spec("aiconfigurator_core")
    if found is None or found.origin is None:
        sys.exit("the package aiconfigurator-core is not installed: pip install 'orcast[tables]'")
    return Path(found.origin).parent
