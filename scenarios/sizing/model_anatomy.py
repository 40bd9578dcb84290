"""What a transformer's shape comes to: where its parameters are, and the FLOPs of a token."""

from __future__ import annotations

from dataclasses import dataclass

from sim.model.spec import LinearOperation, ModelSpec


@dataclass(frozen=True, slots=True)
class ParameterSplit:
    """Parameters by what they belong to; they add up to ``ModelSpec.num_parameters``.

    ``embedding`` holds the input table, learned positions and the output head (once where they
    are tied), ``mlp`` dense layers' and shared experts', ``router`` what chooses the experts.
    """

    embedding: int
    attention: int
    mlp: int
    experts: int
    router: int
    norms: int

    @property
    def total(self) -> int:
        return self.embedding + self.attention + self.mlp + self.experts + self.router + self.norms

    @property
    def without_embedding(self) -> int:
        """What Kaplan et al. 2020 call N."""
        return self.total - self.embedding


def parameter_split(model: ModelSpec) -> ParameterSplit:
    """Count the parameters of each part, biases with the matrices they belong to."""
    parts = {"attention": 0, "mlp": 0, "router": 0}
    for operation in model.linear_operations():
        parts[_part(operation)] += operation.num_parameters
    experts = sum(operation.num_parameters for operation in model.expert_operations())
    tables = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    embedding = tables + model.position_rows * model.hidden_size
    norms = model.num_parameters - sum(parts.values()) - experts - embedding
    return ParameterSplit(embedding=embedding, experts=experts, norms=norms, **parts)


def _part(operation: LinearOperation) -> str:
    if operation.kind in ("qkv", "o", "latent"):
        return "attention"
    return "router" if operation.kind == "router" else "mlp"


def forward_flops_per_token(model: ModelSpec, sequence_length: int) -> int:
    """FLOPs of one token's forward pass in a sequence of this length.

    Two per weight of every matrix product it passes, logits included, and 4 x layers x heads x
    head dimension per token of the sequence for attention: the masked half of the scores is
    counted, as MFU figures do (PaLM, Chowdhery et al. 2022, appendix B).
    """
    flops = sum(operation.flops(1) for operation in model.linear_operations())
    flops += model.logits_operation().flops(1)
    if model.moe is not None:
        routed = sum(operation.flops(1) for operation in model.expert_operations())
        flops += routed * model.moe.experts_per_token // model.moe.num_experts
    return flops + model.prefill_attention_flops() * sequence_length
