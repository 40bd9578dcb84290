"""How one engine's model is spread over GPUs, and what can be spread so.

The degrees multiply: an engine is ``tensor x sequence x expert x pipeline`` GPUs, placed in that
order, innermost first, into nodes of ``gpus_per_node``.

    tensor      every matrix product is split within a layer (Megatron-LM, Shoeybi et al., 2019)
    sequence    a prompt's tokens are split: DeepSpeed-Ulysses (Jacobs et al., 2023) exchanges
                heads for tokens around attention, ring attention (Liu et al., 2023) passes keys
                and values around. Weights are whole on every rank, the KV cache is split
    expert      each rank holds some of the experts and all of the rest; sequences are dealt out to
                ranks (DeepSeek-V3, section 3.4), tokens travel to their experts and back
    data        ranks that share out the experts of a mixture, each an engine with a scheduler and a
                cache of its own, all in lockstep. Experts are over all of their GPUs: the expert
                degree is ``tensor x data`` (vLLM's --enable-expert-parallel) and multiplies nothing
    pipeline    consecutive layers on consecutive stages (GPipe, Huang et al., 2019; Orca, 2022)

Tensor-parallel ranks that would hold copies of the same keys and values can share out a sequence's
tokens among them instead (decode context parallelism, vLLM's --decode-context-parallel-size): so
many ranks next to each other, and no more GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.model.spec import ModelSpec

SEQUENCE_KINDS = ("ulysses", "ring")


@dataclass(frozen=True, slots=True)
class Parallelism:
    """The degrees of one engine; ``check`` says whether a model can be spread so."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1
    sequence_parallel: int = 1
    sequence_kind: str = "ulysses"
    data_parallel: int = 1  # ranks of a mixture of experts; a dense model's are engines apart
    decode_context_parallel: int = 1  # tensor-parallel ranks that share out a sequence's tokens
    gpus_per_node: int = 8

    @property
    def num_gpus(self) -> int:
        """GPUs of one scheduler: of one rank, where several step together."""
        return self.gpus_per_stage * self.pipeline_parallel

    @property
    def gpus_per_stage(self) -> int:
        return self.tensor_parallel * self.sequence_parallel * self.dealt_ranks

    @property
    def gpus_per_step(self) -> int:
        """GPUs that work on one iteration at the same time: those of all ranks in lockstep."""
        return self.gpus_per_stage * self.data_parallel

    @property
    def dealt_ranks(self) -> int:
        """Expert ranks that one scheduler deals its sequences out to, each with a cache."""
        return 1 if self.data_parallel > 1 else self.expert_parallel

    @property
    def expert_groups(self) -> int:
        """Tensor-parallel groups that share out the experts."""
        return self.data_parallel if self.data_parallel > 1 else self.expert_parallel

    @property
    def is_spread(self) -> bool:
        """Whether tokens are dealt out to ranks, beyond the splitting of matrices and layers."""
        return self.sequence_parallel > 1 or self.dealt_ranks > 1

    @property
    def words(self) -> str:
        """The degrees above one, for labels and messages."""
        degrees = {
            "tensor": self.tensor_parallel,
            f"{self.sequence_kind} sequence": self.sequence_parallel,
            "expert": self.expert_parallel,
            "pipeline": self.pipeline_parallel,
            "data": self.data_parallel,
            "decode context": self.decode_context_parallel,
        }
        return " x ".join(f"{kind} {degree}" for kind, degree in degrees.items() if degree > 1)

    def check(self, model: ModelSpec) -> None:
        """Raise ``ValueError``, one line, where `model` cannot be spread so."""
        for key in ("pipeline_parallel", "expert_parallel", "sequence_parallel", "gpus_per_node"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, not {getattr(self, key)}")
        model.check_tensor_parallel(self.tensor_parallel)
        model.stages(self.pipeline_parallel)
        self._check_experts(model)
        self._check_data()
        self._check_sequence(model)
        self._check_nodes()
        self._check_decode_context(model)

    def _check_experts(self, model: ModelSpec) -> None:
        degree = self.expert_parallel
        if degree == 1:
            return
        if model.moe is None:
            raise ValueError(f"{model.name}: expert_parallel {degree}, but it has no experts")
        if model.moe.num_experts % degree:
            raise ValueError(
                f"{model.name}: expert_parallel {degree} does not divide its "
                f"{model.moe.num_experts} experts"
            )

    def _check_data(self) -> None:
        degree = self.data_parallel
        if degree == 1:
            return
        if self.pipeline_parallel > 1 or self.sequence_parallel > 1:
            raise ValueError(
                f"data_parallel {degree} of a mixture of experts beside pipeline or sequence ranks "
                "is not modelled, only beside tensor_parallel"
            )
        gpus = self.tensor_parallel * degree
        if self.expert_parallel != gpus:
            raise ValueError(
                f"expert_parallel {self.expert_parallel}: experts are over all ranks of "
                f"data_parallel, tensor_parallel {self.tensor_parallel} x {degree} = {gpus}"
            )

    def _check_sequence(self, model: ModelSpec) -> None:
        if self.sequence_kind not in SEQUENCE_KINDS:
            raise ValueError(
                f"sequence_parallel kind {self.sequence_kind!r}; "
                f"allowed: {', '.join(SEQUENCE_KINDS)}"
            )
        degree, tp = self.sequence_parallel, self.tensor_parallel
        if degree == 1 or self.sequence_kind == "ring":
            return
        if model.mla is not None:
            raise ValueError(
                f"{model.name}: ulysses splits key/value heads, latent attention caches one latent "
                "for all heads; use ring"
            )
        if model.num_kv_heads % (tp * degree):
            times = f" x tensor_parallel {tp} = {tp * degree}" if tp > 1 else ""
            raise ValueError(
                f"{model.name}: ulysses degree {degree}{times} does not divide its "
                f"{model.num_kv_heads} key/value heads; ring is not limited by heads"
            )

    def _check_nodes(self) -> None:
        tp, node = self.tensor_parallel, self.gpus_per_node
        if tp > node and tp % node:
            raise ValueError(
                f"tensor_parallel {tp} neither fits into a node of gpus_per_node {node} "
                "nor fills whole nodes"
            )
        if tp < node < self.num_gpus * self.data_parallel and node % tp:
            raise ValueError(
                f"tensor_parallel {tp} does not divide gpus_per_node {node}: one of the groups "
                "would straddle two nodes"
            )

    def _check_decode_context(self, model: ModelSpec) -> None:
        """What vLLM 0.32 takes (``ModelConfig.verify_with_parallel_config``), and no more.

        It allows any degree up to the copies of a head; one that does not divide them would have
        ranks with different heads share out tokens.
        """
        degree, tp, node = self.decode_context_parallel, self.tensor_parallel, self.tensor_per_node
        if degree == 1:
            return
        if degree < 1 or tp % degree:
            raise ValueError(
                f"decode_context_parallel {degree} does not divide tensor_parallel {tp}, whose "
                "ranks share out a sequence's tokens"
            )
        if self.is_spread:
            raise ValueError(
                f"decode_context_parallel {degree} beside ranks that share out tokens "
                "(sequence_parallel, expert_parallel without data_parallel) is not modelled"
            )
        other = [group.label for group in model.kv_groups() if group.kind not in ("full", "latent")]
        if other or model.state_bytes():
            raise ValueError(
                f"{model.name}: decode_context_parallel {degree} shares out contexts that every "
                f"layer keeps and reads whole, and it has {', '.join(other) or 'states'}"
            )
        if model.mla is None:
            self._check_copies(model)
        if max(node, degree) % min(node, degree):
            raise ValueError(
                f"decode_context_parallel {degree} beside {node} ranks of tensor_parallel in a "
                "node: one of the groups would straddle two nodes"
            )

    def _check_copies(self, model: ModelSpec) -> None:
        """Only ranks with the same keys and values can share them out."""
        degree, tp, heads = self.decode_context_parallel, self.tensor_parallel, model.num_kv_heads
        copies = max(tp // heads, 1)
        if copies % degree:
            raise ValueError(
                f"{model.name}: decode_context_parallel {degree}, but tensor_parallel {tp} holds "
                f"each of its {heads} key/value heads {copies} times, and ranks with the same ones "
                f"share out their tokens: it takes tensor_parallel {degree * heads} or a multiple"
            )

    # -- where the GPUs are ---------------------------------------------------------------------

    @property
    def tensor_per_node(self) -> int:
        """Ranks of a tensor-parallel group that share a node."""
        return min(self.tensor_parallel, self.gpus_per_node)

    @property
    def sequence_per_node(self) -> int:
        """Ranks of a sequence-parallel group, one of each tensor-parallel group, in one node."""
        groups = self.gpus_per_node // self.tensor_parallel
        return max(1, min(self.sequence_parallel, groups))

    @property
    def expert_per_node(self) -> int:
        """Ranks of an expert-parallel group, one of each group of sequences, in one node."""
        groups = self.gpus_per_node // (self.tensor_parallel * self.sequence_parallel)
        return max(1, min(self.expert_parallel, groups))

    @property
    def data_per_node(self) -> int:
        """Data-parallel ranks in one node."""
        return max(1, min(self.data_parallel, self.gpus_per_node // self.tensor_parallel))

    def send_crosses_nodes(self, stage: int) -> bool:
        """Whether what stage `stage` (from 0) sends to the next leaves a node."""
        here = [stage * self.gpus_per_stage + rank for rank in range(self.gpus_per_stage)]
        node, ahead = self.gpus_per_node, self.gpus_per_stage
        return any(rank // node != (rank + ahead) // node for rank in here)
