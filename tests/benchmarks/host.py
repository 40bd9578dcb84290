"""What the engine costs its host: ``python -m tests.benchmarks.host [--out FILE]``; needs no GPU.

The device is a null device: captured iterations are replayed at no cost and give token 0, so that
all the time there is goes to deciding, to inputs, to taking tokens in and to the books. It is the
processor's own time (other programs do not count), of the difference between a long run and a
short one, divided by the iterations between them: what begins and ends a run is in neither. Beside
each figure stands what a fixed loop took just then, by which machines can be compared.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from calibrate.engine.assembly import engine
from calibrate.engine.iteration_graphs import MOST_PROMPTS, Staged
from calibrate.engine.wall_clock import Clock
from kernels.model_config import ModelConfig
from kernels.transformer import Transformer
from sim.schedulers.engine_config import EngineConfig
from sim.workload.content import PromptContent
from sim.workload.workload import Workload

BATCHES = (1, 32, 256)
PROMPT = 16
CHUNK = 512  # tokens of a prompt in each mixed iteration
CHUNKS = 8  # of each such prompt
CONFIG = ModelConfig(64, 1, 1, 1, 64, 64, 64, 1 << 17)


@dataclass(frozen=True, slots=True)
class HostTime:
    """us: of an iteration. loop_ns: of one turn of the fixed loop meanwhile."""

    batch: int
    mixed: bool
    us: float
    loop_ns: float


def decodes(batch: int, iterations: int) -> Workload:
    """So many sequences that decode so many times, all at once."""
    return Workload(np.zeros(batch), np.full(batch, PROMPT), np.full(batch, iterations + 1))


def mixed(batch: int, iterations: int) -> Workload:
    """The same, beside prompts whose chunks are computed one after the other, one an iteration."""
    longs = -(-iterations // CHUNKS)
    prompts = np.concatenate((np.full(batch, PROMPT), np.full(longs, CHUNKS * CHUNK)))
    outputs = np.concatenate((np.full(batch, iterations + 8), np.ones(longs, dtype=np.int64)))
    offsets = np.concatenate(([0], np.cumsum(prompts)))
    content = PromptContent(np.arange(offsets[-1]), offsets, prompts)  # as clients send it
    return Workload(np.zeros(len(prompts)), prompts, outputs, content=content)


def served_s(workload: Workload, *, count: int, budget: int) -> tuple[float, int]:
    """Processor time of serving on a null device, `count` at once, and iterations."""
    tokens = workload.prompt_tokens + workload.output_tokens
    model = Transformer.random(
        CONFIG, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu",
        backend="torch",
    )  # fmt: skip
    serving = engine(
        workload,
        EngineConfig(
            max_num_seqs=count, max_num_batched_tokens=budget, enable_prefix_caching=False,
        ),
        model,
        scheduler="chunked",
        num_blocks=int((-(-tokens // 16) + 1).sum()),
        capture_sizes=sorted({1, min(32, count), count}),
        clock=Clock(skip_idle=True),
    )  # fmt: skip
    nothing = torch.zeros(count + MOST_PROMPTS, dtype=torch.int64)

    def replay(staged: Staged) -> torch.Tensor:
        return nothing[: staged.shape.decodes + staged.shape.prompts]

    serving.executor._graphs.replay = replay  # type: ignore[attr-defined]
    hidden = torch.zeros(1, CONFIG.hidden_size)
    model.forward = (  # type: ignore[method-assign]
        lambda batch, cache: hidden.expand(len(batch.token_ids), -1)
    )
    began_s = time.process_time()
    served = serving.run()
    taken_s = time.process_time() - began_s
    assert not served.errors
    return taken_s, len(served.records.iterations["duration_s"])


def loop_ns() -> float:
    """Of one turn of a loop that any Python takes about as long for."""
    began_s, total = time.process_time(), 0
    for number in range(200_000):
        total += number & 3
    return (time.process_time() - began_s) / 200_000 * 1e9


def host_times(repeats: int = 5, iterations: int = 600) -> Iterator[HostTime]:
    """Each case's least disturbed of so many repeats, short runs and long ones each for itself: a
    disturbance only adds, so that the least of differences would be too little."""
    for make, is_mixed in ((decodes, False), (mixed, True)):
        for batch in BATCHES:
            few, many = 20, iterations if batch > 1 or is_mixed else 4 * iterations
            budget = batch + CHUNK if is_mixed else 8192
            turns, runs = [], []
            for _ in range(repeats):
                turns.append(loop_ns())
                runs.append(
                    [
                        served_s(make(batch, n), count=batch + is_mixed, budget=budget)
                        for n in (few, many)
                    ]
                )
            (short_s, short), (long_s, long) = (min(each) for each in zip(*runs, strict=True))
            us = (long_s - short_s) / (long - short) * 1e6
            yield HostTime(batch, is_mixed, us, min(turns))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=600)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for one in host_times(options.repeats, options.iterations):
        kind = "with prompts" if one.mixed else "decodes"
        told = f"{one.batch:4} {kind:12} {one.us:7.1f} µs an iteration"
        print(f"{told} (a turn of the loop: {one.loop_ns:.0f} ns)", flush=True)
        rows.append({"batch": one.batch, "mixed": one.mixed, "us": one.us, "loop_ns": one.loop_ns})
        if options.out is not None:
            options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
