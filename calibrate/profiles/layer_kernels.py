"""The kernels by which a layer's tokens look at one another, for every kind of layer.

    full, sliding    attention kernels; windows that were not measured from attention to every token
    latent           DeepSeek's attention modules, less their products
    sparse           the same of DeepSeek-V3.2 and GLM-5, indexer included
    linear           Gated DeltaNet: a short convolution and the delta rule, for prompts and decodes

A layer that looks back on so many tokens at most has that number as its ``reach``; a state, which
only its own token updates, one of 1. All other kinds raise NotMeasured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from calibrate.profiles import attention_kernels, delta_rule, latent_attention, sparse_attention
from calibrate.profiles.attention_kernels import Grid
from calibrate.profiles.kernel_tables import KernelTables, NotMeasured
from sim.model.layers import Mixer
from sim.model.spec import ModelSpec

STATE = 1  # the reach of a state


@dataclass(frozen=True, slots=True)
class LayerKernels:
    """A kind of attention or state on one of `tensor_parallel` GPUs, and its measured times.

    `kv_dtype` is the package's name of the cache's numbers. Times are µs of one layer, with what
    stands for what; raises NotMeasured.
    """

    mixer: Mixer
    tensor_parallel: int
    kv_dtype: str

    @property
    def reach(self) -> int | None:
        """Most tokens that one of them looks back on; None: all of them."""
        mixer = self.mixer
        if not mixer.attends:
            return STATE
        return mixer.window if mixer.selected is None else mixer.selected

    @property
    def family(self) -> str:
        """The package's folder of these kernels."""
        if self.mixer.kind == "sparse":
            return "sparse_attention"
        if self.mixer.latent is not None:
            return "mla"
        return "attention" if self.mixer.attends else "linear_attention"

    def prefill_us(self, tables: KernelTables) -> tuple[Grid, str | None]:
        """By (new, cached) tokens of a lone prompt."""
        mixer = self._known(tables)
        if mixer.kind == "linear":
            return delta_rule.prefill_us(tables, mixer, self.tensor_parallel)
        if mixer.kind == "sparse":
            return sparse_attention.prefill_us(tables, mixer, self.tensor_parallel, self.kv_dtype)
        if mixer.latent is not None:
            grid = latent_attention.prefill_us(
                tables, mixer.latent, heads=self._heads, kv_dtype=self.kv_dtype
            )
            return grid, latent_attention.HOW
        return attention_kernels.prefill_us(
            tables, heads=self._heads, kv_heads=self._kv_heads, head_dim=mixer.head_dim,
            kv_dtype=self.kv_dtype, window=mixer.window or 0,
        )  # fmt: skip

    def decode_us(self, tables: KernelTables) -> tuple[Grid, str | None]:
        """By (sequences, context tokens of each)."""
        mixer = self._known(tables)
        if mixer.kind == "linear":
            return delta_rule.decode_us(tables, mixer, self.tensor_parallel)
        if mixer.kind == "sparse":
            return sparse_attention.decode_us(tables, mixer, self.tensor_parallel, self.kv_dtype)
        if mixer.latent is not None:
            grid = latent_attention.decode_us(
                tables, mixer.latent, heads=self._heads, kv_dtype=self.kv_dtype
            )
            return grid, latent_attention.HOW
        return attention_kernels.decode_us(
            tables, heads=self._heads, kv_heads=self._kv_heads, head_dim=mixer.head_dim,
            kv_dtype=self.kv_dtype, window=mixer.window or 0,
        )  # fmt: skip

    def _known(self, tables: KernelTables) -> Mixer:
        mixer = self.mixer
        plain = mixer.kind in ("full", "sliding", "shared", "latent")
        sparse = mixer.kind == "sparse" and mixer.latent is not None
        linear = mixer.kind == "linear"
        if mixer.compression > 1 or not (plain or sparse or linear):
            raise NotMeasured(
                f"{tables.system.name}, {tables.backend}: no kernels of {mixer.label}"
            )
        return mixer

    @property
    def _heads(self) -> int:
        return self.mixer.heads_on_gpu(self.tensor_parallel)

    @property
    def _kv_heads(self) -> int:
        return max(self.mixer.num_kv_heads // self.tensor_parallel, 1)


def kernels_of(
    model: ModelSpec, tensor_parallel: int, kv_dtype: str
) -> list[tuple[LayerKernels, ModelSpec, int]]:
    """Each kind of kernels once, with the model of the layers that have them and their number.

    In that model a layer has nothing else that looks at other tokens. Kinds that differ in their
    matrices alone are one.
    """
    found: dict[Mixer, int] = {}
    for mixer, count in _looking(model):
        bare = replace(mixer, matrices=mixer.matrices if mixer.kind in NEED_MATRICES else ())
        found[bare] = found.get(bare, 0) + count
    layer = next(iter(model.kinds))
    return [
        (
            LayerKernels(mixer, tensor_parallel, kv_dtype),
            model.with_layers([(replace(layer, mixers=(mixer,)), count)]),
            count,
        )
        for mixer, count in found.items()
    ]


NEED_MATRICES = ("linear", "sparse")  # their shapes say what the kernels are of


def _looking(model: ModelSpec) -> Iterable[tuple[Mixer, int]]:
    for layer, count in model.kinds.items():
        for mixer in layer.mixers:
            if mixer.attends or mixer.state_bytes:
                yield mixer, count
