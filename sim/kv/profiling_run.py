"""What an engine's profiling run measures before it sizes its KV cache.

An engine computes one batch of the largest size and keeps what that took, beside the weights, out
of the cache. vLLM's run (``determine_available_memory``, V0: ``determine_num_available_blocks``)
computes ``max_num_batched_tokens`` tokens, then logits and a sampler with top-k and top-p for
``max_num_seqs`` rows. The peak is the larger of

- one layer: tokens x (2 hidden + the wider of (attention in + out) and (MLP in + out)) x 2 B; for
  routed experts the caches of the fused kernel, for every chosen expert its input or output,
  whichever is wider, and its activation, at most ``MOE_CHUNK_TOKENS`` at a time. Where each rank of
  expert parallelism has tokens of its own, a rank gathers those of all ranks;
- the sampler: tokens x hidden x 2 B + rows x vocabulary x ``SAMPLER_BYTES``. Logits are gathered,
  so tensor parallelism does not make them smaller.

``torch.compile`` joins element-wise operations, but the projections' outputs are the peak, and
those exist either way: the same formula serves eager and compiled models.

What is taken outside PyTorch, and the engine counts: library workspaces on every GPU, NCCL's and
the custom all-reduce's buffers for each group of ranks, and, where the engine compares with all of
the GPU's memory and not with what was free once the process had its context, that context.
"""

from dataclasses import dataclass

from sim.model.layers import Layer
from sim.model.parallelism import Parallelism
from sim.model.spec import DTYPE_BYTES, ModelSpec

# PyTorch's sampler keeps for each logit: 16 bits (2 B), float32 (4), the sorted copy (4) and its
# int64 indices (8), what sorting pairs needs beside them (12), probabilities (4) and their sums
# (4). vLLM's logs agree: 1.19 GiB at 256 rows of 128,256 (0.6), 1.45 at 256 of 151,936 (0.8), 4.76,
# 5.56 and 7.38 at 1,024 rows of 128,256, 151,936 and 201,088 (0.12). FlashInfer's draws by
# rejection, without sorting: logits (2), float32 (4), masked (4), probabilities (4).
SAMPLER_BYTES = {"pytorch": 38, "flashinfer": 14}

# vLLM logs 0.05 to 0.16 GiB outside PyTorch on one GPU (cuBLAS workspaces, modules loaded late) and
# 0.54 to 0.55 on each of two H100s; the difference is what a group of ranks takes.
LIBRARY_BYTES = 96 * 2**20
COMMUNICATOR_BYTES = 448 * 2**20
# A process that has a CUDA context and has loaded its kernels: about half a GiB. Round.
CUDA_CONTEXT_BYTES = 512 * 2**20
# The graphs of the usual capture sizes share one pool: vLLM logs 0.24 to 0.67 GiB. Round.
CUDA_GRAPH_BYTES = 512 * 2**20

MOE_CHUNK_TOKENS = 32_768  # VLLM_FUSED_MOE_CHUNK_SIZE


@dataclass(frozen=True, slots=True)
class ProfilingRun:
    """How an engine finds what its cache may have.

    `graphs`: the pool of CUDA graphs is taken off as well (vLLM since 0.21; before, it came on top
    of ``gpu_memory_utilization``). `context`: so is the CUDA context (V0; V1 begins with what is
    used once there is one). `sampler`: a key of ``SAMPLER_BYTES``.
    """

    graphs: bool = True
    context: bool = False
    sampler: str = "pytorch"

    def reserve_bytes(self, spread: Parallelism) -> int:
        """What one GPU gives to all but weights, activations and KV."""
        degrees = (
            spread.tensor_parallel,
            spread.pipeline_parallel,
            spread.expert_parallel,
            spread.sequence_parallel,
        )
        reserve = LIBRARY_BYTES + COMMUNICATOR_BYTES * sum(degree > 1 for degree in degrees)
        reserve += CUDA_GRAPH_BYTES * self.graphs + CUDA_CONTEXT_BYTES * self.context
        return reserve


def activation_bytes(
    model: ModelSpec,
    tokens: int,
    rows: int,
    tensor_parallel: int = 1,
    *,
    ranks: int = 1,
    sampler: str = "pytorch",
) -> int:
    """Peak activation memory of one GPU; the formula is in the module's docstring.

    `ranks` of expert parallelism have `tokens` each. Raises ``KeyError`` for an unknown `sampler`.
    """
    each = DTYPE_BYTES[model.dtype]
    inner = max(
        _inner_numbers(model, layer, tokens, tensor_parallel, ranks=ranks) for layer in model.kinds
    )
    layer_bytes = (tokens * 2 * model.hidden_size + inner) * each
    sampled = rows * model.vocab_size * SAMPLER_BYTES[sampler]
    return int(max(layer_bytes, tokens * model.hidden_size * each + sampled))


def _inner_numbers(
    model: ModelSpec, layer: Layer, tokens: int, tensor_parallel: int, *, ranks: int
) -> float:
    """Numbers between the matrices of a layer, on one GPU."""
    split = {"qkv": 0, "o": 0, "gate_up": 0, "down": 0}
    for op in model.with_layers([(layer, 1)]).linear_operations():
        if op.kind in ("qkv", "latent"):
            split["qkv"] += op.out_features
        elif op.kind in ("o", "down"):
            split[op.kind] = max(split[op.kind], op.in_features)
        elif op.kind == "gate_up":
            split["gate_up"] = op.out_features
    attention = (split["qkv"] + split["o"]) / tensor_parallel
    mlp = (split["gate_up"] + split["down"]) / tensor_parallel
    inner = tokens * max(attention, mlp)
    if layer.moe is not None:
        width = layer.moe.intermediate_size / tensor_parallel
        of_token = layer.moe.experts_per_token * (max(2 * width, model.hidden_size) + width)
        gathered = tokens * ranks
        experts = min(gathered, MOE_CHUNK_TOKENS) * of_token
        if ranks > 1:
            experts += gathered * model.hidden_size * 2
        inner = max(inner, experts)
    return inner
