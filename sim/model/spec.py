"""Architecture of a decoder-only transformer: parameters, matrix products, bytes, KV bytes.

Everything is counted from a Hugging Face ``config.json`` mapping; nothing is read from disk here.
Counts are exact (embeddings, biases, norms, routers), so that they agree with published totals.

Tensor parallelism follows Megatron-LM (Shoeybi et al., 2019) as serving engines do it: query
heads, MLP width and experts' width are split, key/value heads are split or (beyond their number)
replicated, the vocabulary is split, norms, routers and low-rank latents are replicated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sim.model.quantization import Float8Scales

DTYPE_BYTES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "float8": 1}

# What a scenario may ask the quantisable matrices to be served in, under engines' short names.
WEIGHT_DTYPES: Mapping[str, str] = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp8": "float8",
    "int4": "int4",
}

# What engines accept as kv_cache_dtype; "auto" is the model's own activation dtype.
KV_CACHE_DTYPE_BYTES: Mapping[str, int] = {
    "bfloat16": 2,
    "float16": 2,
    "fp8": 1,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
}

# Block-quantised float8 checkpoints keep one float32 scale per 128 x 128 weights (DeepSeek-V3,
# section 3.3.2).
FLOAT8_SCALE_BLOCK = 128
FLOAT8_SCALE_BYTES = 4
# Weight-only int4 checkpoints keep one 16-bit scale per 128 weights of a column (GPTQ, AWQ and
# Marlin, symmetric, group size 128): 4.125 bits a weight.
INT4_GROUP = 128
INT4_SCALE_BYTES = 2


@dataclass(frozen=True, slots=True)
class LinearOperation:
    """One kind of matrix product on one GPU: [tokens, in_features] x [in_features, out_features].

    ``count`` is how many copies one forward pass holds (layers, or layers x experts), ``kind`` is
    qkv, o, gate_up, down, router, shared_gate_up, shared_down, experts_gate_up, experts_down,
    latent or lm_head, ``bias_features`` the bias entries of one copy.
    """

    name: str
    kind: str
    in_features: int
    out_features: int
    count: int
    weight_dtype: str
    bias_features: int = 0

    @property
    def num_parameters(self) -> int:
        return self.count * (self.in_features * self.out_features + self.bias_features)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all copies; biases take two bytes an entry, float8 and int4 carry scales."""
        if self.weight_dtype == "int4":
            packed = -(-self.in_features * self.out_features // 2)
            groups = -(-self.in_features // INT4_GROUP) * self.out_features
            weights = packed + groups * INT4_SCALE_BYTES
        else:
            weights = self.in_features * self.out_features * DTYPE_BYTES[self.weight_dtype]
        if self.weight_dtype == "float8":
            blocks = -(-self.in_features // FLOAT8_SCALE_BLOCK)
            blocks *= -(-self.out_features // FLOAT8_SCALE_BLOCK)
            weights += blocks * FLOAT8_SCALE_BYTES
        return self.count * (weights + 2 * self.bias_features)

    def flops(self, tokens: int) -> int:
        """Multiply-adds of all copies, two operations each, when each sees ``tokens`` rows."""
        return 2 * tokens * self.in_features * self.out_features * self.count

    def bytes_moved(self, tokens: int) -> int:
        """Weights once, 16-bit inputs and outputs once, all copies, ``tokens`` rows each."""
        return self.weight_bytes + 2 * tokens * (self.in_features + self.out_features) * self.count


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """Mixture of experts: ``num_layers`` layers of ``num_experts`` gated experts of this width.

    ``shared_intermediate_size`` is the width of the always-active shared expert (0: none);
    ``router_bias`` is a per-expert correction bias (DeepSeek-V3, section 2.1.2).
    """

    num_layers: int
    num_experts: int
    experts_per_token: int
    intermediate_size: int
    shared_intermediate_size: int = 0
    router_bias: bool = False


@dataclass(frozen=True, slots=True)
class MlaSpec:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): low-rank queries and a KV latent."""

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Numbers cached per token and layer, whatever the number of heads."""
        return self.kv_lora_rank + self.qk_rope_head_dim


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder-only transformer. ``dtype`` is that of activations, embeddings and norms,
    ``weight_dtype`` that of the quantisable matrices, ``float8_scales`` what has a scale where they
    are float8 (a tensor, as vLLM quantises by itself, unless the checkpoint says otherwise);
    ``position_rows`` are learned positions (0 with rotary embeddings)."""

    name: str
    model_type: str
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    dtype: str
    weight_dtype: str
    tie_word_embeddings: bool
    gated_mlp: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    layer_norm: bool = False
    position_rows: int = 0
    moe: MoeSpec | None = None
    mla: MlaSpec | None = None
    float8_scales: Float8Scales = "tensor"

    def quantised(self, weight_dtype: str) -> "ModelSpec":
        """The same model served with its matrices in ``weight_dtype`` (a key of WEIGHT_DTYPES).

        Embeddings, output head, norms and routers keep the activations' 16 bits, as engines do.
        """
        if weight_dtype not in WEIGHT_DTYPES:
            allowed = ", ".join(WEIGHT_DTYPES)
            raise ValueError(f"unknown weight_dtype {weight_dtype!r}; allowed: {allowed}")
        return replace(self, weight_dtype=WEIGHT_DTYPES[weight_dtype])

    def stages(self, count: int) -> "list[ModelSpec]":
        """The layers dealt out to ``count`` pipeline stages, in order, as evenly as possible.

        Earlier stages take one more where the layers do not divide. Layers that are dense in a
        mixture of experts come first (DeepSeek-V3, section 4.2). Each share is a model of its
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
        dense_left = self.num_dense_layers
        for number in range(count):
            layers = self.num_layers // count + (number < self.num_layers % count)
            dense = min(layers, dense_left)
            dense_left -= dense
            moe = self.moe
            if moe is not None:
                moe = replace(moe, num_layers=layers - dense) if layers > dense else None
            shares.append(replace(self, num_layers=layers, moe=moe))
        return shares

    def check_tensor_parallel(self, tensor_parallel: int) -> None:
        """Raise ``ValueError`` where this model cannot be split over so many GPUs."""
        tp = tensor_parallel
        if tp < 1:
            raise ValueError(f"tensor_parallel must be at least 1, not {tp}")
        if self.num_attention_heads % tp:
            raise ValueError(
                f"{self.name}: tensor_parallel {tp} does not divide its "
                f"{self.num_attention_heads} attention heads"
            )
        if self.mla is None and self.num_kv_heads % tp and tp % self.num_kv_heads:
            raise ValueError(
                f"{self.name}: tensor_parallel {tp} neither divides nor is a multiple of its "
                f"{self.num_kv_heads} key/value heads"
            )
        widths = {"intermediate_size": self.intermediate_size}
        if self.moe is not None:
            widths["expert intermediate size"] = self.moe.intermediate_size
            if self.moe.shared_intermediate_size:
                widths["shared expert's width"] = self.moe.shared_intermediate_size
            if self.moe.num_layers == self.num_layers:
                del widths["intermediate_size"]
        for what, width in widths.items():
            if width % tp:
                raise ValueError(
                    f"{self.name}: tensor_parallel {tp} does not divide its {what} of {width}"
                )

    @property
    def num_dense_layers(self) -> int:
        """Layers whose MLP is not a mixture of experts."""
        return self.num_layers - (self.moe.num_layers if self.moe else 0)

    @property
    def num_parameters(self) -> int:
        """All parameters, tied embeddings once, multi-token-prediction modules left out."""
        operations = [*self.linear_operations(), *self.expert_operations()]
        return sum(op.num_parameters for op in operations) + self._other_parameters(1)

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

        A pipeline's first stage holds the embedding, its last the output head and final norm.
        """
        operations = [
            *self.linear_operations(tensor_parallel),
            *self.expert_operations(tensor_parallel, expert_parallel),
        ]
        other = self._other_parameters(tensor_parallel, first_stage, last_stage)
        other *= DTYPE_BYTES[self.dtype]
        return sum(op.weight_bytes for op in operations) + other

    def kv_bytes_per_token(self, kv_cache_dtype: str = "auto", tensor_parallel: int = 1) -> int:
        """Bytes one token occupies in each GPU's KV cache, over all layers.

        Raises ``ValueError`` for a ``kv_cache_dtype`` engines do not have.
        """
        if kv_cache_dtype == "auto":
            bytes_each = DTYPE_BYTES[self.dtype]
        elif kv_cache_dtype in KV_CACHE_DTYPE_BYTES:
            bytes_each = KV_CACHE_DTYPE_BYTES[kv_cache_dtype]
        else:
            allowed = ", ".join(["auto", *KV_CACHE_DTYPE_BYTES])
            raise ValueError(f"unknown kv_cache_dtype {kv_cache_dtype!r}; allowed: {allowed}")
        if self.mla is not None:  # the latent is shared by all heads: every GPU holds it whole
            return self.num_layers * self.mla.latent_dim * bytes_each
        heads = self._kv_heads_per_gpu(tensor_parallel)
        return self.num_layers * 2 * heads * self.head_dim * bytes_each

    def prefill_attention_flops(self, tensor_parallel: int = 1) -> int:
        """FLOPs of QK and PV per (query, key) pair, all layers, one GPU's heads."""
        heads = self.num_attention_heads // tensor_parallel
        if self.mla is not None:
            return self.num_layers * 2 * heads * (self.mla.qk_head_dim + self.mla.v_head_dim)
        return self.num_layers * 4 * heads * self.head_dim

    def decode_attention_flops(self, tensor_parallel: int = 1) -> int:
        """The same per (sequence, context token); latent attention in its absorbed form."""
        if self.mla is None:
            return self.prefill_attention_flops(tensor_parallel)
        heads = self.num_attention_heads // tensor_parallel
        return self.num_layers * 2 * heads * (self.mla.latent_dim + self.mla.kv_lora_rank)

    def linear_operations(self, tensor_parallel: int = 1) -> list[LinearOperation]:
        """The matrix products every token passes on one GPU, logits and routed experts apart."""
        tp = tensor_parallel
        return [*self._attention_operations(tp), *self._mlp_operations(tp)]

    def expert_operations(
        self, tensor_parallel: int = 1, expert_parallel: int = 1
    ) -> list[LinearOperation]:
        """Routed experts' products on one GPU, which holds experts / ``expert_parallel`` of each
        layer; ``count`` is layers x experts held, and tokens see only some of them."""
        if self.moe is None:
            return []
        hidden, width = self.hidden_size, self.moe.intermediate_size // tensor_parallel
        count = self.moe.num_layers * (self.moe.num_experts // expert_parallel)
        dtype = self.weight_dtype
        return [
            LinearOperation("experts_gate_up", "experts_gate_up", hidden, 2 * width, count, dtype),
            LinearOperation("experts_down", "experts_down", width, hidden, count, dtype),
        ]

    def logits_operation(self, tensor_parallel: int = 1) -> LinearOperation:
        """The vocabulary projection, applied only to rows that emit a token."""
        columns = -(-self.vocab_size // tensor_parallel)
        return LinearOperation("lm_head", "lm_head", self.hidden_size, columns, 1, self.dtype)

    def _kv_heads_per_gpu(self, tensor_parallel: int) -> int:
        return max(1, self.num_kv_heads // tensor_parallel)

    def _attention_operations(self, tp: int) -> list[LinearOperation]:
        hidden, layers, dtype = self.hidden_size, self.num_layers, self.weight_dtype
        heads = self.num_attention_heads // tp
        if self.mla is None:
            qkv = (heads + 2 * self._kv_heads_per_gpu(tp)) * self.head_dim
            out = heads * self.head_dim
            qkv_bias, o_bias = qkv * self.qkv_bias, hidden * self.o_bias
            return [
                LinearOperation("qkv_proj", "qkv", hidden, qkv, layers, dtype, qkv_bias),
                LinearOperation("o_proj", "o", out, hidden, layers, dtype, o_bias),
            ]
        mla = self.mla
        query, kv = heads * mla.qk_head_dim, heads * (mla.qk_nope_head_dim + mla.v_head_dim)
        out, rank = heads * mla.v_head_dim, mla.kv_lora_rank
        if mla.q_lora_rank is None:
            queries = [LinearOperation("q_proj", "qkv", hidden, query, layers, dtype)]
        else:
            low = mla.q_lora_rank
            queries = [
                LinearOperation("q_a_proj", "latent", hidden, low, layers, dtype),
                LinearOperation("q_b_proj", "qkv", low, query, layers, dtype),
            ]
        return [
            *queries,
            LinearOperation("kv_a_proj", "latent", hidden, mla.latent_dim, layers, dtype),
            LinearOperation("kv_b_proj", "qkv", rank, kv, layers, dtype),
            LinearOperation("o_proj", "o", out, hidden, layers, dtype),
        ]

    def _mlp_operations(self, tp: int) -> list[LinearOperation]:
        hidden, dtype, operations = self.hidden_size, self.weight_dtype, []
        if self.num_dense_layers:
            count, width = self.num_dense_layers, self.intermediate_size // tp
            up = width * (2 if self.gated_mlp else 1)
            up_bias, down_bias = up * self.mlp_bias, hidden * self.mlp_bias
            name = "gate_up_proj" if self.gated_mlp else "up_proj"
            operations += [
                LinearOperation(name, "gate_up", hidden, up, count, dtype, up_bias),
                LinearOperation("down_proj", "down", width, hidden, count, dtype, down_bias),
            ]
        if self.moe is not None:
            count, experts = self.moe.num_layers, self.moe.num_experts
            bias = experts * self.moe.router_bias
            operations.append(
                LinearOperation("router", "router", hidden, experts, count, self.dtype, bias)
            )
            if self.moe.shared_intermediate_size:
                width = self.moe.shared_intermediate_size // tp
                operations += [
                    LinearOperation(
                        "shared_gate_up", "shared_gate_up", hidden, 2 * width, count, dtype
                    ),
                    LinearOperation("shared_down", "shared_down", width, hidden, count, dtype),
                ]
        return operations

    def _other_parameters(self, tp: int, first_stage: bool = True, last_stage: bool = True) -> int:
        """Embeddings, output head, learned positions and norms on one GPU."""
        vocabulary = -(-self.vocab_size // tp) * self.hidden_size
        tied = self.tie_word_embeddings and first_stage
        tables = vocabulary * (int(first_stage) + int(last_stage and not tied))
        tables += self.position_rows * self.hidden_size * first_stage
        norm = self.hidden_size * (2 if self.layer_norm else 1)
        norms = norm * (2 * self.num_layers + last_stage)
        if self.qk_norm:
            norms += 2 * self.head_dim * self.num_layers
        if self.mla is not None:
            norms += (self.mla.kv_lora_rank + (self.mla.q_lora_rank or 0)) * self.num_layers
        return tables + norms
