"""Time every kernel against torch on the same shapes: ``python -m tests.benchmarks.kernels``.

Each time is the median of graph replays that hold at least ten calls over rotating inputs larger
than three L2 caches. Ratios are torch ÷ ours (above 1: ours is faster); the share is that of the
ceiling measured in the same run: device copy bandwidth for kernels that move bytes, the rate of an
8192³ product for those that multiply. Needs a CUDA GPU.

Options: ``--out FILE.csv``, ``--only SECTION,…``, ``--tune`` (also time the candidate tiles),
``--reference DIR`` (other stacks' measured tables, for the reference column).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from calibrate.device.environment import environment
from calibrate.device.timer import Call, Ceilings, Timer, measure_ceilings
from kernels import linear as linear_module
from kernels import prefill_attention as prefill_module
from kernels import swiglu_mlp as swiglu_module
from kernels.copy_blocks import copy_blocks
from kernels.decode_attention import decode_attention, latent_attention
from kernels.embedding import embedding
from kernels.float8 import float8_linear, quantize_weight
from kernels.kv_cache_write import kv_cache_write
from kernels.linear import linear
from kernels.logits_and_sample import sample
from kernels.moe import moe
from kernels.paged_cache import FLOAT8
from kernels.prefill_attention import prefill_attention
from kernels.rms_norm import rms_norm
from kernels.rotary import rotary_table
from kernels.standard_attention import standard_attention
from kernels.swiglu_mlp import gate_up, swiglu_mlp
from tests.kernels.timing import Row, append_csv, compare, normal, start_csv

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
HIDDEN, INTERMEDIATE, VOCABULARY = 4096, 14_336, 128_256
EXPERTS, TOP_K, EXPERT_HIDDEN, EXPERT_WIDTH = 128, 8, 2048, 768
BLOCK = 16
Made = tuple[Call, dict[str, Call]]


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, which: SDPBackend) -> torch.Tensor:
    with sdpa_kernel(which):
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=True
        )


def _packed_prefill(tokens: int, tiles: prefill_module.PrefillTiles | None = None) -> Made:
    projection = normal(tokens, HEADS + 2 * KV_HEADS, HEAD_DIM)
    q, k, v = projection.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    bounds = torch.tensor([0, tokens], device="cuda", dtype=torch.int32)
    lengths_first = [t.transpose(0, 1)[None] for t in (q, k, v)]
    others = {
        "flash": partial(_sdpa, *lengths_first, SDPBackend.FLASH_ATTENTION),
        "cudnn": partial(_sdpa, *lengths_first, SDPBackend.CUDNN_ATTENTION),
    }
    call = partial(prefill_attention, q, k, v, cu_seqlens=bounds, tiles=tiles)
    return call, {} if tiles else others


def _paged_prefill(tokens: int, tiles: prefill_module.PrefillTiles | None = None) -> Made:
    blocks = tokens // BLOCK
    q, cache = normal(tokens, HEADS, HEAD_DIM), normal(2, blocks, BLOCK, KV_HEADS, HEAD_DIM)
    bounds = torch.tensor([0, tokens], device="cuda", dtype=torch.int32)
    call = partial(
        prefill_attention,
        q,
        *cache,
        cu_seqlens=bounds,
        context_lens=bounds[1:].clone(),
        block_tables=torch.randperm(blocks, device="cuda", dtype=torch.int32)[None],
        tiles=tiles,
    )
    return call, {}


def _standard(tokens: int) -> Made:
    k, v = normal(tokens, KV_HEADS, HEAD_DIM), normal(tokens, KV_HEADS, HEAD_DIM)
    return partial(standard_attention, normal(tokens, HEADS, HEAD_DIM), k, v), {}


def prefill_rows(ceilings: Ceilings, tune: bool) -> Iterator[Row]:
    """One causal sequence, packed and through the cache; torch's two fused backends beside it."""
    for tokens in (1024, 2048, 4096, 8192, 16_384):
        shape = f"1 x {tokens}"
        flops = 2 * HEADS * HEAD_DIM * tokens * (tokens + 1)  # two products, half the square
        options = {"ceilings": ceilings, "flops": flops}
        for kind, make in (("packed", _packed_prefill), ("paged", _paged_prefill)):
            yield compare(f"prefill {kind}", shape, partial(make, tokens), **options)
            for tiles in prefill_module.CANDIDATES[kind] if tune else ():
                made = partial(make, tokens, tiles)
                yield compare(f"prefill {kind} tiles", shape, made, note=str(tiles), **options)
        if tokens <= 8192:
            yield compare("standard attention", shape, partial(_standard, tokens), **options)


def _decode(contexts: list[int], query_len: int = 1) -> Made:
    """Paged decode; torch's SDPA reads equal lengths from a contiguous cache."""
    seqs, needed = len(contexts), [-(-context // BLOCK) for context in contexts]
    q = normal(seqs * query_len, HEADS, HEAD_DIM)
    cache = normal(2, sum(needed), BLOCK, KV_HEADS, HEAD_DIM)
    tables = torch.zeros((seqs, max(needed)), device="cuda", dtype=torch.int32)
    order = torch.randperm(sum(needed), device="cuda", dtype=torch.int32)
    for row, blocks in enumerate(order.split(needed)):
        tables[row, : len(blocks)] = blocks
    call = partial(
        decode_attention,
        q,
        *cache,
        block_tables=tables,
        context_lens=torch.tensor(contexts, device="cuda", dtype=torch.int32),
        query_len=query_len,
    )
    if len(set(contexts)) > 1:
        return call, {}
    keys, values = (part.view(seqs, contexts[0], KV_HEADS, HEAD_DIM) for part in cache)
    queries = q.view(seqs, query_len, HEADS, HEAD_DIM)
    sdpa = partial(
        torch.nn.functional.scaled_dot_product_attention,
        *(t.transpose(1, 2) for t in (queries, keys, values)),
        enable_gqa=True,
    )
    return call, {"sdpa contiguous": sdpa}


def decode_rows(ceilings: Ceilings, tune: bool) -> Iterator[Row]:
    """Paged decode of equal lengths, of several tokens a sequence, and of one long among short."""
    del tune
    shapes = [(1, 1024, 1), (1, 8192, 1), (32, 1024, 1), (64, 1024, 1), (8, 8192, 1)]
    shapes += [(256, 1024, 1), (64, 4096, 1), (1, 131_072, 1), (64, 1024, 4)]
    cases = [(f"{s} x {c}" + (f", {n} tokens" if n > 1 else ""), [c] * s, n) for s, c, n in shapes]
    cases.append(("16384 + 16 x 3072", [16_384, *[3072] * 16], 1))
    for shape, contexts, query_len in cases:
        moved_bytes = 2 * sum(contexts) * KV_HEADS * HEAD_DIM * 2
        moved_bytes += 2 * len(contexts) * query_len * HEADS * HEAD_DIM * 2
        made = partial(_decode, contexts, query_len)
        yield compare("decode", shape, made, ceilings=ceilings, moved_bytes=moved_bytes)


def _latent(seqs: int, context: int, dtype: torch.dtype) -> Made:
    """DeepSeek-V3: 128 heads, latents of 512 and rotary parts of 64."""
    blocks = context // BLOCK
    tables = torch.randperm(seqs * blocks, device="cuda", dtype=torch.int32).view(seqs, -1)
    call = partial(
        latent_attention,
        normal(seqs, 128, 576),
        normal(seqs * blocks, BLOCK, 1, 576).to(dtype),
        latent_dim=512,
        block_tables=tables,
        context_lens=torch.full((seqs,), context, device="cuda", dtype=torch.int32),
        scale=192**-0.5,
    )
    return call, {}


def _decode_float8(seqs: int, context: int) -> Made:
    call, _ = _decode([context] * seqs)
    q, *caches = call.args
    float8 = [cache.to(torch.float8_e4m3fn) for cache in caches]
    return partial(call.func, q, *float8, **call.keywords, k_scale=0.5, v_scale=0.5), {}


def latent_and_float8_rows(ceilings: Ceilings, tune: bool) -> Iterator[Row]:
    """Latent decode, a float8 cache and float8 products."""
    del tune
    for seqs, context in ((1, 8192), (64, 4096)):
        shape, options = f"{seqs} x {context}", {"ceilings": ceilings}
        for name, dtype, size in (("bf16", torch.bfloat16, 2), ("float8", FLOAT8, 1)):
            made = partial(_latent, seqs, context, dtype)
            moved = seqs * context * 576 * size
            yield compare(f"latent decode {name}", shape, made, moved_bytes=moved, **options)
        moved = 2 * seqs * context * KV_HEADS * HEAD_DIM
        made = partial(_decode_float8, seqs, context)
        yield compare("decode float8", shape, made, moved_bytes=moved, **options)
    for tokens in (16, 512, 8192):
        for kind in ("channel", "block"):
            shape = f"{tokens} x {HIDDEN} -> {HIDDEN}, {kind}"
            ceiling = {"moved_bytes": HIDDEN * HIDDEN}
            if tokens > 256:
                ceiling["flops"] = 2 * tokens * HIDDEN * HIDDEN
            made = partial(_float8_product, tokens, kind)
            yield compare("float8_linear", shape, made, ceilings=ceilings, **ceiling)


def _float8_product(tokens: int, kind: str) -> Made:
    packed = quantize_weight(normal(HIDDEN, HIDDEN, scale=0.02), kind=kind)
    return partial(float8_linear, normal(tokens, HIDDEN), packed), {}


def _norm(tokens: int) -> Made:
    call = partial(
        rms_norm, normal(tokens, HIDDEN), normal(HIDDEN), residual=normal(tokens, HIDDEN)
    )
    return call, {"add, rms_norm": partial(call, backend="best")}


def _cache_write(tokens: int) -> Made:
    projection = normal(tokens, HEADS + 2 * KV_HEADS, HEAD_DIM)
    cache = normal(2, tokens // BLOCK + 1, BLOCK, KV_HEADS, HEAD_DIM)
    call = partial(
        kv_cache_write,
        *projection.split([HEADS, KV_HEADS, KV_HEADS], dim=1),
        k_cache=cache[0],
        v_cache=cache[1],
        slot_mapping=torch.arange(tokens, device="cuda"),
        positions=torch.arange(tokens, device="cuda"),
        table=rotary_table(HEAD_DIM, tokens, device="cuda"),
    )
    return call, {}


def _look_up(tokens: int, weight: torch.Tensor) -> Made:
    call = partial(embedding, torch.randint(0, VOCABULARY, (tokens,), device="cuda"), weight)
    return call, {"embedding": partial(call, backend="best")}


def _copy_on_write() -> Made:
    cache = normal(8, 2, 512, BLOCK, KV_HEADS, HEAD_DIM)
    pairs = torch.randperm(512, device="cuda").view(-1, 2)
    sources, targets = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()

    def indexed() -> None:
        cache[:, :, targets] = cache[:, :, sources]

    return partial(copy_blocks, cache, pairs), {"indexed copy": indexed}


def _sampling(rows: int, greedy: bool) -> Made:
    logits = normal(rows, VOCABULARY, scale=3.0)
    if greedy:
        return partial(sample, logits), {"argmax": partial(torch.argmax, logits, dim=-1)}
    call = partial(
        sample,
        logits,
        temperature=torch.ones(rows, device="cuda"),
        top_k=torch.full((rows,), 50, device="cuda"),
        top_p=torch.full((rows,), 0.9, device="cuda"),
        uniform=torch.rand(rows, device="cuda"),
    )
    return call, {"sort alone": partial(torch.sort, logits, dim=-1, descending=True)}


def memory_rows(ceilings: Ceilings, tune: bool) -> Iterator[Row]:
    """Kernels that move bytes and hardly compute."""
    del tune
    vocabulary = normal(VOCABULARY, HIDDEN)
    token_bytes = HIDDEN * 2
    written = 2 * (HEADS + 2 * KV_HEADS) * HEAD_DIM * 2
    for tokens in (64, 8192):
        for operation, make, bytes_each in (
            ("rms_norm + residual", partial(_norm, tokens), 4 * token_bytes),
            ("rotary + kv_cache_write", partial(_cache_write, tokens), written),
            ("embedding", partial(_look_up, tokens, vocabulary), 2 * token_bytes),
        ):
            moved_bytes = tokens * bytes_each
            shape = f"{tokens} tokens"
            yield compare(operation, shape, make, ceilings=ceilings, moved_bytes=moved_bytes)
    del vocabulary
    moved_bytes = 2 * 8 * 2 * 256 * BLOCK * KV_HEADS * HEAD_DIM * 2
    shape = "256 of 512 blocks"
    yield compare("copy_blocks", shape, _copy_on_write, ceilings=ceilings, moved_bytes=moved_bytes)
    for rows in (1, 256):
        moved_bytes = rows * VOCABULARY * 2
        for operation, greedy in (("sample greedy", True), ("sample top-k top-p", False)):
            made = partial(_sampling, rows, greedy)
            shape = f"{rows} x {VOCABULARY}"
            yield compare(operation, shape, made, ceilings=ceilings, moved_bytes=moved_bytes)


def _product(tokens: int, columns: int, rows: int, tiles=None) -> Made:
    call = partial(linear, normal(tokens, columns), normal(rows, columns, scale=0.02))
    others = {} if tiles else {"cublas": partial(call, backend="best")}
    return partial(call, tiles=tiles), others


def _gate_up(tokens: int, tiles=None) -> Made:
    call = partial(gate_up, normal(tokens, HIDDEN), normal(2 * INTERMEDIATE, HIDDEN, scale=0.02))
    others = {} if tiles else {"cublas, activation": partial(call, backend="best")}
    return partial(call, tiles=tiles), others


def _mlp(tokens: int) -> Made:
    first = normal(2 * INTERMEDIATE, HIDDEN, scale=0.02)
    call = partial(
        swiglu_mlp, normal(tokens, HIDDEN), first, normal(HIDDEN, INTERMEDIATE, scale=0.02)
    )
    return call, {"cublas, activation": partial(call, backend="best")}


def product_rows(ceilings: Ceilings, tune: bool) -> Iterator[Row]:
    """Dense products and the gated MLP against cuBLAS."""
    sizes = ((HIDDEN, 6144), (HIDDEN, HIDDEN), (INTERMEDIATE, HIDDEN))
    gate_up_weights = 2 * INTERMEDIATE * HIDDEN
    for tokens in (1, 16, 64, 128, 256, 512, 1024, 2048, 8192):
        kind = "few" if tokens <= 64 else "many"
        cases = [
            (
                "linear",
                f"{tokens} x {columns} -> {rows}",
                partial(_product, tokens, columns, rows),
                columns * rows,
                linear_module.CANDIDATES[kind],
            )
            for columns, rows in sizes
        ]
        shape = f"{tokens} tokens"
        tiles = swiglu_module.CANDIDATES[kind]
        cases.append(("gate_up", shape, partial(_gate_up, tokens), gate_up_weights, tiles))
        mlp_weights = gate_up_weights + INTERMEDIATE * HIDDEN
        cases.append(("swiglu_mlp", shape, partial(_mlp, tokens), mlp_weights, ()))
        for operation, shape, make, weights, candidates in cases:
            ceiling = {"moved_bytes": 2 * weights}
            if tokens > 256:
                ceiling["flops"] = 2 * tokens * weights
            yield compare(operation, shape, make, ceilings=ceilings, **ceiling)
            for tiles in candidates if tune else ():
                if kind == "few" and tokens > tiles.block_m:
                    continue
                made = partial(make, tiles=tiles)
                yield compare(
                    f"{operation} tiles", shape, made,
                    ceilings=ceilings, note=str(tiles), **ceiling,
                )  # fmt: skip


def moe_rows(ceilings: Ceilings, tune: bool) -> Iterator[Row]:
    """Experts of Qwen3-30B-A3B."""
    del tune
    weights = [
        normal(EXPERTS, EXPERT_HIDDEN),
        normal(EXPERTS, 2 * EXPERT_WIDTH, EXPERT_HIDDEN, scale=0.02),
        normal(EXPERTS, EXPERT_HIDDEN, EXPERT_WIDTH, scale=0.02),
    ]
    expert_weights = 3 * EXPERT_WIDTH * EXPERT_HIDDEN

    def make(tokens: int) -> Made:
        return partial(moe, normal(tokens, EXPERT_HIDDEN), *weights, top_k=TOP_K), {}

    for tokens in (1, 8, 64, 256, 1024, 4096, 8192):
        chosen = EXPERTS * (1 - (1 - TOP_K / EXPERTS) ** tokens)  # expected, if routing is even
        ceiling = {"moved_bytes": int(2 * chosen * expert_weights)}
        if tokens > 256:
            ceiling["flops"] = 2 * tokens * TOP_K * expert_weights
        made = partial(make, tokens)
        yield compare("moe", f"{tokens} tokens", made, ceilings=ceilings, **ceiling)


SECTIONS: dict[str, Callable[[Ceilings, bool], Iterator[Row]]] = {
    "prefill": prefill_rows,
    "decode": decode_rows,
    "latent and float8": latent_and_float8_rows,
    "memory": memory_rows,
    "products": product_rows,
    "moe": moe_rows,
}

# What a GPU session measures at once; compiling the rest takes time that the tables need more.
FIRST = tuple(name for name in SECTIONS if name != "latent and float8")

# Table of a reference folder, and its columns in the order of the sizes in a row's shape.
_REFERENCES = {
    "prefill packed": ("prefill_attention_32q8kv128_bf16.csv", ("batch_size", "seq_len")),
    "prefill paged": ("prefill_attention_32q8kv128_bf16.csv", ("batch_size", "seq_len")),
    "decode": ("decode_attention_32q8kv128_bf16.csv", ("batch_size", "context_len")),
    "linear": ("gemm_bf16.csv", ("m", "k", "n")),
    "moe": ("moe_e128_top8_h2048_i768_bf16.csv", ("num_tokens",)),
}


def reference_us(row: Row, folder: Path) -> float | None:
    """The fastest other stack's time for a row's shape, or None where the folder has none."""
    if row.operation not in _REFERENCES:
        return None
    name, columns = _REFERENCES[row.operation]
    words = row.shape.removesuffix(" tokens").replace("->", "x").split(" x ")
    if not all(word.strip().isdigit() for word in words):
        return None
    sizes = [word.strip() for word in words]
    with (folder / name).open() as file:
        times = [
            float(line["latency_ms"]) * 1000
            for line in csv.DictReader(file)
            if [line[column] for column in columns] == sizes and line.get("moe_ep_size", "1") == "1"
        ]
    return min(times, default=None)


def run_sections(
    names: list[str],
    *,
    tune: bool = False,
    reference: Path | None = None,
    out: Path | None = None,
) -> tuple[Ceilings, list[str]]:
    """Measure the sections, a row of each in turn: a run that is cut short has some of all.

    Each row is printed, and written to ``out``, as it comes. Returns the ceilings, and operation
    and shape of each row whose kernel failed.
    """
    if out is not None:
        start_csv(out)
    ceilings = measure_ceilings(Timer("cuda"))
    print(f"copy {ceilings.copy_bytes_per_s / 1e12:.2f} TB/s read plus written, ", end="")
    print(f"8192 cubed product {ceilings.matrix_flops_per_s / 1e12:.0f} TFLOP/s")
    sections = [SECTIONS[name](ceilings, tune) for name in names]
    failed = []
    for row in filter(None, itertools.chain.from_iterable(itertools.zip_longest(*sections))):
        if reference is not None:
            row.reference_us = reference_us(row, reference)
        if out is not None:
            append_csv(row, out)
        print(row.line(), flush=True)
        if math.isnan(row.ours_us):
            failed.append(f"{row.operation}, {row.shape}")
        torch.cuda.empty_cache()
    return ceilings, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the table to this CSV file")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, comma-separated")
    parser.add_argument("--tune", action="store_true", help="also time the candidate tiles")
    parser.add_argument("--reference", type=Path, help="folder of other stacks' tables")
    options = parser.parse_args()
    names = options.only.split(",")
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        parser.error(f"--only: no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    if not torch.cuda.is_available():
        print("no CUDA GPU: the kernels are timed on one only", file=sys.stderr)
        return 1
    for name, value in environment("cuda").items():
        print(f"{name}: {value}")
    _, failed = run_sections(names, tune=options.tune, reference=options.reference, out=options.out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
