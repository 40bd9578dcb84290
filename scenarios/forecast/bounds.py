"""What a run would take of this machine, told before it takes it."""

from __future__ import annotations

import math
import os

import numpy as np

from scenarios.schema.workload import Workload as WorkloadSection
from sim.cluster.plan import ReplicaGroup
from sim.schedulers.engine_config import EngineConfig
from sim.workload import Workload

LARGEST_BYTES = 64e9  # on a larger machine too
MOST_ITERATIONS = 1e10  # a day and more, by the million iterations a second of the fastest runs

# Bytes that CPython and numpy hold, rounded down: what is refused is absurd, not merely large.
_A_REQUEST = 400  # its columns as they are drawn and recorded
_A_BLOCK = 36  # its number as an object, shared by all replicas
_A_FREE_BLOCK = 8  # in the queue of each replica
_A_HASH = 8  # of a block of a prompt that may be found again
_AN_ITERATION = 120  # a row of its columns


def check_drawn(workload: WorkloadSection, block_size: int) -> None:
    """ValueError where drawing these requests would take more memory than any machine has."""
    if workload.num_requests is None:
        return
    drawn = float(workload.num_requests)
    if workload.beam_search is not None:
        drawn *= workload.beam_search.width
    elif workload.samples is not None:
        drawn *= workload.samples.most
    _refuse_bytes(drawn * _A_REQUEST, f"num_requests: {drawn:,.0f} sequences")
    if workload.shared_prefixes is not None:
        blocks = workload.num_requests * (workload.shared_prefixes.tokens / block_size)
        what = f"shared_prefixes: {blocks:,.0f} blocks of prompts"
        _refuse_bytes(blocks * _A_HASH, what)


def check_run(workload: Workload, config: EngineConfig, num_blocks: int, replicas: int) -> None:
    """ValueError where a simulation would take more memory or time than anybody has."""
    free = num_blocks * (_A_BLOCK + _A_FREE_BLOCK * replicas)
    _refuse_bytes(free, f"{num_blocks:,} KV blocks in each of {replicas:,} replicas")
    iterations = fewest_iterations(workload, config)
    if iterations > MOST_ITERATIONS:
        raise ValueError(
            f"at least {iterations:,.0f} iterations, more than the {MOST_ITERATIONS:,.0f} that end "
            "within a day; ask for fewer or shorter requests"
        )
    _refuse_bytes(iterations * _AN_ITERATION, f"the records of {iterations:,.0f} iterations")


def check_groups(workload: Workload, groups: tuple[ReplicaGroup, ...]) -> None:
    """The same of every group of a cluster."""
    for group in groups:
        check_run(workload, group.config, group.num_blocks, group.replicas)


def fewest_iterations(workload: Workload, config: EngineConfig) -> float:
    """Iterations without which these requests cannot be answered, however they are batched.

    The longest answer that fits in the context takes one for each of its tokens, or for as many
    as speculation may add at once.
    """
    fits = workload.prompt_tokens + workload.output_tokens <= config.max_model_len
    outputs = np.where(fits, workload.output_tokens, 0)
    at_once = 1 if config.speculation is None else config.speculation.shape.query_tokens
    return float(outputs.max(initial=0)) / at_once


def _refuse_bytes(wanted: float, what: str) -> None:
    most = min(LARGEST_BYTES, _machine_bytes())
    if wanted > most:
        raise ValueError(
            f"{what} take at least {wanted / 1e9:,.0f} GB of this machine's memory, more than "
            f"{most / 1e9:.0f}; ask for less"
        )


def _machine_bytes() -> float:
    """The memory of this machine; without limit where that is not told."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return math.inf
