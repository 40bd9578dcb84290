"""Products whose launch was timed, and mixtures of experts near a measured one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibrate.profiles.expert_kernels import experts_us
from calibrate.profiles.kernel_tables import KernelTables, NotMeasured, System
from calibrate.profiles.matrix_products import BUSY, SUSTAINED, Products
from sim.model.spec import MoeSpec

FIGURES = {"mem_bw": 4e12, "bfloat16_tc_flops": 1e15, "fp8_tc_flops": 2e15}


def written(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def product_ms(m: int, n: int, k: int) -> float:
    return 0.003 + max(2 * m * n * k / 2e15, n * k / 4e12) * 1e3


@pytest.fixture
def system(tmp_path: Path) -> System:
    """vLLM's block-scaled products begin at a launch of 60 µs, SGLang's at 3."""
    for backend, launch_ms in (("vllm", 0.060), ("sglang", 0.0)):
        rows = [
            {"gemm_dtype": dtype, "m": m, "n": n, "k": k,
             "latency": max(product_ms(m, n, k), launch_ms if dtype == "fp8_block" else 0.0)}
            for dtype in ("fp8", "fp8_block")
            for m in (1, 64, 4096)
            for n in (32, 1024, 8192)
            for k in (32, 1024, 8192)
        ]  # fmt: skip
        written(tmp_path / "gemm" / backend / "1.0" / "gemm_perf.parquet", rows)
        (tmp_path / "attention" / backend / "1.0").mkdir(parents=True)
    return System("test", "test", tmp_path, FIGURES)


def among_others_us(system: System, alone_us: float) -> float:
    """A row by 8,192 x 8,192 in float8, which hardly keeps the tensor cores busy."""
    busy = 2 * 8192 * 8192 / system.flops_per_s("fp8") * 1e6 / alone_us
    return alone_us * (1 + (SUSTAINED - 1) * busy / BUSY)


def test_times_of_a_launch_are_replaced_by_the_same_kernels_elsewhere(system: System) -> None:
    tables = KernelTables(system, "vllm", "1.0")
    products = Products(tables, "fp8_block")
    assert products.how == "fp8_block products of sglang 1.0 where a launch of 60 µs was timed"
    times = dict(products.times_us(8192, 8192))
    alone_us = product_ms(1, 8192, 8192) * 1e3
    assert times[1] == pytest.approx(among_others_us(system, alone_us), rel=1e-6)
    measured_us = product_ms(4096, 8192, 8192) * 1e3
    assert times[4096] == pytest.approx(SUSTAINED * measured_us), "long: as measured, and busy"
    assert Products(tables, "fp8").how is None


def test_without_another_engine_times_of_a_launch_are_those_of_a_scale_a_tensor(
    system: System,
) -> None:
    (system.folder / "gemm" / "sglang" / "1.0" / "gemm_perf.parquet").unlink()
    products = Products(KernelTables(system, "vllm", "1.0"), "fp8_block")
    assert (
        products.how == "fp8_block products of one scale a tensor where a launch of 60 µs was timed"
    )
    assert dict(products.times_us(1024, 1024))[64] == pytest.approx(
        product_ms(64, 1024, 1024) * 1e3, rel=0.02
    )


def test_a_product_slower_than_those_of_a_row_more_or_less_takes_as_long_as_they(
    tmp_path: Path,
) -> None:
    rows = [
        {"gemm_dtype": "bfloat16", "m": m, "n": 8192, "k": k,
         "latency": product_ms(m, 8192, k) * (1.16 if m in (8, 9, 64, 4096) else 1.0)}
        for m in (1, 2, 4, 8, 9, 16, 32, 48, 64, 128, 2048, 4096)
        for k in (512, 8192)
    ]  # fmt: skip
    written(tmp_path / "gemm" / "vllm" / "1.0" / "gemm_perf.parquet", rows)
    system = System("test", "test", tmp_path, FIGURES)
    products = Products(KernelTables(system, "vllm", "1.0"), "bfloat16")
    read, kept = (dict(products.times_us(8192, k)) for k in (8192, 512))
    for m in (8, 9, 64):
        assert read[m] == pytest.approx(product_ms(m, 8192, 8192) * 1e3, rel=0.01)
    assert read[4] == product_ms(4, 8192, 8192) * 1e3, "as measured"
    slow = 1.16e3
    assert read[4096] == pytest.approx(product_ms(4096, 8192, 8192) * slow), (
        "no weights to wait for"
    )
    assert kept[8] == pytest.approx(product_ms(8, 8192, 512) * slow), "weights from the cache"


@pytest.mark.parametrize(
    ("finding_ms", "dividing_ms", "spared_us"),
    [
        (0.007, 0.0015, {False: 7.0, True: 8.5}),
        (0.05, 0.0015, {False: 0.0, True: 1.5}),  # longer than what products take: was not timed
        (0.007, 0.05, {False: 0.0, True: 0.0}),
    ],
)
def test_scales_that_a_checkpoint_has_are_neither_found_nor_divided_by(
    system: System, finding_ms: float, dividing_ms: float, spared_us: dict[bool, float]
) -> None:
    gemm = system.folder / "gemm" / "vllm" / "1.0" / "gemm_perf.parquet"
    rows = [
        {"gemm_dtype": dtype, "m": m, "n": n, "k": k,
         "latency": product_ms(m, n, k) + (0.0095 if dtype == "fp8" else 0.0)}
        for dtype in ("bfloat16", "fp8")
        for m in (1, 64)
        for n in (1024, 8192)
        for k in (1024, 8192)
    ]  # fmt: skip
    written(gemm, rows)
    for name, ms in (("computescale", finding_ms), ("scale_matrix", dividing_ms)):
        written(
            system.folder / "quantize" / "vllm" / "1.0" / f"{name}_perf.parquet",
            [
                {"quant_dtype": "fp8", "m": m, "k": k, "latency": ms}
                for m in (1, 64)
                for k in (1024, 8192)
            ],
        )
    products = Products(KernelTables(system, "vllm", "1.0"), "fp8")
    for written_scaled, spared in spared_us.items():
        times = dict(products.times_us(8192, 8192, written_scaled=written_scaled))
        alone_us = product_ms(1, 8192, 8192) * 1e3 + 9.5 - spared
        assert times[1] == pytest.approx(among_others_us(system, alone_us), rel=1e-6)


def test_products_that_keep_the_tensor_cores_busy_take_longer_among_others(system: System) -> None:
    times = dict(Products(KernelTables(system, "sglang", "1.0"), "fp8").times_us(8192, 8192))
    assert times[4096] == pytest.approx(SUSTAINED * product_ms(4096, 8192, 8192) * 1e3, rel=1e-3)
    assert times[1] == pytest.approx(product_ms(1, 8192, 8192) * 1e3, rel=1e-2), "reads weights"


def test_of_several_kernels_for_the_same_work_the_fastest_is_taken(system: System) -> None:
    rows = [
        {"gemm_dtype": "bfloat16", "m": 1, "n": 1024, "k": 1024, "latency": ms, "kernel_source": of}
        for of, ms in (("a", 0.009), ("a", 0.005), ("a", 0.004), ("b", 0.007), ("b", 0.006))
    ]
    written(system.folder / "gemm" / "vllm" / "1.0" / "gemm_perf.parquet", rows)
    found = KernelTables(system, "vllm", "1.0").products("bfloat16")
    assert found == {(1024, 1024, 1): pytest.approx(5.0)}, "the median of each kernel's"


# -- mixtures of experts ---------------------------------------------------------------------------


@pytest.fixture
def mixtures(system: System) -> KernelTables:
    same = {"moe_dtype": "bfloat16", "distribution": "even", "moe_ep_size": 1}
    rows = [
        {**same, "num_experts": 8, "topk": 2, "hidden_size": 4096, "inter_size": 14336,
         "moe_tp_size": split, "num_tokens": tokens, "latency": (0.02 + 0.001 * tokens) / split}
        for split in (1, 2)
        for tokens in (1, 64, 8192)
    ]  # fmt: skip
    written(system.folder / "moe" / "vllm" / "1.0" / "moe_perf.parquet", rows)
    return KernelTables(system, "vllm", "1.0")


ASKED: dict[str, Any] = {
    "dtypes": ("fp8_block", "bfloat16"),  # only the latter was measured
    "tensor_parallel": 1,
    "expert_parallel": 1,
    "routing": "even",
}


def test_a_measured_mixture_is_the_rows_themselves(mixtures: KernelTables) -> None:
    points, how = experts_us(mixtures, MoeSpec(32, 8, 2, 14336), 4096, **ASKED)
    assert how is None
    assert points == [(1, pytest.approx(21)), (64, pytest.approx(84)), (8192, pytest.approx(8212))]


def test_a_mixture_near_a_measured_one_has_its_utilisation(mixtures: KernelTables) -> None:
    points, how = experts_us(mixtures, MoeSpec(32, 8, 2, 16384), 6144, **ASKED)
    assert how == "at the utilisation of 8 experts of 4096 x 14336, 2 a token"
    larger = (6144 * 16384) / (4096 * 14336)
    assert [time_us for _, time_us in points] == pytest.approx(
        [21 * larger, 84 * larger, 8212 * larger]
    )
    halved, how = experts_us(mixtures, MoeSpec(32, 8, 2, 7168), 4096, **ASKED)
    assert how is not None and "1/2 of each" in how, "as wide on a rank"
    assert halved[0] == (1, pytest.approx(10.5))


def test_a_mixture_unlike_any_measured_is_refused(mixtures: KernelTables) -> None:
    with pytest.raises(NotMeasured, match="no mixture near 512 experts of 1024 x 256, 22 a token"):
        experts_us(mixtures, MoeSpec(32, 512, 22, 256), 1024, **ASKED)
