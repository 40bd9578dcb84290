"""Do the kernels run at all? One launch of each in bf16 against its reference, one captured graph.

Each case computes the same from the same seed with our kernel and in plain PyTorch. Cases run in
processes of their own, as many at a time as there are processors: they compile beside each other,
and one that reads where it must not takes no other with it.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from calibrate.engine.iteration_graphs import IterationGraphs, Shape
from kernels.checks import Backend
from kernels.copy_blocks import copy_blocks
from kernels.decode_attention import decode_attention, latent_attention
from kernels.embedding import embedding
from kernels.float8 import float8_linear, quantize_weight
from kernels.kv_cache_write import kv_cache_write
from kernels.linear import linear
from kernels.logits_and_sample import sample
from kernels.model_config import ModelConfig
from kernels.moe import moe
from kernels.prefill_attention import prefill_attention
from kernels.rms_norm import rms_norm
from kernels.rotary import rotary_table
from kernels.standard_attention import standard_attention
from kernels.swap_blocks import swap_blocks
from kernels.swiglu_mlp import swiglu_mlp
from kernels.transformer import ForwardBatch, Transformer

DTYPE = torch.bfloat16
TOLERANCE = 1.2e-2  # of ‖out − reference‖ / ‖reference‖ in bf16, as in the kernels' tests
TOKENS, HEADS, KV_HEADS, HEAD_DIM, BLOCK = 77, 8, 2, 128, 16
CASE_S = 25.0  # to compile, to run

Tensors = tuple[torch.Tensor, ...]
Case = Callable[["Draw", Backend], Tensors]


class Draw:
    """Random tensors on a device, the same ones every time."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        drawn = torch.randn(shape, generator=self._generator) * scale
        return drawn.to(DTYPE).to(self.device)

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=self._generator).to(self.device)

    def order(self, count: int) -> torch.Tensor:
        return torch.randperm(count, generator=self._generator).to(self.device)

    def heads(self, tokens: int) -> tuple[torch.Tensor, ...]:
        """q, k and v, slices of one projection."""
        packed = self.normal(tokens, HEADS + 2 * KV_HEADS, HEAD_DIM)
        return packed.split([HEADS, KV_HEADS, KV_HEADS], dim=1)

    def cache(self, blocks: int) -> tuple[torch.Tensor, ...]:
        shape = (blocks, BLOCK, KV_HEADS, HEAD_DIM)
        return self.normal(*shape), self.normal(*shape)

    def tensor(self, values: list[Any], dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype).to(self.device)


def _embedding(draw: Draw, backend: Backend) -> Tensors:
    return (embedding(draw.integers(999, TOKENS), draw.normal(999, 4096), backend=backend),)


def _rms_norm(draw: Draw, backend: Backend) -> Tensors:
    x, weight, residual = draw.normal(TOKENS, 4096), draw.normal(4096), draw.normal(TOKENS, 4096)
    return rms_norm(x, weight, residual=residual, backend=backend), residual


def _kv_cache_write(draw: Draw, backend: Backend) -> Tensors:
    q, k, v = draw.heads(TOKENS)
    k_cache, v_cache = draw.cache(9)
    kv_cache_write(
        q, k, v, k_cache=k_cache, v_cache=v_cache, slot_mapping=draw.order(9 * BLOCK)[:TOKENS],
        positions=draw.integers(300, TOKENS), table=rotary_table(HEAD_DIM, 300, device=draw.device),
        update_k=True, backend=backend,
    )  # fmt: skip
    return q, k, k_cache, v_cache


def _decode_attention(draw: Draw, backend: Backend) -> Tensors:
    contexts = [1, 700, 33]
    q, caches = draw.heads(len(contexts))[0], draw.cache(60)
    tables = draw.order(3 * 20).view(3, 20).repeat(1, 3)[:, :44].to(torch.int32).contiguous()
    return (
        decode_attention(
            q, *caches, block_tables=tables, context_lens=draw.tensor(contexts), backend=backend
        ),
    )


def _prefill_packed(draw: Draw, backend: Backend) -> Tensors:
    q, k, v = draw.heads(TOKENS + 200)
    bounds = draw.tensor([0, TOKENS, TOKENS + 200])
    return (prefill_attention(q, k, v, cu_seqlens=bounds, backend=backend),)


def _prefill_paged(draw: Draw, backend: Backend) -> Tensors:
    q, caches = draw.heads(TOKENS)[0], draw.cache(20)
    return (
        prefill_attention(
            q, *caches, cu_seqlens=draw.tensor([0, TOKENS]), context_lens=draw.tensor([300]),
            block_tables=draw.order(20).to(torch.int32)[None], backend=backend,
        ),
    )  # fmt: skip


def _decode_features(draw: Draw, backend: Backend) -> Tensors:
    """Soft-cap, sinks and a window, of heads of 256; a float8 cache; a latent one."""
    tables = draw.order(40).view(2, 20).to(torch.int32)
    paged = {"block_tables": tables, "context_lens": draw.tensor([3, 300]), "backend": backend}
    wide = draw.normal(40, BLOCK, 2, 256), draw.normal(40, BLOCK, 2, 256)
    options = {"softcap": 5.0, "window": 200, "sinks": draw.normal(4)}
    capped = decode_attention(draw.normal(2, 4, 256), *wide, **paged, **options)
    float8 = [cache.to(torch.float8_e4m3fn) for cache in draw.cache(40)]
    scaled = decode_attention(draw.heads(2)[0], *float8, **paged, k_scale=0.5, v_scale=2.0)
    latent = latent_attention(
        draw.normal(2, 20, 576), draw.normal(40, BLOCK, 1, 576), latent_dim=512, scale=0.07, **paged
    )
    return capped, scaled, latent


def _prefill_features(draw: Draw, backend: Backend) -> Tensors:
    q, k, v = (draw.normal(TOKENS, heads, 256) for heads in (4, 2, 2))
    options = {"softcap": 5.0, "sinks": draw.normal(4), "backend": backend}
    return (prefill_attention(q, k, v, cu_seqlens=draw.tensor([0, 30, TOKENS]), **options),)


def _float8_linear(draw: Draw, backend: Backend) -> Tensors:
    """What both sides round alike: the activations are their own float8."""
    x = draw.normal(300, 512).to(torch.float8_e4m3fn).to(DTYPE)
    x[:, ::128] = 448.0
    weight, outs = draw.normal(384, 512, scale=0.05), []
    for kind in ("channel", "block"):
        packed = quantize_weight(weight, kind=kind)
        outs += [float8_linear(x[:rows], packed, backend=backend) for rows in (5, 300)]
    return tuple(outs)


def _standard_attention(draw: Draw, backend: Backend) -> Tensors:
    q = draw.normal(TOKENS, 4, HEAD_DIM)
    k, v = (draw.normal(TOKENS, 2, HEAD_DIM) for _ in range(2))
    return (standard_attention(q, k, v, backend=backend),)


def _linear(tokens: int) -> Case:
    def case(draw: Draw, backend: Backend) -> Tensors:
        x, weight = draw.normal(tokens, 512), draw.normal(4096, 512, scale=0.05)
        return (linear(x, weight, backend=backend),)

    return case


def _swiglu_mlp(tokens: int) -> Case:
    def case(draw: Draw, backend: Backend) -> Tensors:
        first, second = draw.normal(2048, 512, scale=0.05), draw.normal(512, 1024, scale=0.05)
        return (swiglu_mlp(draw.normal(tokens, 512), first, second, backend=backend),)

    return case


def _moe(draw: Draw, backend: Backend) -> Tensors:
    """The router has no near ties: in bf16 they fall either way."""
    experts, hidden = 8, 256
    x = draw.normal(TOKENS, hidden)
    x[:, :experts] *= 0.1
    first = draw.integers(experts, TOKENS)[:, None]
    x.scatter_(1, (first + 3) % experts, 3.0)
    x.scatter_(1, first, 4.0)
    router = torch.zeros((experts, hidden), dtype=DTYPE, device=draw.device)
    router[:, :experts] = torch.eye(experts, dtype=DTYPE, device=draw.device)
    weights = draw.normal(experts, 256, hidden, scale=0.1), draw.normal(experts, hidden, 128)
    return (moe(x, router, *weights, top_k=2, backend=backend),)


def _sample(draw: Draw, backend: Backend) -> Tensors:
    logits = draw.normal(5, 9_999, scale=3.0)
    greedy = sample(logits, backend=backend)
    drawn = sample(
        logits, temperature=draw.tensor([1.0] * 5, torch.float32),
        top_k=draw.tensor([50] * 5), top_p=draw.tensor([0.9] * 5, torch.float32),
        uniform=draw.tensor([0.05, 0.2, 0.4, 0.7, 0.9], torch.float32), backend=backend,
    )  # fmt: skip
    return tuple(logits.gather(1, tokens[:, None]) for tokens in (greedy, drawn))


def _copy_blocks(draw: Draw, backend: Backend) -> Tensors:
    cache = torch.stack([torch.stack(draw.cache(12))] * 2)
    copy_blocks(cache, draw.order(12).view(6, 2), backend=backend)
    return (cache,)


def _swap_blocks(draw: Draw, backend: Backend) -> Tensors:
    cache = torch.stack([torch.stack(draw.cache(6))])
    shape = (4, 1, 2, BLOCK, KV_HEADS, HEAD_DIM)
    host = torch.zeros(shape, dtype=DTYPE, pin_memory=draw.device == "cuda")
    swap_blocks(cache, host, [(5, 0), (2, 3)], direction="out", backend=backend)
    swap_blocks(cache, host, [(0, 0), (1, 3)], direction="in", backend=backend)
    return (cache,)


def _captured_decodes(draw: Draw, backend: Backend) -> Tensors:
    """A captured pass of a small model, replayed; the reference computes it as it comes."""
    config = ModelConfig(256, 2, 8, 2, 64, 512, 512, 512)
    generator = torch.Generator(draw.device).manual_seed(0)
    model = Transformer.random(
        config, generator=generator, dtype=DTYPE, device=draw.device, backend=backend
    )
    cache = model.new_kv_cache(8)
    tables = draw.order(8).view(4, 2).to(torch.int32)
    graphs = IterationGraphs(model, cache, tables, head=lambda hidden: hidden)
    captured = backend == "triton"
    if captured:
        graphs.capture([4])
    rows = [[5, 6, 7, 8], [0, 3, 17, 20], [0] * 4, [1, 4, 18, 21]]
    rows[2] = [
        table[position // BLOCK] * BLOCK + position % BLOCK
        for table, position in zip(tables.tolist(), rows[1], strict=True)
    ]
    if captured:
        staged = graphs.stage(Shape(4))
        columns = (staged.tokens, staged.positions, staged.slots, staged.contexts)
        for column, row in zip(columns, rows, strict=True):
            column[:] = row
        return graphs.replay(staged), cache
    tokens, positions, slots, contexts = draw.tensor(rows, torch.int64)
    batch = ForwardBatch(tokens, positions, slots, tables, contexts, num_decodes=4)
    return model.forward(batch, cache), cache


CASES: dict[str, Case] = {
    "captured decodes": _captured_decodes,
    "prefill_attention, paged": _prefill_paged,
    "prefill_attention, packed": _prefill_packed,
    "moe": _moe,
    "attention's features, decode": _decode_features,
    "attention's features, prefill": _prefill_features,
    "float8_linear": _float8_linear,
    "linear, 300 tokens": _linear(300),
    "linear, 5 tokens": _linear(5),
    "swiglu_mlp, 300 tokens": _swiglu_mlp(300),
    "swiglu_mlp, 5 tokens": _swiglu_mlp(5),
    "decode_attention": _decode_attention,
    "sample": _sample,
    "kv_cache_write": _kv_cache_write,
    "standard_attention": _standard_attention,
    "rms_norm": _rms_norm,
    "embedding": _embedding,
    "copy_blocks": _copy_blocks,
    "swap_blocks": _swap_blocks,
}


def deviation(out: torch.Tensor, reference: torch.Tensor) -> float:
    """‖out − reference‖ / ‖reference‖; infinite where something is not finite."""
    if out.shape != reference.shape or not bool(out.isfinite().all()):
        return float("inf")
    wide = reference.double()
    return float((out.double() - wide).norm()) / max(float(wide.norm()), 1e-12)


def worst_deviation(case: Case, device: str) -> float:
    """Of all that a case computes with our kernels."""
    with torch.inference_mode():
        ours, theirs = case(Draw(device), "triton"), case(Draw(device), "torch")
        return max(deviation(a, b) for a, b in zip(ours, theirs, strict=True))


def canary(device: str = "cuda") -> Iterator[tuple[str, str]]:
    """Every case as it ends, and what is wrong with it: nothing, or a line.

    Nothing here may have used the GPU: what a CUDA process forks cannot use it.
    """
    fork = multiprocessing.get_context("fork")
    waiting, running = list(CASES), {}
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            name = waiting.pop(0)
            receive, send = fork.Pipe(duplex=False)
            process = fork.Process(target=_answer, args=(name, device, send))
            process.start()
            send.close()
            running[receive] = (name, process, time.monotonic() + CASE_S)
        ready = set(wait(list(running), timeout=1.0))
        for end, (name, process, until_s) in list(running.items()):
            late = time.monotonic() > until_s
            if end not in ready and not late:
                continue
            if late:
                process.kill()
            del running[end]
            try:
                said = end.recv() if end in ready else f"stopped after {CASE_S:.0f} s"
            except EOFError:
                process.join()
                said = f"its process ended with status {process.exitcode}"
            process.join()
            yield name, said


def _answer(name: str, device: str, send: Connection) -> None:
    try:
        found = worst_deviation(CASES[name], device)
        said = "" if found <= TOLERANCE else f"deviates by {found:.3g}, allowed: {TOLERANCE:g}"
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    send.send(said)
