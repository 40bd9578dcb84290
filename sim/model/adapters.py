"""LoRA adapters (Hu et al., ICLR 2022): two thin matrices beside each of a model's.

Requests of several adapters run in one batch, grouped by adapter (Punica: Chen et al., MLSys 2024;
S-LoRA: Sheng et al., MLSys 2024). The memory is set aside for a number of slots, as vLLM does with
`max_loras` and `max_lora_rank`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.model.spec import ModelSpec

BYTES_EACH = 2  # adapters are served in 16 bits, whatever the weights are


@dataclass(frozen=True, slots=True)
class Adapters:
    """Who asks for an adapter: `shares` has a part of all requests for each; the rest asks for
    none. `slots` of `rank` lie in memory."""

    shares: tuple[float, ...]
    rank: int
    slots: int

    def among(self, num_seqs: int) -> float:
        """Adapters among so many sequences that were taken at random, in the mean."""
        return sum(1.0 - (1.0 - share) ** num_seqs for share in self.shares)

    def any_among(self, num_seqs: int) -> float:
        """The share of such batches in which anybody asks for one."""
        return 1.0 - max(0.0, 1.0 - sum(self.shares)) ** num_seqs


def adapter_bytes(model: ModelSpec, rank: int, tensor_parallel: int = 1) -> int:
    """One adapter's bytes on one GPU, beside every matrix that all tokens pass.

    As vLLM lays them out without `fully_sharded_loras`: the first matrix has a GPU's inputs, the
    second its outputs. Queries, keys and values have a first matrix each, as gate and up have.
    """
    numbers = 0
    for layer, count in model.kinds.items():
        for matrix in layer.matrices():
            if not matrix.module or matrix.kind == "router":
                continue
            product = matrix.operation(tensor_parallel, count)
            parts = max(1, len(matrix.columns()))
            numbers += rank * (parts * product.in_features + product.out_features) * count
    return numbers * BYTES_EACH
