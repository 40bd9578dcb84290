"""What kernels reach of a GPU's two roofs, and what each takes besides, by its architecture.

Each figure is a fit to single kernels, timed on one card, of

    products, experts   overhead + max(FLOPs / (peak x efficiency), bytes / (bandwidth x memory))
    decode attention    overhead + per sequence x sequences + bytes / (bandwidth x memory)
    prefill attention   overhead of its own + FLOPs / (peak x efficiency)

that makes the mean of |log(fit / measured)| least; peaks and bandwidths are the data sheet's. The
kernels are vLLM's in the tables of aiconfigurator-core 0.12, but where something else is said:
products of 1 to 16,384 rows, widths and depths of 1,024 to 32,768; 32 experts and more, tokens
spread over them nearly evenly (`power_law_1.01`); attention with heads of 128. Errors below are
that mean. 8-bit products are scaled per tensor.

Kernels of one architecture differ by engine as much as these fits err, so all of it holds within 10
to 30 per cent. No figure was fitted to a serving run. One choice was made after a look at some:
B200's experts in 8 bits are FlashInfer's kernels, since serving points of DeepSeek there were badly
forecast with vLLM's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class ProductRates:
    """Matrix products: shares of the peak and of the bandwidth, and seconds besides of each."""

    efficiency: float
    memory_efficiency: float
    overhead_s: float  # of a product; of routing and both grouped products of a layer's experts


@dataclass(frozen=True, slots=True)
class AttentionRates:
    """One layer's attention: share of the 16-bit peak (prompts), of the bandwidth (decodes)."""

    efficiency: float
    memory_efficiency: float
    overhead_s: float
    per_sequence_s: float


@dataclass(frozen=True, slots=True)
class KernelRates:
    """All kernels of an architecture; products in 8 bits apart from those in 16."""

    products: ProductRates
    products_float8: ProductRates
    experts: ProductRates
    experts_float8: ProductRates
    attention: AttentionRates

    def with_efficiencies(
        self,
        *,
        gemm_efficiency: float | None,
        moe_efficiency: float | None,
        memory_efficiency: float | None,
        attention_efficiency: float | None,
        attention_memory_efficiency: float | None,
    ) -> KernelRates:
        """The rates with the given ones in their place, whatever the weights' type."""

        def products(own: ProductRates, efficiency: float | None) -> ProductRates:
            return replace(
                own,
                efficiency=own.efficiency if efficiency is None else efficiency,
                memory_efficiency=(
                    own.memory_efficiency if memory_efficiency is None else memory_efficiency
                ),
            )

        own = self.attention
        return KernelRates(
            products=products(self.products, gemm_efficiency),
            products_float8=products(self.products_float8, gemm_efficiency),
            experts=products(self.experts, moe_efficiency),
            experts_float8=products(self.experts_float8, moe_efficiency),
            attention=replace(
                own,
                efficiency=own.efficiency if attention_efficiency is None else attention_efficiency,
                memory_efficiency=(
                    own.memory_efficiency
                    if attention_memory_efficiency is None
                    else attention_memory_efficiency
                ),
            ),
        )

    def products_of(self, *, few_bits: bool) -> ProductRates:
        """Of products in 16 bits, or in fewer (`Gpu.computes_in_few_bits`).

        Products in 4 bits are ASSUMED to reach as much of their peak as those in 8.
        """
        return self.products_float8 if few_bits else self.products

    def experts_of(self, *, few_bits: bool) -> ProductRates:
        """The same of routed experts."""
        return self.experts_float8 if few_bits else self.experts


# A100 SXM (vLLM 0.14): 9 % products (10 % on TensorRT-LLM's), 19 % experts (20 %), 13 % decode.
# It has no 8-bit tensor cores: float8 weights are multiplied in 16 bits.
_AMPERE = KernelRates(
    products=ProductRates(0.78, 0.73, 5.9e-6),
    products_float8=ProductRates(0.78, 0.73, 5.9e-6),
    experts=ProductRates(0.26, 0.84, 4.0e-5),
    experts_float8=ProductRates(0.26, 0.84, 4.0e-5),
    attention=AttentionRates(0.49, 0.72, 1.8e-5, 3.5e-8),
)
# H100 SXM (vLLM 0.24): 7 % products, 15 % in 8 bits, 17 % experts, 11 % decode, 12 % prefill. On
# the H200's kernels of the same version: 8, 19, 20, 12 and 12 %. On TensorRT-LLM's of the H100: 6 %
# products, 12 % in 8 bits with scaled blocks. 8-bit experts: vLLM's with scaled blocks (19 %) and
# TensorRT-LLM's (31 %) together; vLLM's scaled per tensor are five times slower than either.
_HOPPER = KernelRates(
    products=ProductRates(0.81, 0.87, 3.8e-6),
    products_float8=ProductRates(0.50, 0.82, 6.5e-6),
    experts=ProductRates(0.32, 0.97, 3.4e-5),
    experts_float8=ProductRates(0.22, 1.00, 4.8e-5),
    attention=AttentionRates(0.58, 0.90, 1.2e-5, 3.6e-8),
)
# L40S (vLLM 0.24): 12 % products (20 % on TensorRT-LLM's), 20 % in 8 bits (22 %), 17 % experts
# (21 %), 8-bit experts 16 % with blocks and 22 % (TensorRT-LLM's), 27 % decode, 12 % prefill.
_ADA = KernelRates(
    products=ProductRates(0.59, 0.78, 0.0),
    products_float8=ProductRates(0.41, 0.70, 1.7e-6),
    experts=ProductRates(0.31, 0.87, 0.0),
    experts_float8=ProductRates(0.22, 0.87, 8.8e-6),
    attention=AttentionRates(0.48, 0.84, 9.7e-6, 0.0),
)
# A GeForce boosts far above the clocks of its data sheet. Fitted to LLMServingSim's profile of
# vLLM 0.19's layers on an RTX 4090: 4 % products, 8 % decode, 11 % prefill. Nobody measured its
# experts and its 8-bit products: ASSUMED to stand to its 16-bit products as on the L40S.
_ADA_GEFORCE = KernelRates(
    products=ProductRates(1.00, 0.95, 5.6e-6),
    products_float8=ProductRates(0.69, 0.85, 5.6e-6),
    experts=ProductRates(0.52, 0.95, 0.0),
    experts_float8=ProductRates(0.37, 0.95, 8.8e-6),
    attention=AttentionRates(0.62, 0.92, 1.3e-5, 1.4e-7),
)
# B200 (vLLM 0.24): 9 % products (10 % on TensorRT-LLM's), 25 % in 8 bits (21 % on TensorRT-LLM's
# with scaled blocks), 21 % experts, 24 % in 8 bits (FlashInfer's; vLLM's with scaled blocks take up
# to 1.5 times as long), 11 % decode, 22 % prefill: 0.14 of the peak at 512 tokens, 0.56 at 16,384.
_BLACKWELL = KernelRates(
    products=ProductRates(0.71, 0.79, 4.0e-6),
    products_float8=ProductRates(0.37, 0.69, 7.1e-6),
    experts=ProductRates(0.30, 0.93, 1.8e-5),
    experts_float8=ProductRates(0.24, 0.93, 2.2e-5),
    attention=AttentionRates(0.42, 0.89, 9.0e-6, 1.0e-8),
)
# RTX PRO 6000, server edition (vLLM 0.24): 11 % products (16 % on TensorRT-LLM's), 18 % in 8 bits
# (25 %), 17 % experts (21 %), 8-bit experts 18 % and TensorRT-LLM's 22 % together, 19 % decode,
# 15 % prefill. Its workstation edition's profile by LLMServingSim fits to 0.68, 0.86 and 6.0 us.
_BLACKWELL_RTX = KernelRates(
    products=ProductRates(0.75, 0.80, 1.6e-6),
    products_float8=ProductRates(0.61, 0.82, 5.2e-6),
    experts=ProductRates(0.25, 0.92, 3.1e-5),
    experts_float8=ProductRates(0.22, 0.91, 3.2e-5),
    attention=AttentionRates(0.51, 0.85, 1.2e-5, 3.0e-9),
)

ARCHITECTURES: Mapping[str, KernelRates] = {
    "ampere": _AMPERE,
    "hopper": _HOPPER,
    "ada": _ADA,
    "ada-geforce": _ADA_GEFORCE,
    "blackwell": _BLACKWELL,
    "blackwell-rtx": _BLACKWELL_RTX,
}
# Of a GPU whose architecture nobody measured.
ASSUMED = _HOPPER
