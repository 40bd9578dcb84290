"""Layers of every kind from measured kernels: windows, states, sparse attention."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibrate.profiles.aiconfigurator import import_aiconfigurator
from calibrate.profiles.attention_kernels import decode_us, prefill_us
from calibrate.profiles.expert_kernels import experts_us
from calibrate.profiles.kernel_tables import KernelTables, NotMeasured, System
from calibrate.profiles.layer_kernels import kernels_of
from calibrate.profiles.matrix_products import Products
from calibrate.profiles.precision import Format, expert_formats
from scenarios import library
from sim.latency.attention_table import pairs
from sim.latency.table_folder import table_of
from sim.model.layers import Mixer
from sim.model.spec import MoeSpec

WINDOW = 128
LENGTHS = (16, 64, 128, 512, 4096)
QWEN = library.model("qwen3.5-35b-a3b")  # 16 key and 32 value heads in its states
GLM = library.model("glm-5")


def written(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def decode_ms(sequences: int, context: int) -> float:
    return 0.01 + 1e-6 * sequences * context


def prefill_ms(length: int) -> float:
    return 0.01 + 1e-7 * pairs(length, 0)


def attention_rows(head_dim: int, heads: int, kv: int, window: int) -> list[list[dict[str, Any]]]:
    """Decodes and prompts of one shape; within a window a tenth faster than composed."""
    same = {"head_dim": head_dim, "num_heads": heads, "num_key_value_heads": kv, "isl": 1}
    same |= {"kv_cache_dtype": "bfloat16", "window_size": window}
    reach = window or None
    decodes = [
        {**same, "batch_size": n, "step": context - 1,
         "latency": decode_ms(n, min(context, window or context)) * (0.9 if window else 1.0)}
        for n in (1, 16, 64) for context in LENGTHS
    ]  # fmt: skip
    prompts = [
        {**same, "batch_size": 1, "isl": length, "step": 0,
         "latency": 0.01 + 1e-7 * pairs(length, 0, reach)}
        for length in LENGTHS
    ]  # fmt: skip
    return [decodes, prompts]


@pytest.fixture
def system(tmp_path: Path) -> System:
    """Attention of heads of 64 with and without a window, of Qwen's without; products; states."""
    folder = tmp_path / "systems" / "data" / "gpu"
    decodes, prompts = [], []
    for shape in ((64, 64, 8, 0), (64, 64, 8, WINDOW), (256, 16, 2, 0)):
        for rows, more in zip((decodes, prompts), attention_rows(*shape), strict=True):
            rows += more
    written(folder / "attention/vllm/1.0/generation_attention_perf.parquet", decodes)
    written(folder / "attention/vllm/1.0/context_attention_perf.parquet", prompts)
    written(
        folder / "gemm/vllm/1.0/gemm_perf.parquet",
        [
            {"gemm_dtype": dtype, "m": m, "n": n, "k": k, "latency": 0.004 + n * k * 1e-9}
            for dtype in ("bfloat16", "nvfp4")
            for m in (1, 64, 4096) for n in (16, 1024, 65536) for k in (64, 1024, 16384)
        ],
    )  # fmt: skip
    heads = {"num_k_heads": 8, "num_v_heads": 16, "head_k_dim": 128, "head_v_dim": 128}
    written(
        folder / "linear_attention/vllm/1.0/gdn_perf.parquet",
        [
            {**heads, "phase": phase, "kernel_source": f"{kernel}_{phase}", "batch_size": n,
             "seq_len": length, "latency": ms * n * length}
            for kernel, ms in (("causal_conv1d", 0.001), ("gated_delta_rule", 0.002))
            for phase, n, length in (
                ("generation", 1, 1), ("generation", 64, 1), ("context", 1, 1), ("context", 1, 512),
                ("context", 4, 512),
            )
        ],
    )  # fmt: skip
    (tmp_path / "systems" / "gpu.yaml").write_text(
        "gpu: {mem_bw: 4000000000000, bfloat16_tc_flops: 1000000000000000}\n"
    )
    figures = {
        "mem_bw": 4e12,
        "bfloat16_tc_flops": 1e15,
        "fp8_tc_flops": 2e15,
        "fp4_tc_flops": 4e15,
    }
    return System("gpu", "gpu", folder, figures)


def test_a_measured_window_is_taken_and_another_composed_of_whole_attention(system: System) -> None:
    tables = KernelTables(system, "vllm", "1.0")
    shape: dict[str, Any] = {"heads": 64, "kv_heads": 8, "head_dim": 64, "kv_dtype": "bfloat16"}
    decode, how = decode_us(tables, **shape, window=WINDOW)
    assert how is None and decode[16, 4096] == pytest.approx(900 * decode_ms(16, WINDOW))
    decode, how = decode_us(tables, **shape, window=512)
    assert how == "a window, from attention to every token"
    for context in LENGTHS:
        assert decode[16, context] == pytest.approx(1e3 * decode_ms(16, min(context, 512)))
    prompt, _ = prefill_us(tables, **shape, window=512)
    for length in LENGTHS:  # the stand-in's kernels take a tenth of a nanosecond a pair
        assert prompt[length, 0] == pytest.approx(10 + 1e-4 * pairs(length, 0, 512), rel=1e-3)


def test_layers_of_two_kinds_have_parts_of_their_own(system: System) -> None:
    model = library.model("gpt-oss-20b")
    dense = model.with_layers(
        (replace(layer, experts=(), moe=None), count) for layer, count in model.runs
    )
    meta, parts = import_aiconfigurator("gpu", dense, data=system.folder.parents[1])
    whole = {(n, c): us for n, c, us in parts["decode_attention"]}
    bounded = {(reach, n, c): us for reach, n, c, us in parts["bounded_decode"]}
    assert whole[16, 4096] == pytest.approx(12e3 * decode_ms(16, 4096)), "twelve of its layers"
    assert bounded[WINDOW, 16, 4096] == pytest.approx(12 * 900 * decode_ms(16, WINDOW))
    assert max(cached for _, _, cached, _ in parts["bounded_prefill"]) == WINDOW
    assert meta["parts"]["bounded_decode"]["origin"] == "measured"
    assert table_of(meta, parts).basis == "measured"


def test_states_are_both_of_their_kernels_and_have_no_context(system: System) -> None:
    tables = KernelTables(system, "vllm", "1.0")
    kinds = {one.mixer.kind: (one, count) for one, _, count in kernels_of(QWEN, 2, "bfloat16")}
    states, count = kinds["linear"]
    assert (states.reach, count) == (1, 30)
    decode, _ = states.decode_us(tables)
    assert decode == {(1, 1): pytest.approx(3), (64, 1): pytest.approx(192)}
    prompt, _ = states.prefill_us(tables)
    assert prompt == {(1, 0): pytest.approx(3), (512, 0): pytest.approx(3 * 512)}, "one at a time"
    with pytest.raises(NotMeasured, match="num_k_heads 4"):
        kernels_of(QWEN, 4, "bfloat16")[0][0].decode_us(tables)


def test_sparse_attention_is_a_module_less_its_products(system: System) -> None:
    tables = KernelTables(system, "vllm", "1.0")
    ((sparse, _, layers),) = kernels_of(GLM, 8, "bfloat16")
    assert (sparse.reach, layers) == (2048, 78)
    with pytest.raises(NotMeasured):
        sparse.decode_us(tables)
    same = {"architecture": "GlmMoeDsaForCausalLM", "num_heads": 8, "gemm_type": "bfloat16"}
    same |= {"kv_cache_dtype": "bfloat16", "op_name": "dsa_generation_module"}
    written(
        system.folder / "sparse_attention/vllm/1.0/dsa_generation_module_perf.parquet",
        [{**same, "batch_size": n, "step": 4096, "latency": 0.5 + 0.01 * n} for n in (1, 64)],
    )
    decode, how = sparse.decode_us(tables)
    products_us = sum(
        dict(Products(tables, "bfloat16").times_us(op.out_features, op.in_features))[1]
        for op in (matrix.operation(8, 1) for matrix in sparse.mixer.matrices)
    )
    assert decode[1, 4096] == pytest.approx(510 - products_us)
    assert how == "GlmMoeDsa's attention module in bfloat16 less its products"


def test_other_kinds_of_layers_are_refused_in_a_line(system: System) -> None:
    for name, label in (("nemotron-3-nano", "state"), ("llama-4-scout", "chunked 8,192")):
        with pytest.raises(NotMeasured, match=f"gpu, vllm: no kernels of {label}"):
            for kernels, _, _ in kernels_of(library.model(name), 1, "bfloat16"):
                if kernels.mixer.kind in ("state", "chunked"):
                    kernels.decode_us(KernelTables(system, "vllm", "1.0"))


def test_kinds_that_differ_in_their_matrices_alone_are_one() -> None:
    mixers: list[Mixer] = [one.mixer for one, _, _ in kernels_of(GLM, 1, "bfloat16")]
    assert len(mixers) == 1 < len(GLM.kinds), "dense layers and mixtures"


def test_four_bits_of_experts_are_multiplied_where_the_gpu_can(system: System) -> None:
    mxfp4 = Format("w4a16_mxfp4")
    assert expert_formats(mxfp4, system) == ("w4a8_mxfp4_mxfp8", "w4a16_mxfp4")
    hopper = System("h", "h", system.folder, {"bfloat16_tc_flops": 1e15})
    assert expert_formats(mxfp4, hopper) == ("w4a16_mxfp4",)
    assert expert_formats(Format("fp8"), system) == ("fp8",)


def test_kernels_that_engines_share_are_taken_as_they_were_fastest(system: System) -> None:
    shape = {"num_experts": 8, "topk": 2, "hidden_size": 4096, "inter_size": 1024}
    shape |= {"moe_tp_size": 1, "moe_ep_size": 1, "moe_dtype": "fp8_block", "distribution": "even"}
    for backend, kernel, ms in (
        ("trtllm", "deepgemm", 0.3), ("sglang", "flashinfer_trtllm_moe", 0.1),
        ("vllm", "triton", 0.01),
    ):  # fmt: skip
        (system.folder / "attention" / backend / "1.0").mkdir(parents=True, exist_ok=True)
        rows = [{**shape, "kernel_source": kernel, "num_tokens": 1, "latency": ms}]
        written(system.folder / f"moe/{backend}/1.0/moe_perf.parquet", rows)
        if backend != "vllm":
            product = {"gemm_dtype": "nvfp4", "m": 1, "n": 1024, "k": 1024, "latency": 0.001}
            written(system.folder / f"gemm/{backend}/1.0/gemm_perf.parquet", [product])
    asked: dict[str, Any] = {
        "dtypes": ("fp8_block",), "tensor_parallel": 1, "expert_parallel": 1, "routing": "even"
    }  # fmt: skip
    points, how = experts_us(
        KernelTables(system, "trtllm", "1.0"), MoeSpec(1, 8, 2, 1024), 4096, **asked
    )
    assert points == [(1, pytest.approx(100))]
    assert how == "its kernels as sglang 1.0 ran them, where faster"
    products = Products(KernelTables(system, "vllm", "1.0"), "nvfp4")
    assert products.how == "nvfp4 products as sglang 1.0 ran them, where faster"
