"""`orcast init`: a scenario of one's own to begin with, from three questions or from flags."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, TypeVar

import typer

Answer = TypeVar("Answer", str, float)

TEMPLATE = """\
# What is served, on what, and how much of it. `orcast run {file}` forecasts it,
# `orcast plan {file}` finds the cheapest deployment that keeps the limits,
# `orcast ui {file}` turns its knobs. Every key: docs/reference/scenario.md.
name: {name}
model: {model}  # `orcast list models`, a Hugging Face id, or a config.json
hardware:
  gpu: {gpu}  # `orcast list gpus`, or {{like: h100-sxm, memory_gb: 96}}
  tensor_parallel: {degree}  # GPUs that share every layer
engine: {{}}  # vLLM's settings by vLLM's names, e.g. {{max_num_seqs: 128}}
latency: {{source: auto}}  # measured kernel times where there are any, analytic where not
workload:  # or {{trace: FILE}}, a log of your own
  arrivals: {{process: poisson, request_rate: {rate:g}}}  # requests a second
  lengths:  # tokens
    prompt: {{distribution: lognormal, mean: 512, sigma: 0.9, max: 8192}}
    output: {{distribution: lognormal, mean: 192, sigma: 0.8, max: 2048}}
  num_requests: {requests}
  seed: 1
slo: {{ttft_ms: 1000, tpot_ms: 50, percentile: 95}}  # what 95 % of the requests have to keep
"""


def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="What to write.")] = Path(
        "scenario.yaml"
    ),
    model: Annotated[str | None, typer.Option(metavar="NAME", help="What is served.")] = None,
    gpu: Annotated[str | None, typer.Option(metavar="NAME", help="On which GPU.")] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="R", help="Requests a second.", min=1e-6, max=1e6)
    ] = None,
) -> None:
    """Write a commented scenario; asks for what no option says."""
    from scenarios import library
    from scenarios.errors import InputError
    from scenarios.model_figures import degree_that_fits
    from scenarios.schema.load import load_scenario
    from scenarios.whole import write_whole

    if file.exists():
        raise InputError(f"{file}: there already; name another file")
    if file.suffix not in (".yaml", ".yml"):
        raise InputError(f"{file}: expected a name that ends in .yaml")
    model = _answer("Model", model, "llama-3.1-8b")
    gpu = _answer("GPU", gpu, "h100-sxm")
    rate = _answer("Requests a second", rate, 10.0)
    degree = degree_that_fits(library.model(model), library.gpu(gpu))
    text = TEMPLATE.format(
        file=file, name=json.dumps(file.stem), model=json.dumps(model), gpu=json.dumps(gpu),
        rate=rate, degree=degree, requests=max(500, min(20_000, round(rate * 300))),
    )  # fmt: skip
    write_whole(file, text)
    load_scenario(str(file))
    print(f"Written: {file}. Next: orcast run {file}")


def _answer(question: str, given: Answer | None, otherwise: Answer) -> Answer:
    """What an option or a person says; what is usual where nobody can be asked."""
    if given is not None:
        return given
    if not sys.stdin.isatty():
        return otherwise
    said: Answer = typer.prompt(question, default=otherwise, type=type(otherwise))
    return said
