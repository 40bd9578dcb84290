"""The composed model against a plain float64 forward pass that knows no cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kernels.float8 import quantize_weight
from kernels.model_config import ModelConfig
from kernels.mxfp4 import widened
from kernels.rotary import rotary_table
from kernels.transformer import ForwardBatch, Transformer
from sim.model.config import read_config
from tests import needs

SMALL = {
    "model_type": "qwen3",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 192,
    "vocab_size": 264,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "tie_word_embeddings": True,
}
LLAMA = SMALL | {"model_type": "llama", "tie_word_embeddings": False}
EXPERTS = SMALL | {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}
GEMMA = SMALL | {  # what its second and third generation have, in one
    "model_type": "gemma3_text",
    "sliding_window": 9,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 32,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "rope_local_base_freq": 50.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
GPT_OSS = SMALL | {
    "model_type": "gpt_oss",
    "attention_bias": True,
    "tie_word_embeddings": False,
    "sliding_window": 9,
    "intermediate_size": 64,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
        "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    },
}  # fmt: skip
QWEN_2 = LLAMA | {"model_type": "qwen2"}
ALL = {
    "qwen 3": SMALL, "qwen 2": QWEN_2, "experts": EXPERTS, "gemma": GEMMA, "gpt-oss": GPT_OSS,
}  # fmt: skip
BLOCK = 16


@pytest.fixture
def model(device, dtype):
    def make(config, **options):
        generator = torch.Generator(device).manual_seed(5)
        architecture = ModelConfig.from_hugging_face(config)
        return Transformer.random(
            architecture, generator=generator, dtype=dtype, device=device, **options
        )

    return make


def _plain_logits(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    """Logits of one whole sequence in float64, written from the formulas."""
    config, wide = model.config, torch.float64
    tables = {
        True: rotary_table(
            config.head_dim, len(ids), theta=config.local_rope_theta or config.rope_theta,
            scaling=None if config.local_rope_theta else config.rope_scaling,
        ),
        False: rotary_table(
            config.head_dim, len(ids), theta=config.rope_theta, scaling=config.rope_scaling
        ),
    }  # fmt: skip

    def norm(x, weight):
        mean_square = x.square().mean(-1, keepdim=True)
        return x / (mean_square + config.rms_norm_eps).sqrt() * weight.to(wide)

    def rotated(x, sliding):
        table = tables[sliding].to(ids.device)[:, None].to(wide)
        cosine, sine = table.split(config.head_dim // 2, dim=-1)
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1)

    def times(x, weight, bias=None):
        return x @ weight.to(wide).T + (0.0 if bias is None else bias.to(wide))

    def gated(x, gate_up, down, gate_up_bias=None, down_bias=None):
        gate, up = times(x, gate_up, gate_up_bias).chunk(2, -1)
        if config.activation == "gelu":
            inner = (2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)
            middle = 0.5 * gate * (1 + torch.tanh(inner)) * up
        elif config.activation == "clamped":
            gate, up = gate.clamp(max=7), up.clamp(-7, 7)
            middle = gate * torch.sigmoid(1.702 * gate) * (up + 1)
        else:
            middle = gate * torch.sigmoid(gate) * up
        return times(middle, down, down_bias)

    hidden = model.embeddings[ids].to(wide) * model.embedding_scale
    place = torch.arange(len(ids), device=ids.device)
    for index, layer in enumerate(model.layers):
        sliding = config.is_sliding(index)
        x = norm(hidden, layer.input_norm)
        heads, kv_heads = config.num_heads, config.num_kv_heads
        qkv = times(x, layer.qkv, layer.qkv_bias).unflatten(-1, (-1, config.head_dim))
        q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
        if config.qk_norm:
            q, k = norm(q, layer.q_norm), norm(k, layer.k_norm)
        q, k = rotated(q, sliding), rotated(k, sliding)
        k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k)
        scores = scores * (config.attention_scale or config.head_dim**-0.5)
        if config.softcap:
            scores = config.softcap * torch.tanh(scores / config.softcap)
        hidden_keys = place[None, :] > place[:, None]
        if sliding:
            hidden_keys |= place[None, :] <= place[:, None] - config.window
        scores = scores.masked_fill(hidden_keys, float("-inf"))
        if config.sinks:
            sinks = layer.sinks.to(wide)[:, None, None].expand(-1, len(ids), 1)
            scores = torch.cat((scores, sinks), dim=-1)
        weights = torch.softmax(scores, -1)[..., : len(ids)]
        attended = torch.einsum("hqk,khd->qhd", weights, v).flatten(1)
        attended = times(attended, layer.output, layer.output_bias)
        if config.post_norms:
            attended = norm(attended, layer.post_attention_norm)
        hidden = hidden + attended
        x = norm(hidden, layer.mlp_norm)
        if config.num_experts:
            logits = times(x, layer.router, layer.router_bias)
            shares, experts = torch.softmax(logits, -1).topk(config.experts_per_token, dim=-1)
            shares = shares / shares.sum(-1, keepdim=True)
            for row, chosen in enumerate(experts.tolist()):
                for share, expert in zip(shares[row], chosen, strict=True):
                    biases = (layer.experts_gate_up_bias, layer.experts_down_bias)
                    weights = (layer.experts_gate_up[expert], layer.experts_down[expert])
                    biases = [None if b is None else b[expert] for b in biases]
                    hidden[row] += share * gated(x[row], *weights, *biases)
        else:
            middle = gated(x, layer.gate_up, layer.down)
            hidden = hidden + (norm(middle, layer.post_mlp_norm) if config.post_norms else middle)
    logits = times(norm(hidden, model.final_norm), model.head)
    cap = config.logit_softcap
    return cap * torch.tanh(logits / cap) if cap else logits


def _batch(tables, spans, device, *, ids, decodes=0, query_len=1, has_past=True, padding=0):
    """A batch of token spans [(sequence, first, end)], decoding sequences first, then padding."""
    rows = [(s, p) for s, first, end in spans for p in range(first, end)]
    slots = [int(tables[s, p // BLOCK]) * BLOCK + p % BLOCK for s, p in rows]
    prefill_lengths = [end - first for _, first, end in spans[decodes:]]
    bounds = torch.tensor([0, *prefill_lengths], device=device).cumsum(0)
    pad = [0] * padding
    return ForwardBatch(
        token_ids=torch.tensor([int(ids[s][p]) for s, p in rows] + [-1] * padding, device=device),
        positions=torch.tensor([p for _, p in rows] + pad, device=device),
        slot_mapping=torch.tensor(slots + [-1] * padding, device=device),
        block_tables=torch.stack([tables[s] for s, _, _ in spans] + [tables[0] for _ in pad]),
        context_lens=torch.tensor([end for _, _, end in spans] + pad, device=device),
        num_decodes=decodes + (padding if not prefill_lengths else 0),
        query_len=query_len,
        cu_seqlens=bounds if prefill_lengths else None,
        has_past=has_past,
    )


@pytest.fixture
def ids(device):
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 264, (n,), generator=generator).to(device) for n in (40, 21)]


@pytest.fixture
def tables(device):
    return torch.tensor([[5, 1, 7], [3, 0, 2]], dtype=torch.int32, device=device)


@pytest.mark.parametrize("name", ALL)
def test_chunked_prefill_and_mixed_batches_give_the_plain_logits(
    name, model, ids, tables, device, dtype, close
):
    config = ALL[name]
    if device.type == "cuda" and name in ("experts", "gpt-oss"):
        needs.skip("float32")
    transformer = model(config)
    cache = transformer.new_kv_cache(8, BLOCK)
    plain = [_plain_logits(transformer, sequence) for sequence in ids]
    slack = 1.0 if dtype == torch.float32 else 4.0

    first = _batch(tables, [(0, 0, 30), (1, 0, 9)], device, ids=ids, has_past=False)
    logits = transformer.logits(transformer.forward(first, cache))
    close(logits, torch.cat((plain[0][:30], plain[1][:9])), slack=slack)
    # one sequence decodes while the other's next chunk is prefilled
    mixed = _batch(tables, [(0, 30, 31), (1, 9, 21)], device, ids=ids, decodes=1)
    logits = transformer.logits(transformer.forward(mixed, cache))
    close(logits, torch.cat((plain[0][30:31], plain[1][9:21])), slack=slack)
    if config is not SMALL:
        return
    # a padded CUDA-graph batch, of which only the first row counts
    padded = _batch(tables, [(0, 31, 32)], device, ids=ids, decodes=1, padding=3)
    rows = torch.tensor([0], device=device)
    logits = transformer.logits(transformer.forward(padded, cache), rows)
    close(logits, plain[0][31:32], slack=slack)
    # four tokens verified at once
    several = _batch(tables, [(0, 32, 36)], device, ids=ids, decodes=1, query_len=4)
    logits = transformer.logits(transformer.forward(several, cache))
    close(logits, plain[0][32:36], slack=slack)


def test_every_backend_gives_the_same_hidden_states(model, ids, tables, device, close, dtype):
    batch = _batch(tables, [(0, 0, 12), (1, 0, 5)], device, ids=ids, has_past=False)
    slack = 1.0 if dtype == torch.float32 else 3.0
    outputs = {}
    for backend in ("triton", "torch", "best"):
        transformer = model(SMALL, backend=backend)
        outputs[backend] = transformer.forward(batch, transformer.new_kv_cache(8, BLOCK))
    close(outputs["torch"], outputs["triton"], slack=slack)
    close(outputs["best"], outputs["triton"], slack=slack)
    transformer = model(SMALL, linear_backend="fastest")
    fastest = transformer.forward(batch, transformer.new_kv_cache(8, BLOCK))
    close(fastest, outputs["triton"], slack=slack)


def _hugging_face_tensors(transformer: Transformer) -> dict[str, torch.Tensor]:
    config = transformer.config
    tensors = {
        "model.embed_tokens.weight": transformer.embeddings,
        "model.norm.weight": transformer.final_norm,
    }
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = transformer.head
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for index, layer in enumerate(transformer.layers):
        named = {
            "input_layernorm": layer.input_norm,
            "post_attention_layernorm": layer.mlp_norm,
            "self_attn.o_proj": layer.output,
        }
        q, k, v = layer.qkv.split([heads, kv_heads, kv_heads])
        named |= {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v}
        if config.qk_norm:
            named |= {"self_attn.q_norm": layer.q_norm, "self_attn.k_norm": layer.k_norm}
        if config.post_norms:
            named["pre_feedforward_layernorm"] = layer.mlp_norm
            named["post_attention_layernorm"] = layer.post_attention_norm
            named["post_feedforward_layernorm"] = layer.post_mlp_norm
        if config.norm_offset:
            named |= {n: t - 1.0 for n, t in named.items() if n.endswith("norm")}
        extra = {}
        if config.qkv_bias:
            parts = layer.qkv_bias.split([heads, kv_heads, kv_heads])
            extra |= {f"self_attn.{n}_proj.bias": t for n, t in zip("qkv", parts, strict=True)}
        if config.expert_bias:
            named["mlp.router"] = layer.router
            turns = [layer.experts_gate_up, layer.experts_gate_up_bias]
            weight, bias = (torch.stack(t.chunk(2, dim=1), dim=2).flatten(1, 2) for t in turns)
            extra |= {
                "self_attn.o_proj.bias": layer.output_bias,
                "self_attn.sinks": layer.sinks,
                "mlp.router.bias": layer.router_bias,
                "mlp.experts.gate_up_proj": weight.transpose(1, 2),
                "mlp.experts.gate_up_proj_bias": bias,
                "mlp.experts.down_proj": layer.experts_down.transpose(1, 2),
                "mlp.experts.down_proj_bias": layer.experts_down_bias,
            }
        elif config.num_experts:
            named["mlp.gate"] = layer.router
            for expert in range(config.num_experts):
                gate, up = layer.experts_gate_up[expert].chunk(2)
                prefix = f"mlp.experts.{expert}."
                named |= {f"{prefix}gate_proj": gate, f"{prefix}up_proj": up}
                named[f"{prefix}down_proj"] = layer.experts_down[expert]
        else:
            gate, up = layer.gate_up.chunk(2)
            named |= {"mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": layer.down}
        tensors |= {f"model.layers.{index}.{n}.weight": t for n, t in named.items()}
        tensors |= {f"model.layers.{index}.{n}": t for n, t in extra.items()}
    if config.norm_offset:
        tensors["model.norm.weight"] = tensors["model.norm.weight"] - 1.0
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("config", ALL.values(), ids=ALL)
def test_weights_come_back_from_a_safetensors_file(config, model, tmp_path, device, dtype):
    safetensors = pytest.importorskip("safetensors.torch", reason=needs.KERNELS)
    original = model(config)
    safetensors.save_file(_hugging_face_tensors(original), tmp_path / "model.safetensors")
    loaded = Transformer.from_tensors(
        original.config,
        safetensors.load_file(tmp_path / "model.safetensors"),
        dtype=dtype,
        device=device,
    )
    assert loaded.weight_bytes == original.weight_bytes
    for ours, theirs in zip(original.layers, loaded.layers, strict=True):
        pairs = zip(ours.tensors(), theirs.tensors(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(original.head, loaded.head)


@pytest.mark.parametrize("kind", ["tensor", "channel", "block"])
def test_float8_weights_and_caches_of_a_checkpoint_stay_close_to_wide_ones(
    kind, model, ids, tables, device, dtype
):
    wide = model(SMALL | {"intermediate_size": 256}, backend="torch")
    tensors = _hugging_face_tensors(wide)
    for name in [n for n in tensors if "_proj" in n]:
        packed = quantize_weight(tensors[name], kind=kind)
        tensors[name] = packed.values
        end = "_scale_inv" if kind == "block" else "_scale"
        scales = packed.scales[:, None] if kind == "channel" else packed.scales
        tensors[f"{name}{end}"] = scales[0] if kind == "tensor" else scales
    tensors |= {f"model.layers.{layer}.self_attn.k_scale": torch.tensor(0.25) for layer in (0, 1)}
    narrow = Transformer.from_tensors(
        wide.config, tensors, dtype=dtype, device=device, backend="torch"
    )
    assert narrow.layers[0].k_scale == 0.25 and narrow.layers[0].v_scale == 1.0
    assert narrow.weight_bytes < 0.6 * wide.weight_bytes
    outputs = []
    for transformer, cached in ((wide, None), (narrow, torch.float8_e4m3fn)):
        cache = transformer.new_kv_cache(8, BLOCK, dtype=cached)
        first = _batch(tables, [(0, 0, 30), (1, 0, 9)], device, ids=ids, has_past=False)
        transformer.forward(first, cache)
        mixed = _batch(tables, [(0, 30, 31), (1, 9, 21)], device, ids=ids, decodes=1)
        outputs.append(transformer.forward(mixed, cache).float())
    apart = (outputs[0] - outputs[1]).norm() / outputs[0].norm()
    assert 1e-3 < apart < 0.2  # 3 bits of mantissa, through two layers of random weights


def test_mxfp4_blocks_are_widened_exactly():
    blocks = torch.tensor([[0x21, 0xF8, *[0] * 14], [0x7A, *[0] * 15]], dtype=torch.uint8)
    wide = widened(blocks, torch.tensor([127, 130], dtype=torch.uint8))
    assert wide.shape == (64,) and wide.dtype == torch.bfloat16
    assert wide[:4].tolist() == [0.5, 1.0, 0.0, -6.0]
    assert wide[32:34].tolist() == [-8.0, 48.0]


def test_every_gemma_and_gpt_oss_of_the_library_is_read():
    folder = Path(__file__).parents[3] / "scenarios" / "models"
    windows = {}
    for name in ("gemma-2-9b", "gemma-2-27b", "gemma-3-27b", "gpt-oss-20b", "gpt-oss-120b"):
        config = ModelConfig.from_hugging_face(json.loads((folder / f"{name}.json").read_text()))
        windows[name] = [config.window_of(layer) for layer in range(6)]
    assert windows["gemma-2-9b"] == [4096, 0] * 3
    assert windows["gemma-3-27b"] == [1024] * 5 + [0]
    assert windows["gpt-oss-20b"] == [128, 0] * 3


def test_missing_and_misshapen_tensors_are_named(model, device, dtype):
    original = model(SMALL)
    tensors = _hugging_face_tensors(original)
    options = {"dtype": dtype, "device": device}
    name = "model.layers.1.mlp.up_proj.weight"
    without = {n: t for n, t in tensors.items() if n != name}
    with pytest.raises(ValueError, match=f"{name} is missing"):
        Transformer.from_tensors(original.config, without, **options)
    with pytest.raises(ValueError, match=r"layers\.1\.gate_up must be"):
        Transformer.from_tensors(original.config, tensors | {name: tensors[name][:7]}, **options)


def test_unsupported_architectures_are_refused():
    with pytest.raises(ValueError, match="model_type: must be one of llama"):
        ModelConfig.from_hugging_face(SMALL | {"model_type": "gpt2"})
    with pytest.raises(ValueError, match="attention_bias"):
        ModelConfig.from_hugging_face(SMALL | {"attention_bias": True})
    with pytest.raises(ValueError, match="mlp_only_layers"):
        ModelConfig.from_hugging_face(EXPERTS | {"mlp_only_layers": [0]})


LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
QWEN3_30B = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("config", "parameters"), [(LLAMA_8B, 8_030_261_248), (QWEN3_30B, 30_532_122_624)]
)
def test_memory_equals_the_simulators_figure_and_the_published_count(config, parameters):
    """Published parameter counts of Llama-3.1-8B and Qwen3-30B-A3B; two bytes each."""
    spec = read_config(config, name="model")
    transformer = Transformer.random(
        ModelConfig.from_hugging_face(config), device="meta", backend="torch"
    )
    assert transformer.weight_bytes == 2 * parameters
    assert spec.weight_bytes() == transformer.weight_bytes
    assert spec.kv_bytes_per_token() == transformer.kv_bytes_per_token
