"""A matrix product of a layer: its shape, and what tensor parallelism leaves of it on one GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from sim.model.weight_format import WeightFormat

Formats = Callable[[str], WeightFormat]  # of a module such as "self_attn.q_proj"


@dataclass(frozen=True, slots=True)
class LinearOperation:
    """One kind of matrix product on one GPU: [tokens, in_features] x [in_features, out_features].

    ``count`` is how many copies one forward pass holds (layers, or layers x experts), ``kind`` is
    qkv, o, gate_up, down, router, shared_gate_up, shared_down, experts_gate_up, experts_down,
    latent, other or lm_head, ``bias_features`` the bias entries of one copy.
    """

    name: str
    kind: str
    in_features: int
    out_features: int
    count: int
    weights: WeightFormat
    bias_features: int = 0

    @property
    def weight_dtype(self) -> str:
        """What the product's weights are in."""
        return self.weights.dtype

    @property
    def num_parameters(self) -> int:
        return self.count * (self.in_features * self.out_features + self.bias_features)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all copies; biases take two bytes an entry."""
        weights = self.weights.bytes_of(self.in_features, self.out_features)
        return self.count * (weights + 2 * self.bias_features)

    def flops(self, tokens: int) -> int:
        """Multiply-adds of all copies, two operations each, when each sees ``tokens`` rows."""
        return 2 * tokens * self.in_features * self.out_features * self.count

    def bytes_moved(self, tokens: int) -> int:
        """Weights once, 16-bit inputs and outputs once, all copies, ``tokens`` rows each."""
        return self.weight_bytes + 2 * tokens * (self.in_features + self.out_features) * self.count


@dataclass(frozen=True, slots=True)
class Share:
    """Features that GPUs share out: ``units`` (heads, or single columns) of ``width`` each.

    ``what`` names the units in messages. ``replicable`` ones (key/value heads) may be fewer than
    the GPUs; each then holds a copy.
    """

    what: str
    units: int
    width: int = 1
    replicable: bool = False

    @property
    def features(self) -> int:
        return self.units * self.width

    def on_gpu(self, tensor_parallel: int) -> int:
        """Features on one of so many GPUs."""
        return max(1, self.units // tensor_parallel) * self.width

    def splits(self, tensor_parallel: int) -> bool:
        """Whether the units can be shared out evenly."""
        if self.units % tensor_parallel == 0:
            return True
        return self.replicable and tensor_parallel % self.units == 0

    def refusal(self, tensor_parallel: int) -> str:
        """Why not, after the model's name."""
        if self.replicable:
            return (
                f"tensor_parallel {tensor_parallel} neither divides nor is a multiple of its "
                f"{self.units} {self.what}"
            )
        if self.what.endswith("heads"):
            return f"tensor_parallel {tensor_parallel} does not divide its {self.units} {self.what}"
        return f"tensor_parallel {tensor_parallel} does not divide its {self.what} of {self.units}"


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix of a layer. Inputs and outputs are shared out (`Share`) or whole (a number).

    ``module`` is its name in a checkpoint, by which quantisation is said; an empty one is never
    quantised. ``weights`` is how it lies there.
    """

    name: str
    kind: str
    inputs: int | Share
    outputs: int | tuple[Share, ...]
    weights: WeightFormat
    module: str = ""
    bias: bool = False

    def operation(self, tensor_parallel: int, count: int) -> LinearOperation:
        """The product on one of so many GPUs, ``count`` copies."""
        inputs, outputs = self.inputs, self.outputs
        rows = inputs if isinstance(inputs, int) else inputs.on_gpu(tensor_parallel)
        if isinstance(outputs, int):
            columns = outputs
        else:
            columns = sum(share.on_gpu(tensor_parallel) for share in outputs)
        return LinearOperation(
            self.name, self.kind, rows, columns, count, self.weights, columns * self.bias
        )

    def formatted(self, formats: Formats) -> Matrix:
        """The same matrix, its weights as ``formats`` says of its module."""
        if not self.module:
            return self
        weights = formats(self.module)
        return self if weights == self.weights else replace(self, weights=weights)

    def quantised(self, weights: WeightFormat) -> Matrix:
        """The same matrix in this format, if it can be quantised and is not in its type already."""
        if not self.module or self.weights.dtype == weights.dtype:
            return self
        return replace(self, weights=weights)

    def rescaled(self, weights: WeightFormat) -> Matrix:
        """The same matrix in this format if it is in its type already."""
        return replace(self, weights=weights) if self.weights.dtype == weights.dtype else self

    def block_refusal(self, tensor_parallel: int) -> str | None:
        """Why engines refuse to split a quantised matrix so; None where they do not.

        A scale belongs to a block of weights: a GPU's part must have whole ones (vLLM: "not
        divisible by weight quantization block_n", "input size is not aligned with the quantized
        weight shape"). Kernels for mxfp4 fill up the last block with zeros instead.
        """
        if self.weights.dtype == "mxfp4":
            return None
        inner, outer = self.weights.group
        parts = [(share, outer) for share in self.columns()]
        if not isinstance(self.inputs, int):
            parts.append((self.inputs, inner))
        for share, block in parts:
            whole, part = share.features, share.on_gpu(tensor_parallel)
            if block > 1 and part % block and whole % block == 0:
                return (
                    f"tensor_parallel {tensor_parallel} leaves {part} of {whole} features of "
                    f"{self.name} on a GPU, which its quantisation's blocks of {block} do not "
                    f"divide: take a smaller degree{_and_experts(self.kind)}"
                )
        return None

    def columns(self) -> tuple[Share, ...]:
        """Outputs that tensor parallelism shares out."""
        return () if isinstance(self.outputs, int) else self.outputs

    def shares(self) -> tuple[Share, ...]:
        """Everything that tensor parallelism shares out."""
        rows = () if isinstance(self.inputs, int) else (self.inputs,)
        return rows + self.columns()


def _and_experts(kind: str) -> str:
    spread = ", or spread whole experts (experts_over, expert_parallel)"
    return spread if kind.startswith("experts") else ""
