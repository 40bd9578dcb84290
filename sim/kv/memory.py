"""What a GPU's memory goes to: weights, activations, reserve, and the KV blocks that are left.

The engine may use ``gpu_memory_utilization`` of the memory the driver reports. Off that come

- the weights (``ModelSpec.weight_bytes``);
- the activation peak of the engine's profiling run and what it takes outside PyTorch
  (`sim.kv.profiling_run`, which has formulas and sources).

The rest, in whole blocks, is the KV cache. What a block takes depends on how the model's layers
share it out (`sim.kv.layout`).

Spread over several GPUs (`sim.model.parallelism`), the stage of a pipeline with the least room
decides; sequence parallelism divides a block's bytes, expert parallelism adds up the ranks' blocks,
since each sequence lives on one of them. Of data-parallel ranks the budget is one rank's. Shown is
that of a GPU of the deciding stage. Under decode context parallelism a block is ``block_size``
tokens on each of the ranks that share out a sequence, so many times as many for the scheduler, and
takes as many bytes of a GPU as without (vLLM 0.32: ``SingleTypeKVCacheManager.block_size``).

Checked against what twelve engines logged, vLLM 0.2.5 to 0.31: docs/concepts/sharing-and-memory.md.
Where a figure of the engine itself exists, ``num_gpu_blocks_override`` is the way to use it.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sim.kv.layout import CacheLayout, cache_layout
from sim.kv.profiling_run import ProfilingRun, activation_bytes
from sim.model.hardware import Gpu
from sim.model.parallelism import Parallelism
from sim.model.spec import ModelSpec

_WITHIN_A_NODE = 8  # tensor-parallel ranks of a pipeline's stage, where refusals say what would do
_MOST_RANKS = 128  # of a tensor-parallel group alone


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """One GPU's memory, in bytes, and the KV cache it leaves.

    ``usable_bytes`` = weights + activation + reserve + ``kv_bytes`` (what is left for KV; negative
    only under ``num_gpu_blocks_override``, where the engine is said to have found the room; less
    than what is left where it is given).
    ``num_gpu_blocks`` is the whole engine's, ``bytes_per_block`` what one of them takes of each
    GPU (on average, where ranks hold sequences of their own). ``block_size`` is in tokens of a
    sequence, as the scheduler counts them: those of all ranks that share it out.
    """

    usable_bytes: int
    weight_bytes: int
    activation_bytes: int
    reserve_bytes: int
    kv_bytes: int
    block_size: int
    bytes_per_block: int
    num_gpu_blocks: int
    null_blocks: int = 0  # of those, set aside: vLLM's block 0, one a rank with a cache of its own
    layout: CacheLayout | None = None  # of the whole model; None: one table that keeps every token
    state_bytes: int = 0  # of `kv_bytes`, for states that lie outside the blocks

    @property
    def spare_bytes(self) -> int:
        """What is nobody's, where the cache is given less than it could have."""
        taken = self.weight_bytes + self.activation_bytes + self.reserve_bytes + self.kv_bytes
        return max(self.usable_bytes - taken, 0)

    @property
    def usable_blocks(self) -> int:
        """Blocks that sequences can have."""
        return self.num_gpu_blocks - self.null_blocks

    @property
    def slots(self) -> int:
        """Tokens the KV cache holds, where layers keep them all."""
        tables = 1 if self.layout is None else self.layout.full_tables or 1
        return self.usable_blocks * self.block_size // tables

    def most_sequences(self, mean_tokens: float) -> float:
        """No more sequences of that mean length fit, though windows hold nothing."""
        if self.layout is None or not self.layout.rules:
            return self.slots // mean_tokens
        held = self.layout.full_tables * mean_tokens / self.block_size + self.layout.state_tables
        return self.usable_blocks // held if held else math.inf


def memory_budget(
    model: ModelSpec,
    gpu: Gpu,
    *,
    tensor_parallel: int = 1,
    parallelism: Parallelism | None = None,
    gpu_memory_utilization: float = 0.9,
    block_size: int = 16,
    kv_cache_dtype: str = "auto",
    max_num_batched_tokens: int = 8192,
    max_num_seqs: int = 256,
    num_gpu_blocks_override: int | None = None,
    kv_cache_bytes: int | None = None,
    null_block: bool = False,
    profiling: ProfilingRun | None = None,
    by_groups: bool = True,
    remedy: bool = True,
) -> MemoryBudget:
    """Split one GPU's memory.

    `parallelism` has all degrees; `tensor_parallel` alone is short for that one. Raises
    ``ValueError`` where a setting is out of range, where the model cannot be split so, and where
    weights, activations and reserve leave not even one block (the message says how many such GPUs
    would do). With ``num_gpu_blocks_override`` only the weights must fit. `kv_cache_bytes`: what
    each GPU gives to the cache, whatever ``gpu_memory_utilization`` leaves; it must fit in the
    GPU's memory with the rest. `null_block`: whether one of the blocks holds nothing, ever.
    `profiling`: what the engine counts; None: as vLLM today. `by_groups`: whether the engine has a
    hybrid cache, a table for each group of layers; without one every layer keeps every token, and
    each of ``max_num_seqs`` has its states set aside. `remedy`: whether a refusal says what would
    do.
    """

    def fits(degree: int, stages: int) -> bool:
        """Whether a pipeline of so many tensor-parallel groups would do, with the same settings."""
        try:
            memory_budget(
                model,
                gpu,
                parallelism=Parallelism(degree, stages),
                gpu_memory_utilization=gpu_memory_utilization,
                block_size=block_size,
                kv_cache_dtype=kv_cache_dtype,
                max_num_batched_tokens=max_num_batched_tokens,
                max_num_seqs=max_num_seqs,
                num_gpu_blocks_override=num_gpu_blocks_override,
                null_block=null_block,
                profiling=profiling,
                by_groups=by_groups,
                remedy=False,
            )
        except ValueError:
            return False
        return True

    if not 0 < gpu_memory_utilization <= 1:
        raise ValueError(
            f"gpu_memory_utilization must be above 0 and at most 1, not {gpu_memory_utilization}"
        )
    for key, value in {
        "block_size": block_size,
        "max_num_batched_tokens": max_num_batched_tokens,
        "max_num_seqs": max_num_seqs,
        "num_gpu_blocks_override": num_gpu_blocks_override,
        "kv_cache_bytes": kv_cache_bytes,
    }.items():
        if value is not None and value < 1:
            raise ValueError(f"{key} must be at least 1, not {value}")
    spread = Parallelism(tensor_parallel) if parallelism is None else parallelism
    spread.check(model)
    tp, ranks, groups = spread.tensor_parallel, spread.dealt_ranks, spread.expert_groups

    if kv_cache_bytes is not None:  # then engines do not ask how much of the GPU is theirs
        gpu_memory_utilization = 1.0
    usable = int(gpu.memory_bytes * gpu_memory_utilization)
    profiling = profiling or ProfilingRun()
    reserve = profiling.reserve_bytes(spread)
    tokens = -(-max_num_batched_tokens // spread.sequence_parallel)
    rows = min(max_num_seqs, max_num_batched_tokens)
    whole = cache_layout(
        model,
        block_size=block_size,
        kv_cache_dtype=kv_cache_dtype,
        tensor_parallel=tp,
        by_groups=by_groups,
    )
    stages = model.stages(spread.pipeline_parallel)
    budgets, before = [], None
    for number, stage in enumerate(stages):
        first, last = number == 0, number == len(stages) - 1
        if before == (stage, first, last):
            continue  # one as the one before has its budget too
        before = stage, first, last
        weights = stage.weight_bytes(tp, expert_parallel=groups, first_stage=first, last_stage=last)
        activation = activation_bytes(
            stage, tokens, rows, tp, ranks=groups, sampler=profiling.sampler
        )
        layout = cache_layout(
            model,
            block_size=block_size,
            kv_cache_dtype=kv_cache_dtype,
            tensor_parallel=tp,
            by_groups=by_groups,
            stage=stage,
        )
        on_rank = -(-layout.block_bytes // spread.sequence_parallel) or 1
        states = -(-max_num_seqs // ranks) * layout.sequence_bytes
        left = usable - weights - activation - reserve - states
        if kv_cache_bytes is not None and on_rank <= left:
            _check_cache(kv_cache_bytes, block=on_rank, left=left, gpu=gpu)
            left = kv_cache_bytes
        budget = MemoryBudget(
            usable_bytes=usable,
            weight_bytes=weights,
            activation_bytes=activation,
            reserve_bytes=reserve,
            kv_bytes=left + states,
            block_size=layout.block_size * spread.decode_context_parallel,
            bytes_per_block=on_rank // ranks,
            num_gpu_blocks=num_gpu_blocks_override or max(left // on_rank, 0) * ranks,
            null_blocks=ranks if null_block else 0,
            layout=whole if whole.rules else None,
            state_bytes=states,
        )
        if budget.usable_blocks < 1 <= budget.num_gpu_blocks:
            raise ValueError(
                f"num_gpu_blocks {budget.num_gpu_blocks}: the null block leaves none for "
                "sequences; give one more, or engine.null_block=false where the engine has none"
            )
        if weights > usable or (left < on_rank and num_gpu_blocks_override is None):
            raise ValueError(
                f"{model.name} does not fit on {spread.num_gpus} x {gpu.name}: "
                f"{_needs(budget, gpu_memory_utilization)}{_remedy(model, fits) if remedy else ''}"
            )
        budgets.append(budget)
    return min(budgets, key=lambda budget: (budget.num_gpu_blocks, budget.kv_bytes))


def _check_cache(given: int, *, block: int, left: int, gpu: Gpu) -> None:
    if not block <= given <= left:
        gib = 2**30
        raise ValueError(
            f"kv_cache_memory_gib {given / gib:g}: expected {block / gib:.2g} (a block) to "
            f"{left / gib:.1f}, which is what weights, activations and reserve leave of each "
            f"{gpu.name}"
        )


def _needs(budget: MemoryBudget, gpu_memory_utilization: float) -> str:
    gib = 2**30
    return (
        f"each GPU needs {budget.weight_bytes / gib:.1f} GiB for weights, "
        f"{budget.activation_bytes / gib:.1f} for activations and "
        f"{budget.reserve_bytes / gib:.1f} in reserve, and may use {budget.usable_bytes / gib:.1f} "
        f"GiB (gpu_memory_utilization {gpu_memory_utilization:g})"
    )


def fewest_gpus(
    model: ModelSpec, fits: Callable[[int, int], bool], *, degrees: Iterable[int]
) -> tuple[int, int] | None:
    """The (tensor, pipeline) degrees of the fewest GPUs for which ``fits`` is true, None where none
    are: of equally many the wider group. Only what can be deployed is asked: those tensor-parallel
    degrees that split the model, no more stages than layers.

    ``fits`` holds for every longer pipeline if it holds for one.
    """
    best: tuple[int, int] | None = None
    for degree in sorted(degrees, reverse=True):
        most = model.num_layers
        if best is not None:  # only fewer GPUs are better
            most = min(most, (best[0] * best[1] - 1) // degree)
        if most < 1 or not _splits(model, degree) or not fits(degree, most):
            continue
        low, high = 0, most  # low does not fit, high does
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(degree, middle) else (middle, high)
        best = degree, high
    return best


def _remedy(model: ModelSpec, fits: Callable[[int, int], bool]) -> str:
    """How many GPUs would do, as degrees to set; and a tensor-parallel group, where it is more."""
    best = fewest_gpus(model, fits, degrees=range(1, _WITHIN_A_NODE + 1))
    groups = (n for n in range(1, _MOST_RANKS + 1) if _splits(model, n))
    alone = next((n for n in groups if fits(n, 1)), None)
    if best is None and alone is None:
        return (
            "; more GPUs of that kind would not help; lower max_num_batched_tokens or max_num_seqs"
        )
    if best is None or (alone is not None and alone <= best[0] * best[1]):
        return f"; {alone} GPUs of that kind would do (tensor_parallel {alone})"
    degree, stages = best
    text = f"; {degree * stages} GPUs of that kind would do (pipeline_parallel {stages}"
    text += f", tensor_parallel {degree})" if degree > 1 else ")"
    return text if alone is None else f"{text}, or {alone} (tensor_parallel {alone})"


def _splits(model: ModelSpec, degree: int) -> bool:
    try:
        model.check_tensor_parallel(degree)
    except ValueError:
        return False
    return True
