"""How fast the engine serves: ``python -m tests.benchmarks.engine [--device cuda] [--out FILE]``.

The workload is fixed: 256 requests at once, prompts and outputs of 100 to 1,024 tokens. Prints
output tokens per second and where an iteration's time goes, deciding when the device is done
(synchronous) and an iteration ahead (asynchronous), iterations with prompts captured, then with
those launched kernel by kernel; with n-grams and without on prompts that repeat themselves; then
decode steps by batch size. Every figure is in FILE as soon as it is known.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibrate.engine.assembly import engine
from calibrate.engine.checkpoint import load_model
from calibrate.engine.engine import PHASES
from calibrate.engine.iteration_graphs import CAPTURE_SIZES
from calibrate.engine.wall_clock import Clock
from calibrate.engine.warm_up import warm_up
from kernels.transformer import Transformer
from sim.schedulers.engine_config import EngineConfig
from sim.speculation import DraftShape, Speculation
from sim.speculation.acceptance import ObservedAcceptance
from sim.workload.content import PromptContent
from sim.workload.workload import Workload

MODELS = Path(__file__).parents[2] / "scenarios" / "models"
DECODE_BATCHES = (1, 32, 128, 256)
CONTEXT_TOKENS = 1024
BUDGET = 8192  # tokens of an iteration
DRAFTS = 4  # n-gram tokens of a verification


def fixed_workload(requests: int, longest: int, seed: int = 0) -> Workload:
    """All at once; prompt and output lengths uniform from a tenth of `longest` to `longest`."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(longest // 10, longest + 1, requests)
    outputs = rng.integers(longest // 10, longest + 1, requests)
    return Workload(np.zeros(requests), prompts, outputs)


def serve(
    model: Transformer,
    workload: Workload,
    *,
    num_blocks: int,
    budget: int,
    ahead: bool = False,
    mixed_graphs: bool = True,
    drafts: int = 0,
) -> dict[str, object]:
    """Serve it and say how fast, and where the time went; ``ahead``: decide an iteration ahead.

    ``mixed_graphs``: capture iterations with prompts. ``drafts``: n-gram tokens, 0: none.
    """
    config = EngineConfig(
        max_num_seqs=min(256, len(workload)), max_num_batched_tokens=budget,
        enable_prefix_caching=False, async_scheduling=ahead, speculation=_ngrams(drafts),
    )  # fmt: skip
    on_gpu = model.embeddings.device.type == "cuda"
    served = engine(
        workload, config, model, scheduler="chunked", num_blocks=num_blocks,
        capture_sizes=CAPTURE_SIZES if on_gpu else (), mixed_graphs=mixed_graphs,
        clock=Clock(skip_idle=True),
    ).run()  # fmt: skip
    iterations = served.records.iterations
    total_s = float(iterations["duration_s"].sum())
    decodes = iterations["prefill_tokens"] == 0
    tokens = int(workload.output_tokens.sum())
    return {
        "requests": len(workload),
        "output_tokens": tokens,
        "duration_s": total_s,
        "output_tokens_per_s": tokens / total_s,
        "iterations": len(decodes),
        "shares": {name: float(iterations[name].sum()) / total_s for name in PHASES},
        "median_decode_iteration_ms": float(np.median(iterations["duration_s"][decodes])) * 1e3,
        "preemptions": len(served.records.preemptions["request"]),
        "host_ms": _host_ms(iterations, decodes),
        "accepted_per_position": None
        if served.speculation is None
        else _observed(served.speculation).figures(drafts),
    }


def _ngrams(drafts: int) -> Speculation | None:
    if not drafts:
        return None
    return Speculation("ngram", DraftShape.chain(drafts), ObservedAcceptance())


def _host_ms(iterations: Mapping[str, np.ndarray], decodes: np.ndarray) -> dict[str, float | None]:
    """Median time of an iteration that is neither its pass nor its sampling, by kind."""
    rest_s = iterations["duration_s"] - iterations["forward_s"] - iterations["sample_s"]
    return {
        name: float(np.median(rest_s[rows])) * 1e3 if rows.any() else None
        for name, rows in (("decodes", decodes), ("with prompts", ~decodes))
    }


def _observed(speculation: Speculation) -> ObservedAcceptance:
    assert isinstance(speculation.acceptance, ObservedAcceptance)
    return speculation.acceptance


def repeating(requests: int, longest: int, vocab_size: int, seed: int = 0) -> Workload:
    """The fixed workload with prompts that say the same few things again and again."""
    workload = fixed_workload(requests, longest, seed)
    rng = np.random.default_rng(seed)
    prompts = [
        np.resize(rng.integers(0, vocab_size, 24), tokens).tolist()
        for tokens in workload.prompt_tokens.tolist()
    ]
    return replace(workload, content=PromptContent.from_lists(prompts))


def decode_steps(
    model: Transformer, *, context: int, steps: int = 24
) -> Iterator[dict[str, float]]:
    """Median decode iterations at fixed batch sizes, all sequences near `context` tokens."""
    on_gpu = model.embeddings.device.type == "cuda"
    for batch in DECODE_BATCHES if on_gpu else DECODE_BATCHES[:2]:
        workload = Workload(np.zeros(batch), np.full(batch, context), np.full(batch, steps + 1))
        config = EngineConfig(
            max_num_seqs=batch, max_num_batched_tokens=max(8192, batch),
            enable_prefix_caching=False,
        )  # fmt: skip
        served = engine(
            workload, config, model, scheduler="chunked",
            num_blocks=batch * -(-(context + steps + 1) // 16), clock=Clock(skip_idle=True),
            capture_sizes=(batch,) if on_gpu else (),
        ).run()  # fmt: skip
        iterations = served.records.iterations
        rows = (iterations["prefill_tokens"] == 0) & (iterations["decode_seqs"] == batch)
        step: dict[str, float] = {"batch": batch, "context": context}
        step["step_ms"] = float(np.median(iterations["duration_s"][rows])) * 1e3
        step |= {
            f"{name.removesuffix('_s')}_ms": float(np.median(iterations[name][rows])) * 1e3
            for name in PHASES
        }
        yield step


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", help="comma-separated (default: by device)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--requests", type=int, help="of the workload (default: by device)")
    parser.add_argument("--longest", type=int, help="prompt and answer (default: by device)")
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    names = options.models or ("llama-3.1-8b,qwen3-0.6b" if on_gpu else "tiny")
    results: dict[str, object] = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }

    def keep() -> None:
        if options.out is not None:
            options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    for name in names.split(","):
        path = Path(name) if name.endswith(".json") else MODELS / f"{name}.json"
        model = load_model(json.loads(path.read_text(encoding="utf-8")), device=options.device)
        requests = options.requests or (256 if on_gpu else 32)
        workload = fixed_workload(requests, options.longest or (1024 if on_gpu else 96))
        blocks = int((workload.prompt_tokens + workload.output_tokens).sum()) // 16 + 256
        # On a GPU kernels are compiled by size, and a batch has up to BUDGET tokens.
        longest = model.config.max_positions if on_gpu else int(workload.prompt_tokens.max())
        config = EngineConfig(max_num_batched_tokens=BUDGET, max_model_len=longest)
        for drafts in (0, DRAFTS):
            warm_up(model, replace(config, speculation=_ngrams(drafts)), num_blocks=blocks)
        result: dict[str, object] = {}
        results[path.stem] = result
        again = repeating(requests, options.longest or (1024 if on_gpu else 96),
                          model.config.vocab_size)  # fmt: skip
        ways: dict[str, tuple[Workload, dict[str, Any]]] = {
            "synchronous": (workload, {}),
            "asynchronous": (workload, {"ahead": True}),
            "prompts launched kernel by kernel": (workload, {"mixed_graphs": False}),
            "repeating prompts": (again, {}),
            f"repeating prompts, {DRAFTS} n-gram drafts": (again, {"drafts": DRAFTS}),
        }
        for way, (given, settings) in ways.items():
            told = serve(model, given, num_blocks=blocks, budget=BUDGET, **settings)
            result[way] = told
            keep()
            print(f"{name}, {way}: {told['output_tokens_per_s']:,.0f} tokens/s; {told}", flush=True)
        result["decode_steps"] = steps = []
        for step in decode_steps(model, context=CONTEXT_TOKENS if on_gpu else 128):
            steps.append(step)
            keep()
            print(step, flush=True)
        del model
        if on_gpu:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
