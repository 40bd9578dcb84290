"""GPU memory that a draft takes: its weights, its keys and values, and more rows of logits."""

from __future__ import annotations

from dataclasses import replace

from sim.kv.memory import MemoryBudget
from sim.kv.profiling_run import activation_bytes
from sim.model.spec import ModelSpec


def share_memory(
    budget: MemoryBudget,
    model: ModelSpec,
    *,
    weight_bytes: int,
    kv_bytes_per_token: int,
    query_tokens: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    tensor_parallel: int = 1,
    ranks: int = 1,
    blocks_given: bool = False,
) -> MemoryBudget:
    """The budget of a target that shares its GPU with a draft.

    `weight_bytes` and `kv_bytes_per_token` are the draft's on one GPU; its keys and values lie in
    the same blocks as the target's, as in vLLM. Logits are computed for all `query_tokens` of every
    sequence. Blocks lie on one of `ranks` that sequences are dealt out to, each with a draft of its
    own. `blocks_given`: the number of blocks is the engine's own figure. Raises ValueError
    where nothing is left for the cache.
    """
    rows = min(max_num_seqs * query_tokens, max_num_batched_tokens)
    activation = max(
        budget.activation_bytes,
        activation_bytes(model, max_num_batched_tokens, rows, tensor_parallel),
    )
    needed = weight_bytes + activation - budget.activation_bytes
    left = budget.kv_bytes - max(needed - budget.spare_bytes, 0)
    room = left - budget.state_bytes
    per_block = budget.bytes_per_block + budget.block_size * kv_bytes_per_token // ranks
    blocks = budget.num_gpu_blocks if blocks_given else room // (per_block * ranks) * ranks
    if blocks < 1:
        gib = 2**30
        raise ValueError(
            f"no memory is left for the KV cache: the draft takes {weight_bytes / gib:.1f} GiB for "
            f"weights and {(activation - budget.activation_bytes) / gib:.1f} for logits, the "
            f"target left {budget.kv_bytes / gib:.1f}; use a smaller draft, a lower max_num_seqs "
            "or a GPU with more memory"
        )
    return replace(
        budget,
        weight_bytes=budget.weight_bytes + weight_bytes,
        activation_bytes=activation,
        kv_bytes=left,
        bytes_per_block=per_block,
        num_gpu_blocks=blocks,
    )
