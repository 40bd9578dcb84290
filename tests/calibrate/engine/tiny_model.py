"""A tiny model, its engine, and a plain PyTorch model with the same weights to check it against."""

from __future__ import annotations

import numpy as np
import torch

from calibrate.engine.assembly import engine
from calibrate.engine.engine import RealEngine, Served
from calibrate.engine.wall_clock import Clock
from kernels.model_config import ModelConfig
from kernels.rotary import rotary_table
from kernels.transformer import Transformer
from sim.schedulers.engine_config import EngineConfig
from sim.workload.content import PromptContent
from sim.workload.workload import Workload

CONFIG = ModelConfig(
    hidden_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=192,
    vocab_size=97,
    max_positions=512,
    rope_theta=500.0,
    qk_norm=True,
)


def tiny_transformer(seed: int = 1) -> Transformer:
    """Random weights in float32, so that greedy choices are never decided by rounding."""
    generator = torch.Generator().manual_seed(seed)
    return Transformer.random(
        CONFIG, generator=generator, dtype=torch.float32, device="cpu", backend="torch"
    )


def greedy_reference(model: Transformer, prompt: list[int], num_tokens: int) -> list[int]:
    """Greedy tokens of a plain model: no cache, no paging, the whole sequence anew every time."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(all_logits(model, torch.tensor(tokens))[-1].argmax()))
    return tokens[len(prompt) :]


def all_logits(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """Logits after every token of a sequence, in float32: [tokens, vocabulary]."""
    config, count, device = model.config, len(tokens), tokens.device
    half = config.head_dim // 2
    table = rotary_table(
        config.head_dim, count, theta=config.rope_theta, scaling=None, device=device
    )
    cosine, sine = table[:, None, :half], table[:, None, half:]
    causal = torch.full((count, count), -torch.inf, device=device).triu(1)

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        scale = (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt()
        return x * scale * weight.float()

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x[..., :half], x[..., half:]
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)

    h = model.embeddings[tokens].float()
    for layer in model.layers:
        packed = (norm(h, layer.input_norm) @ layer.qkv.float().T).unflatten(
            1, (-1, config.head_dim)
        )
        q, k, v = packed.split([config.num_heads, config.num_kv_heads, config.num_kv_heads], 1)
        q, k = rotated(norm(q, layer.q_norm)), rotated(norm(k, layer.k_norm))
        group = config.num_heads // config.num_kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * config.head_dim**-0.5 + causal
        attended = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        h = h + attended @ layer.output.float().T
        gate, up = (norm(h, layer.mlp_norm) @ layer.gate_up.float().T).chunk(2, 1)
        h = h + (torch.nn.functional.silu(gate) * up) @ layer.down.float().T
    return norm(h, model.final_norm) @ model.head.float().T


def drawn_workload(
    count: int, *, seed: int = 0, shared_tokens: int = 0, vocab_size: int = CONFIG.vocab_size
) -> Workload:
    """`count` short requests, a millisecond apart; prompts are known and may share a prefix."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(1, 40, count) + shared_tokens
    outputs = rng.integers(1, 14, count)
    prefix = rng.integers(0, vocab_size, shared_tokens).tolist()
    ids = [
        prefix + rng.integers(0, vocab_size, tokens - shared_tokens).tolist()
        for tokens in prompts.tolist()
    ]
    return Workload(
        arrival_s=np.arange(count) * 1e-3,
        prompt_tokens=prompts,
        output_tokens=outputs,
        content=PromptContent.from_lists(ids),
    )


def tiny_engine(
    workload: Workload,
    model: Transformer,
    *,
    scheduler: str = "chunked",
    num_blocks: int = 64,
    **settings: object,
) -> RealEngine:
    """An engine of a few sequences and blocks of four tokens, that checks its invariants."""
    eos_token = settings.pop("eos_token", None)
    captured = settings.pop("capture_sizes", ())
    limits = {"max_num_seqs": 6, "max_num_batched_tokens": 32, "block_size": 4, "watermark": 0.0}
    config = EngineConfig(**(limits | settings))  # type: ignore[arg-type]
    return engine(
        workload, config, model, scheduler=scheduler, num_blocks=num_blocks, eos_token=eos_token,
        capture_sizes=captured, clock=Clock(skip_idle=True), check=True,
    )  # fmt: skip


def serve(workload: Workload, model: Transformer, **settings: object) -> Served:
    """Serve it all."""
    return tiny_engine(workload, model, **settings).run()  # type: ignore[arg-type]
