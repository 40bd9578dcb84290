"""Architecture of a decoder: parameters, matrix products, bytes, KV bytes.

A model is a list of layers (`sim.model.layers`), kept as runs of equal ones, so that nothing here
costs by the layer. Counts are exact (embeddings, biases, norms, routers), so that they agree with
published totals; nothing is read from disk here.

Tensor parallelism follows Megatron-LM (Shoeybi et al., 2019) as serving engines do it: query
heads, MLP width and experts' width are split, key/value heads are split or (beyond their number)
replicated, the vocabulary is split, norms, routers and low-rank latents are replicated.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from sim.model.kv_group import KvGroup
from sim.model.layers import Layer, Mixer
from sim.model.layers import MlaSpec as MlaSpec
from sim.model.layers import MoeSpec as MoeSpec
from sim.model.matrix import LinearOperation as LinearOperation
from sim.model.matrix import Matrix
from sim.model.weight_format import DTYPE_BYTES as DTYPE_BYTES
from sim.model.weight_format import FLOAT8, WEIGHT_DTYPES, Float8Scales, WeightFormat

# How tokens are chosen: the likeliest; any, by probability; of the top-k or top-p, by rejection or
# of sorted logits (`sim.latency.sampling`).
Sampling = Literal["greedy", "random", "truncated", "sorted"]
# What engines accept as kv_cache_dtype; "auto" is the checkpoint's, else the activations' type.
KV_CACHE_DTYPE_BYTES: Mapping[str, int] = {
    "bfloat16": 2,
    "float16": 2,
    "fp8": 1,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder. ``dtype`` is that of activations and norms; matrices say theirs themselves.

    ``runs`` are equal layers in a row with their number. ``position_rows`` are learned positions
    (0 with rotary embeddings), ``other_parameters`` those outside layers and tables, among them
    ``final_norm``. ``extra_table`` counts further embeddings that are only looked up.
    ``vision_parameters`` are an image tower's, whose outputs count as prompt tokens.
    ``quantisation`` says in words how the checkpoint's weights lie, ``kv_cache_dtype`` what type
    it asks its KV cache to have, ``notes`` what the configuration leaves unsaid or is approximated.
    ``sampling`` is how its tokens are chosen where a request does not say.
    """

    name: str
    model_type: str
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    dtype: str
    tie_word_embeddings: bool
    runs: tuple[tuple[Layer, int], ...]
    head_weights: WeightFormat
    table_weights: WeightFormat
    position_rows: int = 0
    final_norm: int = 0
    head_bias: bool = False
    extra_table: int = 0
    other_parameters: int = 0
    vision_parameters: int = 0
    quantisation: str = ""
    quantised_on_disk: bool = False
    kv_cache_dtype: str | None = None
    experts_over: int = 1  # groups of tensor-parallel ranks that experts are dealt out to
    sampling: Sampling = "random"
    notes: tuple[str, ...] = ()

    # -- layers ---------------------------------------------------------------------------------

    @property
    def kinds(self) -> dict[Layer, int]:
        """How many layers there are of each kind, in the order in which they first come."""
        counts: dict[Layer, int] = {}
        for layer, count in self.runs:
            counts[layer] = counts.get(layer, 0) + count
        return counts

    @property
    def num_layers(self) -> int:
        return sum(count for _, count in self.runs)

    def with_layers(self, runs: Iterable[tuple[Layer, int]]) -> "ModelSpec":
        """The same model of other layers."""
        return replace(self, runs=tuple(runs))

    def first_layers(self, count: int) -> "ModelSpec":
        """The model of the first ``count`` layers."""
        return self.with_layers(self._cut(0, count))

    def _cut(self, start: int, end: int) -> list[tuple[Layer, int]]:
        """Runs of the layers from ``start`` to before ``end``."""
        cut, at = [], 0
        for layer, count in self.runs:
            here = min(at + count, end) - max(at, start)
            if here > 0:
                cut.append((layer, here))
            at += count
        return cut

    def stages(self, count: int) -> "list[ModelSpec]":
        """The layers dealt out to ``count`` pipeline stages, in order, as evenly as possible.

        Earlier stages take one more where the layers do not divide. Each share is a model of its
        layers; the embedding belongs to the first, the output head to the last.
        """
        if count < 1:
            raise ValueError(f"pipeline_parallel must be at least 1, not {count}")
        if count > self.num_layers:
            raise ValueError(
                f"{self.name}: pipeline_parallel {count} is more stages than its "
                f"{self.num_layers} layers"
            )
        shares: list[ModelSpec] = []
        start = 0
        for number in range(count):
            end = start + self.num_layers // count + (number < self.num_layers % count)
            shares.append(self.with_layers(self._cut(start, end)))
            start = end
        return shares

    # -- what layers of one kind would be said to have --------------------------------------------

    @property
    def _attention(self) -> Mixer | None:
        """The first layer's that attends; None in a model that only has states."""
        mixers = (mixer for layer, _ in self.runs for mixer in layer.mixers)
        return next((mixer for mixer in mixers if mixer.attends), None)

    @property
    def num_attention_heads(self) -> int:
        return self._attention.num_heads if self._attention else 0

    @property
    def num_kv_heads(self) -> int:
        return self._attention.num_kv_heads if self._attention else 0

    @property
    def head_dim(self) -> int:
        return self._attention.head_dim if self._attention else 0

    @property
    def mla(self) -> MlaSpec | None:
        """Latent attention, in a model that has it."""
        return self._attention.latent if self._attention else None

    @property
    def intermediate_size(self) -> int:
        """Width of the dense MLPs (the widest); 0 where all are mixtures."""
        return max((layer.dense_width for layer, _ in self.runs), default=0)

    @property
    def gated_mlp(self) -> bool:
        return any(layer.gated for layer, _ in self.runs if layer.mlp or layer.experts)

    @property
    def moe(self) -> MoeSpec | None:
        """The mixture of experts, in a model that has one."""
        mixed = [(layer.moe, count) for layer, count in self.runs if layer.moe is not None]
        if not mixed:
            return None
        return replace(mixed[-1][0], num_layers=sum(count for _, count in mixed))

    @property
    def num_dense_layers(self) -> int:
        """Layers whose MLP is not a mixture of experts."""
        return sum(count for layer, count in self.runs if layer.has_dense_mlp)

    @property
    def mixers(self) -> list[Mixer]:
        """Every kind of attention or state there is, once."""
        return list(dict.fromkeys(mixer for mixer, _ in self._mixers()))

    @property
    def num_mixers(self) -> int:
        """Attentions and states of all layers: one a layer in most models."""
        return sum(count for _, count in self._mixers())

    @property
    def num_reductions(self) -> int:
        """All-reduces of a forward pass in tensor parallelism, the embedding's apart."""
        return sum(layer.reductions * count for layer, count in self.runs)

    def _mixers(self) -> Iterable[tuple[Mixer, int]]:
        for layer, count in self.kinds.items():
            for mixer in layer.mixers:
                yield mixer, count

    # -- weights --------------------------------------------------------------------------------

    @property
    def weight_dtype(self) -> str:
        """What most of the weights are in."""
        held: dict[str, int] = {}
        for op in [*self.linear_operations(), *self.expert_operations()]:
            held[op.weight_dtype] = held.get(op.weight_dtype, 0) + op.num_parameters
        return max(held, key=lambda dtype: held[dtype]) if held else self.dtype

    @property
    def float8_scales(self) -> Float8Scales:
        """What has a scale in the matrices that are float8; a tensor where none are."""
        operations = [*self.expert_operations(), *self.linear_operations()]
        found = (op.weights for op in operations if op.weight_dtype == "float8")
        return next((weights.float8_scales for weights in found), "tensor")

    def quantised(self, weight_dtype: str) -> "ModelSpec":
        """The same model served with its matrices in ``weight_dtype`` (a key of WEIGHT_DTYPES).

        Those that are so already stay as they lie. Embeddings, output head, norms and routers keep
        the activations' 16 bits, as engines do.
        """
        if weight_dtype not in WEIGHT_DTYPES:
            allowed = ", ".join(WEIGHT_DTYPES)
            raise ValueError(f"unknown weight_dtype {weight_dtype!r}; allowed: {allowed}")
        weights = WEIGHT_DTYPES[weight_dtype]
        runs = [(layer.quantised(weights), count) for layer, count in self.runs]
        changed = self.with_layers(runs)
        words = "" if weights.is_plain else weights.words
        return replace(changed, quantisation=words, quantised_on_disk=False)

    def with_float8_scales(self, scales: Float8Scales) -> "ModelSpec":
        """The same model, its float8 matrices with a scale for each of these."""
        runs = [(layer.rescaled(FLOAT8[scales]), count) for layer, count in self.runs]
        return self.with_layers(runs)

    def check_tensor_parallel(self, tensor_parallel: int) -> None:
        """Raise ``ValueError`` where this model cannot be split over so many GPUs."""
        if tensor_parallel < 1:
            raise ValueError(f"tensor_parallel must be at least 1, not {tensor_parallel}")
        if tensor_parallel % self.experts_over:
            raise ValueError(
                f"experts_over {self.experts_over} does not divide tensor_parallel "
                f"{tensor_parallel}"
            )
        within = tensor_parallel // self.experts_over
        for layer in self.kinds:
            split = [(matrix, tensor_parallel) for matrix in layer.matrices()]
            split += [(matrix, within) for matrix in layer.experts]
            for matrix, tp in split:
                for share in matrix.shares():
                    if not share.splits(tp):
                        raise ValueError(f"{self.name}: {share.refusal(tp)}")
                if self.quantised_on_disk and tp > 1:
                    refusal = matrix.block_refusal(tp)
                    if refusal is not None:
                        raise ValueError(f"{self.name}: {refusal}")

    def with_experts_over(self, groups: int) -> "ModelSpec":
        """The model with its experts dealt out to so many groups of tensor-parallel ranks.

        Within a group each expert is split as matrices are: with as many groups as ranks experts
        are whole. Raises ``ValueError`` where there are no experts or they cannot be dealt out so.
        """
        if groups > 1 and self.moe is None:
            raise ValueError(f"{self.name}: experts_over {groups}, but it has no experts")
        if self.moe is not None and self.moe.num_experts % groups:
            raise ValueError(
                f"{self.name}: experts_over {groups} does not divide its "
                f"{self.moe.num_experts} experts"
            )
        return replace(self, experts_over=groups)

    @property
    def num_parameters(self) -> int:
        """All of the decoder, tied embeddings once, multi-token-prediction modules left out."""
        operations = [*self.linear_operations(), *self.expert_operations()]
        tables = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        tables += self.position_rows * self.hidden_size + self.extra_table
        tables += self.vocab_size * self.head_bias
        return sum(op.num_parameters for op in operations) + tables + self._in_no_matrix()

    @property
    def num_activated_parameters(self) -> int:
        """Parameters one token uses: all but the routed experts it is not sent to."""
        if self.moe is None:
            return self.num_parameters
        routed = sum(op.num_parameters for op in self.expert_operations())
        idle = self.moe.num_experts - self.moe.experts_per_token
        return self.num_parameters - routed // self.moe.num_experts * idle

    def weight_bytes(
        self,
        tensor_parallel: int = 1,
        *,
        expert_parallel: int = 1,
        first_stage: bool = True,
        last_stage: bool = True,
    ) -> int:
        """Bytes of weights on each GPU, replicated parts whole on every one.

        A pipeline's first stage holds the embedding (and the image tower), its last the output
        head and final norm.
        """
        operations = [
            *self.linear_operations(tensor_parallel),
            *self.expert_operations(tensor_parallel, expert_parallel),
        ]
        each = DTYPE_BYTES[self.dtype]
        rows = -(-self.vocab_size // tensor_parallel)
        total = sum(op.weight_bytes for op in operations)
        total += self._in_no_matrix(last_stage=last_stage) * each
        if first_stage:
            total += self.table_weights.bytes_of(self.hidden_size, rows)
            total += self.position_rows * self.hidden_size * each
            total += -(-self.extra_table // tensor_parallel) * each
            total += self.vision_parameters * each
        if last_stage and not (self.tie_word_embeddings and first_stage):
            total += self.head_weights.bytes_of(self.hidden_size, rows)
        return total + rows * self.head_bias * each * last_stage

    def _in_no_matrix(self, *, last_stage: bool = True) -> int:
        """Norms, convolutions, sinks: what every GPU holds whole."""
        within = sum(layer.parameters * count for layer, count in self.kinds.items())
        within += sum(mixer.parameters * count for mixer, count in self._mixers())
        return within + (self.final_norm + self.other_parameters) * last_stage

    # -- matrix products ------------------------------------------------------------------------

    def linear_operations(self, tensor_parallel: int = 1) -> list[LinearOperation]:
        """The matrix products every token passes on one GPU, logits and routed experts apart."""
        kinds = self.kinds.items()
        attention = _merged(
            ((one, count) for layer, count in kinds for m in layer.mixers for one in m.matrices),
            tensor_parallel,
        )
        mlp = _merged(
            ((one, count) for layer, count in kinds for one in layer.mlp), tensor_parallel
        )
        return [*attention, *mlp]

    def expert_operations(
        self, tensor_parallel: int = 1, expert_parallel: int = 1
    ) -> list[LinearOperation]:
        """Routed experts' products on one GPU, which holds experts / ``expert_parallel`` of each
        layer; ``count`` is layers x experts held, and tokens see only some of them.

        Tensor-parallel ranks share out experts too, where they are ``experts_over`` groups."""
        groups = min(self.experts_over, tensor_parallel)
        held = (
            (one, count * (layer.moe.num_experts // (expert_parallel * groups)))
            for layer, count in self.kinds.items()
            if layer.moe is not None
            for one in layer.experts
        )
        return _merged(held, tensor_parallel // groups)

    def logits_operation(self, tensor_parallel: int = 1) -> LinearOperation:
        """The vocabulary projection, applied only to rows that emit a token."""
        columns = -(-self.vocab_size // tensor_parallel)
        return LinearOperation(
            "lm_head", "lm_head", self.hidden_size, columns, 1, self.head_weights
        )

    # -- attention and its cache ----------------------------------------------------------------

    @property
    def norms_heads(self) -> bool:
        """Whether queries and keys are normalised, each head or all together."""
        mixers = (mixer for layer, _ in self.runs for mixer in layer.mixers)
        return any(m.latent is None and m.parameters >= 2 * m.head_dim > 0 for m in mixers)

    def kv_bytes_each(self, kv_cache_dtype: str = "auto") -> int:
        """Bytes of one number in the KV cache.

        Raises ``ValueError`` for a ``kv_cache_dtype`` engines do not have.
        """
        if kv_cache_dtype == "auto":
            kv_cache_dtype = self.kv_cache_dtype or self.dtype
        if kv_cache_dtype not in KV_CACHE_DTYPE_BYTES:
            allowed = ", ".join(["auto", *KV_CACHE_DTYPE_BYTES])
            raise ValueError(f"unknown kv_cache_dtype {kv_cache_dtype!r}; allowed: {allowed}")
        return KV_CACHE_DTYPE_BYTES[kv_cache_dtype]

    def kv_groups(self, kv_cache_dtype: str = "auto", tensor_parallel: int = 1) -> list[KvGroup]:
        """Layers that attend, by what they keep of a token and how far they look back."""
        each, tp = self.kv_bytes_each(kv_cache_dtype), tensor_parallel
        found: dict[str, list[tuple[Mixer, int]]] = {}
        for mixer, count in self._mixers():
            if mixer.attends:
                found.setdefault(mixer.label, []).append((mixer, count))
        return [
            KvGroup(
                label=label,
                kind=members[0][0].kind,
                num_layers=sum(count for _, count in members),
                window=members[0][0].window,
                selected=members[0][0].selected,
                bytes_per_token=sum(m.cached_bytes(each, tp) * n for m, n in members),
                read_bytes_per_token=sum(m.read_bytes(each, tp) * n for m, n in members),
                index_bytes_per_token=sum(m.cache_bytes // m.compression * n for m, n in members),
                pair_flops=sum(m.pair_flops * m.heads_on_gpu(tp) * n for m, n in members),
                context_flops=sum(m.context_flops * m.heads_on_gpu(tp) * n for m, n in members),
                index_flops=sum(m.index_flops * n for m, n in members),
                query_numbers=sum(
                    m.heads_on_gpu(tp) * (m.head_dim + m.v_head_dim) * n for m, n in members
                ),
            )
            for label, members in found.items()
        ]

    def kv_bytes_per_token(self, kv_cache_dtype: str = "auto", tensor_parallel: int = 1) -> int:
        """Bytes one more token adds to each GPU's KV cache, over all layers that keep every token.

        Windows and states, which do not grow, are in `kv_bytes`.
        """
        groups = self.kv_groups(kv_cache_dtype, tensor_parallel)
        return sum(group.bytes_per_token for group in groups if group.window is None)

    def kv_bytes(self, tokens: int, kv_cache_dtype: str = "auto", tensor_parallel: int = 1) -> int:
        """Bytes that a sequence of so many tokens holds on each GPU, windows and states in it."""
        groups = self.kv_groups(kv_cache_dtype, tensor_parallel)
        held = sum(group.bytes_at(tokens) for group in groups)
        return held + self.state_bytes(tensor_parallel)

    def state_bytes(self, tensor_parallel: int = 1) -> int:
        """Bytes of a sequence's states on each GPU, whatever its length."""
        return sum(mixer.state_bytes // tensor_parallel * n for mixer, n in self._mixers())

    def state_flops(self, tensor_parallel: int = 1) -> int:
        """FLOPs of a token in the states of all layers, matrices apart, on one GPU."""
        return sum(mixer.token_flops // tensor_parallel * n for mixer, n in self._mixers())

    def prefill_attention_flops(self, tensor_parallel: int = 1) -> int:
        """FLOPs of QK and PV per (query, key) pair, layers that look at every token, one GPU."""
        groups = self.kv_groups("auto", tensor_parallel)
        whole = sum(group.pair_flops for group in groups if group.limit is None)
        return whole + sum(group.index_flops for group in groups)

    def decode_attention_flops(self, tensor_parallel: int = 1) -> int:
        """The same per (sequence, context token); latent attention in its absorbed form."""
        groups = self.kv_groups("auto", tensor_parallel)
        whole = sum(group.context_flops for group in groups if group.limit is None)
        return whole + sum(group.index_flops for group in groups)


def _merged(matrices: Iterable[tuple[Matrix, int]], tensor_parallel: int) -> list[LinearOperation]:
    """Equal products as one operation, counted, in the order in which they first come."""
    counts: dict[LinearOperation, int] = {}
    for matrix, count in matrices:
        one = matrix.operation(tensor_parallel, 1)
        counts[one] = counts.get(one, 0) + count
    return [replace(one, count=count) for one, count in counts.items()]
