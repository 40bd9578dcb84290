"""Serving everything once before anything is timed."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np

from calibrate.engine.assembly import engine
from calibrate.engine.wall_clock import Clock
from kernels.transformer import Transformer
from sim.schedulers.engine_config import EngineConfig
from sim.speculation import Speculation
from sim.workload import Workload

APART_S = 1e3  # between those that are not to meet


def warming_workload(longest: int, most: int, answer: int = 2) -> Workload:
    """Prompts of every magnitude up to `longest`, one after the other; then up to `most` at once.

    All have answers of `answer` tokens.

    Kernels are compiled, and cuBLAS is measured against ours, by powers of two: of an iteration's
    tokens, and of those among them that emit one.
    """
    alone = _powers(longest)
    together = _powers(most)
    groups = [*([length] for length in alone), *([1] * count for count in together)]
    times_s = [np.full(len(group), APART_S * number) for number, group in enumerate(groups)]
    prompts = np.concatenate(groups)
    return Workload(np.concatenate(times_s), prompts, np.full(len(prompts), answer))


def _powers(last: int) -> list[int]:
    """1, 2, 4, … and `last` itself."""
    return sorted({*(1 << power for power in range(last.bit_length())), last})


def _speculations(config: EngineConfig) -> list[Speculation | None]:
    """How to speculate while warming up: so that passes with drafts and without are among them."""
    speculation = config.speculation
    if speculation is None or speculation.method != "ngram":
        return [speculation]
    return [speculation, replace(speculation, method="jacobi")]  # which always has a draft


def warm_up(
    model: Transformer, config: EngineConfig, *, num_blocks: int, draft: Transformer | None = None
) -> None:
    """Serve prompts and batches of every magnitude, and one in chunks: compiles what will be timed.

    In an engine of its own with a cache just large enough, `num_blocks` at most, to be called
    before the timed one is made; it speculates as `config` says, `draft` as for `engine`. Raises
    MemoryError where it does not fit.
    """
    # An answer long enough for a verification at full width behind the prompt's token.
    answer = 2 if config.speculation is None else 2 + config.speculation.shape.slots
    longest = min(
        config.max_num_batched_tokens,
        config.max_model_len - answer,
        (num_blocks - 1) * config.block_size - answer,
    )
    if longest < 1:
        return
    on_gpu = model.embeddings.device.type == "cuda"  # elsewhere nothing is compiled
    each = -(-(1 + answer) // config.block_size)  # blocks of a sequence of a batch
    room = num_blocks // each - 1
    most = min(config.max_num_seqs, config.max_num_batched_tokens, room) if on_gpu else 1
    most = max(1, most)
    blocks = max(-(-(longest + answer) // config.block_size), most * each) + 1
    alone = Workload(np.zeros(1), np.array([longest]), np.array([answer]))
    # A chunk that is not a prompt's first reads the cache: another kernel.
    runs = [(warming_workload(longest, most, answer), config.max_num_batched_tokens)]
    runs += [(alone, -(-longest // 2))] if on_gpu else []
    for speculation, (workload, budget) in product(_speculations(config), runs):
        engine(
            workload,
            replace(
                config, queue=None, async_scheduling=False, max_num_batched_tokens=budget,
                max_num_seqs=min(config.max_num_seqs, budget), speculation=speculation,
            ),
            model,
            scheduler="chunked",
            num_blocks=min(blocks, num_blocks),
            draft=draft,
            clock=Clock(skip_idle=True),
        ).run()  # fmt: skip
