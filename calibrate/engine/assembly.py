"""An engine put together: a policy by name, the model's executor, a workload with its prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from calibrate.engine.engine import RealEngine
from calibrate.engine.executor import Sampling
from calibrate.engine.speculation.speculating_executor import SpeculatingExecutor
from calibrate.engine.token_ids import TokenIds
from calibrate.engine.transformer_executor import TransformerExecutor
from calibrate.engine.wall_clock import Clock
from kernels.transformer import Transformer
from sim.engine.policy import block_allocator, scheduler_class
from sim.request_pool import RequestPool
from sim.schedulers import Scheduler
from sim.schedulers.engine_config import EngineConfig
from sim.speculation.acceptance import ObservedAcceptance
from sim.workload.source import RequestSource
from sim.workload.workload import Workload


def engine(
    workload: Workload,
    config: EngineConfig,
    model: Transformer,
    *,
    scheduler: str,
    num_blocks: int,
    capture_sizes: Sequence[int] = (),
    mixed_graphs: bool = True,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    eos_token: int | None = None,
    draft: Transformer | None = None,
    seed: int = 0,
    clock: Clock | None = None,
    check: bool = False,
    progress: Callable[[int], None] | None = None,
) -> RealEngine:
    """An engine that will serve `workload` under a policy by name, as `sim.simulate` would.

    `mixed_graphs`: with `capture_sizes`, iterations with prompts are captured as well. Where
    `config` speculates, `draft` drafts (methods that have a model for it), and what is
    accepted is noted in ``scheduler.config.speculation.acceptance``.

    `seed` draws the token ids of prompts whose content is not known; the rest is as for `Engine`
    and `TransformerExecutor`. Raises MemoryError when the KV cache does not fit, ValueError for
    what only the simulator can do.
    """
    pool = RequestPool(config.block_size)
    allocator = block_allocator(config, num_blocks)
    samples = workload.samples
    if config.kv_tiers:
        raise ValueError("the engine does not offload: turn that off to validate")
    speculation = config.speculation
    if speculation is not None and config.async_scheduling:
        raise ValueError("the engine speculates behind the device alone, not with async_scheduling")
    if speculation is not None:
        always = speculation.method != "ngram"
        speculation = replace(speculation, acceptance=ObservedAcceptance(always=always))
        config = replace(config, speculation=speculation)
    if samples is not None and samples.beam is not None:
        raise ValueError("the engine samples, it does not search: workload.beam_search cannot run")
    if samples is not None and eos_token is not None:
        raise ValueError("several samples end by length: workload.samples cannot go with --eos")
    policy: Scheduler = scheduler_class(scheduler, config, samples=samples)(pool, allocator, config)
    # Rows of a request-level batch go on until its longest output ends.
    longest = int(workload.prompt_tokens.max() + workload.output_tokens.max())
    if samples is not None:
        longest = int(workload.prompt_tokens.max() + samples.output_tokens.max())
    swaps = scheduler == "paged" and config.preemption == "swap"
    if config.async_scheduling and (swaps or (samples is not None and scheduler == "paged")):
        raise ValueError(
            "with async_scheduling the engine neither swaps nor forks: blocks would move under a "
            "batch that is being computed"
        )
    if speculation is not None:
        longest = min(longest + speculation.shape.slots, config.max_model_len)
    settings: dict[str, Any] = {
        "num_blocks": num_blocks,
        "block_size": config.block_size,
        "max_num_seqs": config.max_num_seqs,
        "max_blocks": min(allocator.blocks_for(longest), num_blocks),
        "swap_blocks": config.swap_blocks if swaps else 0,
        "sampling": sampling,
    }
    executor: TransformerExecutor
    if speculation is None:
        executor = TransformerExecutor(
            model,
            capture_sizes=capture_sizes,
            max_prompt_tokens=config.max_num_batched_tokens if mixed_graphs else 0,
            **settings,
        )
    else:
        executor = SpeculatingExecutor(model, speculation=speculation, draft=draft, **settings)
    return RealEngine(
        policy,
        executor,
        RequestSource(
            workload, block_size=config.block_size, prefix_caching=config.enable_prefix_caching
        ),
        TokenIds(workload, model.config.vocab_size, seed=seed),
        samples=samples,
        eos_token=eos_token,
        clock=clock,
        check=check,
        progress=progress,
    )
