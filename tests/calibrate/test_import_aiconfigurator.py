"""Tables composed from aiconfigurator's kernel times: a small stand-in, and the package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibrate.import_aiconfigurator import import_aiconfigurator
from scenarios import library
from sim.batch import Batch, PrefillChunk
from sim.latency.protocol import HostOverhead
from sim.latency.table import TableLatency
from sim.latency.table_folder import TableError, table_of, write_table
from sim.request import Request

MODEL = library.model("llama-3.1-8b")
LINK = library.gpu("h200-sxm").interconnect


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def gemm_ms(m: int, n: int, k: int) -> float:
    """Twice the ideal time of a card of 1e15 FLOP/s and 4e12 B/s."""
    return 2e3 * max(2 * m * n * k / 1e15, 2 * (n * k + m * (n + k)) / 4e12)


@pytest.fixture
def systems(tmp_path: Path) -> Path:
    """The package's layout with one system, one backend, two versions."""
    root = tmp_path / "systems"
    data = root / "data" / "test_gpu"
    for version in ("0.9.0", "0.10.0"):
        write(
            data / "gemm" / "vllm" / version / "gemm_perf.parquet",
            [
                {"gemm_dtype": "bfloat16", "m": m, "n": n, "k": k, "latency": gemm_ms(m, n, k)}
                for m in (1, 16, 256, 4096)
                for n in (1024, 4096, 8192, 65536)
                for k in (1024, 4096, 16384)
            ],
        )
        attention = {
            "num_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "kv_cache_dtype": "bfloat16",
            "window_size": 0,
        }
        write(
            data / "attention" / "vllm" / version / "context_attention_perf.parquet",
            [
                {
                    **attention,
                    "batch_size": b,
                    "isl": s,
                    "step": 0,
                    "latency": 0.01 + 1e-8 * b * s * s,
                }
                for b in (1, 2)
                for s in (1, 16, 256, 4096)
            ],
        )
        write(
            data / "attention" / "vllm" / version / "generation_attention_perf.parquet",
            [
                {**attention, "batch_size": b, "isl": 1, "step": s, "latency": 0.01 + 1e-6 * b * s}
                for b in (1, 16, 256)
                for s in (15, 255, 4095)
            ],
        )
    (root / "test_gpu.yaml").write_text(
        "gpu: {mem_bw: 4000000000000, bfloat16_tc_flops: 1000000000000000, fp8_tc_flops: 2e15}\n"
    )
    return root


def test_products_off_the_grid_run_at_their_neighbours_utilisation(systems: Path) -> None:
    meta, parts = import_aiconfigurator("test_gpu", MODEL, data=systems)
    assert "vllm 0.10.0" in meta["source"], "the newest version, by number and not by letter"
    times = {(name, rows): time_us for name, rows, time_us in parts["linear"]}
    layers = 32
    for name, width, depth in (
        ("qkv_proj", 6144, 4096),  # off the grid in width
        ("o_proj", 4096, 4096),  # on it
        ("gate_up_proj", 28672, 4096),
        ("down_proj", 4096, 14336),  # off in depth
    ):
        for rows in (1, 16, 256, 4096):
            expected_us = gemm_ms(rows, width, depth) * 1e3 * layers
            assert times[name, rows] == pytest.approx(expected_us, rel=1e-9), name
    assert parts["decode_attention"][0] == (1, 16, pytest.approx((10 + 15e-3) * layers))
    assert all(new >= 16 for new, _, _ in parts["prefill_attention"])
    assert "element-wise" in meta["estimated"][0]


def test_the_composed_table_writes_and_answers(systems: Path, tmp_path: Path) -> None:
    meta, parts = import_aiconfigurator("test_gpu", MODEL, data=systems)
    write_table(tmp_path / "table", meta, parts)
    model = TableLatency(
        table_of(meta, parts), MODEL, interconnect=LINK, host=HostOverhead(0.0, 0.0, "test")
    )
    batch = Batch(num_decodes=16, context_tokens=16 * 256, num_tokens=16, num_emitting=16)
    assert model.iteration_s(batch) > 32 * 14e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"system": "tpu"}, "no measurements of 'tpu'; systems: test_gpu"),
        ({"backend": "mine"}, "no 'mine' on test_gpu; backends: vllm"),
        ({"version": "7"}, "no version '7' of vllm on test_gpu; versions: 0.9.0, 0.10.0"),
        ({"model": library.model("qwen3-8b"), "tensor_parallel": 8}, "no attention of 4 heads"),
        ({"model": library.model("deepseek-v3")}, "latent attention"),
    ],
)
def test_what_is_not_there_is_named(systems: Path, options: dict[str, Any], message: str) -> None:
    given = {"system": "test_gpu", "model": MODEL, **options}
    with pytest.raises(TableError, match=message):
        import_aiconfigurator(given.pop("system"), given.pop("model"), data=systems, **given)


# -- the package itself -----------------------------------------------------------------------

needs_package = pytest.mark.skipif(
    find_spec("aiconfigurator_core") is None, reason="aiconfigurator-core is not installed"
)


@needs_package
def test_h200_times_are_the_sums_of_the_packages_own_rows() -> None:
    import aiconfigurator_core

    meta, parts = import_aiconfigurator("h200-sxm", MODEL)
    version = meta["source"].split("vllm ")[1].split(" ")[0]
    data = Path(aiconfigurator_core.__file__).parent / "systems" / "data" / "h200_sxm"
    gemm = pq.read_table(
        data / "gemm" / "vllm" / version / "gemm_perf.parquet",
        filters=[("gemm_dtype", "=", "bfloat16"), ("k", "=", 4096), ("n", "in", [4096, 6144])],
    ).to_pylist()
    measured = {(row["m"], row["n"]): row["latency"] for row in gemm}
    times = {(name, rows): time_us for name, rows, time_us in parts["linear"]}
    for rows in (1, 64, 2048):
        assert times["o_proj", rows] == pytest.approx(measured[rows, 4096] * 32e3)
        assert times["qkv_proj", rows] == pytest.approx(measured[rows, 6144] * 32e3)

    model = TableLatency(
        table_of(meta, parts), MODEL, interconnect=LINK, host=HostOverhead(0.0, 0.0, "test")
    )
    attention = {(n, c): us for n, c, us in parts["decode_attention"]}
    logits = {rows: us for _, rows, us in parts["logits"]}
    linear_us: dict[int, float] = {}
    for (_, rows), us in times.items():
        linear_us[rows] = linear_us.get(rows, 0.0) + us

    def decode_us(sequences: int, context: int) -> float:
        batch = Batch(
            num_decodes=sequences,
            context_tokens=sequences * context,
            longest_tokens=context,
            num_tokens=sequences,
            num_emitting=sequences,
        )
        return model.iteration_s(batch) * 1e6

    def own_us(sequences: int, context: int) -> float:
        return linear_us[sequences] + logits[sequences] + attention[sequences, context]

    for sequences in (1, 8, 32, 128):
        assert decode_us(sequences, 1024) == pytest.approx(own_us(sequences, 1024), rel=1e-6)
        # Half-way between two of the package's contexts, and between two of its batch sizes.
        between = (own_us(sequences, 1024) + own_us(sequences, 2048)) / 2
        assert decode_us(sequences, 1536) == pytest.approx(between, rel=0.10)
    between = (own_us(64, 1024) + own_us(128, 1024)) / 2
    assert decode_us(96, 1024) == pytest.approx(between, rel=0.10)

    prefill = {new: us for new, _, us in parts["prefill_attention"]}
    for new in (1024, 2048, 4096, 8192):
        chunk = PrefillChunk(Request(0, 0.0, new, 1, 1), new, 0)
        batch = Batch(prefills=[chunk], num_tokens=new, num_emitting=1)
        expected_us = linear_us[new] + logits[1] + prefill[new]
        assert model.iteration_s(batch) * 1e6 == pytest.approx(expected_us, rel=1e-6)
    # A length whose own row exists is predicted from its neighbours alone.
    kept = [row for row in parts["prefill_attention"] if row[0] != 3072]
    alone = TableLatency(
        table_of(meta, {**parts, "prefill_attention": kept}),
        MODEL,
        interconnect=LINK,
        host=HostOverhead(0.0, 0.0, "test"),
    )
    chunk = PrefillChunk(Request(0, 0.0, 3072, 1, 1), 3072, 0)
    batch = Batch(prefills=[chunk], num_tokens=3072, num_emitting=1)
    expected_us = linear_us[3072] + logits[1] + prefill[3072]
    assert alone.iteration_s(batch) * 1e6 == pytest.approx(expected_us, rel=0.10)


@needs_package
@pytest.mark.parametrize("gpu", ["a100-80gb", "h100-sxm", "h200-sxm", "b200"])
def test_the_what_if_between_gpus_runs_from_measured_times(gpu: str) -> None:
    from orcast import simulate

    run = simulate("which-gpu", {"hardware.gpu": gpu, "workload.num_requests": 200})
    assert run.summary["latency"]["measured"] is True
    assert run.summary["completed"] == 200
    assert np.isfinite(run.summary["p99_tpot_ms"])


@needs_package
def test_experts_and_tensor_parallelism_compose_too() -> None:
    meta, parts = import_aiconfigurator(
        "h200-sxm", library.model("qwen3-30b-a3b"), tensor_parallel=2
    )
    assert meta["tensor_parallel"] == 2
    assert {"moe", "communication"} <= parts.keys()
