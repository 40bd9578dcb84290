"""Tables composed from aiconfigurator's kernel times: a small stand-in, and the package."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibrate.profiles.aiconfigurator import import_aiconfigurator
from calibrate.profiles.cached_prefixes import behind_prefixes
from calibrate.profiles.kernel_tables import version_key
from scenarios import library
from sim.batch import Batch, PrefillChunk
from sim.latency.protocol import HostOverhead
from sim.latency.table import TableLatency
from sim.latency.table_folder import TableError, read_table, table_of, write_table
from sim.request import Request
from tests import needs

MODEL = library.model("llama-3.1-8b")
LAYERS = 32
LINK = library.gpu("h200-sxm").interconnect
NO_HOST = HostOverhead(0.0, 0.0, "test")
VERSIONS = ("0.9.0", "0.10.0rc1", "0.10.0")
HEADS = {"num_heads": 32, "num_key_value_heads": 8, "head_dim": 128}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def gemm_ms(m: int, n: int, k: int) -> float:
    """Twice the ideal time of a card of 1e15 FLOP/s and 4e12 B/s."""
    return 2e3 * max(2 * m * n * k / 1e15, 2 * (n * k + m * (n + k)) / 4e12)


def prefill_ms(batch: int, length: int) -> float:
    return 0.01 + 1e-8 * batch * length**2


def decode_ms(batch: int, context: int) -> float:
    return 0.01 + 1e-6 * batch * context


@pytest.fixture
def systems(tmp_path: Path) -> Path:
    """The package's layout with one system, one backend, three versions."""
    root = tmp_path / "systems"
    data = root / "data" / "test_gpu"
    (root / "data" / "not_measured").mkdir(parents=True)
    for version in VERSIONS:
        slower = 1.0 if version == VERSIONS[-1] else 3.0
        write(
            data / "gemm" / "vllm" / version / "gemm_perf.parquet",
            [
                {"gemm_dtype": dtype, "m": m, "n": n, "k": k, "latency": slower * gemm_ms(m, n, k)}
                for dtype in ("bfloat16", "fp8")
                for m in (1, 16, 256, 4096)
                for n in (128, 1024, 4096, 8192, 65536)
                for k in (1024, 4096, 16384)
            ],
        )
        same = {**HEADS, "attn_dtype": "bfloat16", "window_size": 0}
        write(
            data / "attention" / "vllm" / version / "context_attention_perf.parquet",
            [
                {**same, **kind, "batch_size": b, "isl": s, "step": 0, "latency": factor * ms}
                for b in (1, 2)
                for s in (1, 16, 128, 256, 4096)
                for ms in (slower * prefill_ms(b, s),)
                for kind, factor in (
                    ({"kv_cache_dtype": "bfloat16"}, 1.0),
                    ({"kv_cache_dtype": "fp8"}, 0.5),
                    ({"kv_cache_dtype": "bfloat16", "window_size": 128}, 0.1),
                )
            ],
        )
        write(
            data / "attention" / "vllm" / version / "generation_attention_perf.parquet",
            [
                {**same, "kv_cache_dtype": kv, "batch_size": b, "isl": 1, "step": s, "latency": ms}
                for kv, factor in (("bfloat16", slower), ("fp8", 0.5))
                for b in (1, 16, 256)
                for s in (15, 255, 4095)
                for ms in (factor * decode_ms(b, s + 1),)
            ],
        )
    (root / "test_gpu.yaml").write_text(
        "gpu: {mem_bw: 4000000000000, bfloat16_tc_flops: 1000000000000000, fp8_tc_flops: 2e15}\n"
    )
    return root


def test_products_off_the_grid_run_at_their_neighbours_utilisation(systems: Path) -> None:
    meta, parts = import_aiconfigurator("test_gpu", MODEL, data=systems)
    assert "vllm 0.10.0 kernels" in meta["source"], "the newest, by number and not by letter"
    times = {(name, rows): time_us for name, rows, time_us in parts["linear"]}
    for name, width, depth in (
        ("qkv_proj", 6144, 4096),  # off the grid in width
        ("o_proj", 4096, 4096),  # on it
        ("gate_up_proj", 28672, 4096),
        ("down_proj", 4096, 14336),  # off in depth
    ):
        for rows in (1, 16, 256, 4096):
            expected_us = gemm_ms(rows, width, depth) * 1e3 * LAYERS
            assert times[name, rows] == pytest.approx(expected_us, rel=1e-9), name
    logits = {(name, rows): time_us for name, rows, time_us in parts["logits"]}
    assert logits["lm_head", 16] == pytest.approx(gemm_ms(16, 128256, 4096) * 1e3)


def test_attention_is_the_packages_own_rows(systems: Path) -> None:
    meta, parts = import_aiconfigurator("test_gpu", MODEL, data=systems)
    decode = {(n, c): us for n, c, us in parts["decode_attention"]}
    assert decode[16, 256] == pytest.approx(decode_ms(16, 256) * 1e3 * LAYERS)
    prefill = {(n, c): us for n, c, us in parts["prefill_attention"]}
    for length in (1, 16, 128, 256, 4096):
        assert prefill[length, 0] == pytest.approx(prefill_ms(1, length) * 1e3 * LAYERS)
    _, halved = import_aiconfigurator("test_gpu", MODEL, data=systems, kv_cache_dtype="fp8")
    assert halved["decode_attention"][0][2] == pytest.approx(parts["decode_attention"][0][2] / 2)
    assert meta["kv_cache_dtype"] == "auto"


def test_what_is_estimated_is_named_in_the_table(systems: Path) -> None:
    meta, parts = import_aiconfigurator("test_gpu", MODEL, data=systems)
    assert [text.partition(":")[0] for text in meta["estimated"]] == [
        "linear",
        "logits",
        "prefill_attention",
    ]
    estimated = {rows: us for name, rows, us in parts["linear"] if "estimated" in name}
    # Two norms with residual, rotary with the cache write, activation: a launch each, or at 80 %
    # of 4 TB/s half of their bytes as long as a kernel's fit the cache, all of them beyond.
    values = LAYERS * (8 * 4096 + 2 * 6144 + 3 * 14336) + 6 * 4096
    assert estimated[1] == pytest.approx(130 * 2.5)
    assert estimated[4096] == pytest.approx(2 * values * 4096 / 3.2e12 * 1e6)


def test_a_prefix_costs_its_pairs_and_never_less_than_a_decode(systems: Path) -> None:
    _, parts = import_aiconfigurator("test_gpu", MODEL, data=systems)
    prefill = {(n, c): us / LAYERS for n, c, us in parts["prefill_attention"]}
    # The stand-in's kernels compute 2 x 1e-8 ms a pair but for the launch.
    pairs_us = 2e-5 * 256 * 4096
    assert prefill[256, 4096] == pytest.approx(prefill[256, 0] + pairs_us, rel=0.01)
    assert prefill[16, 4096] == pytest.approx(prefill[16, 0] + pairs_us / 2, rel=0.01), "a tile"
    slow = behind_prefixes({1: 10.0, 128: 11.0, 4096: 300.0}, {16: 500.0, 8192: 900.0})
    assert slow[1, 4096] == pytest.approx(500 + 400 * (4097 - 16) / (8192 - 16))


def test_the_composed_table_writes_reads_and_answers(systems: Path, tmp_path: Path) -> None:
    meta, parts = import_aiconfigurator("test_gpu", MODEL, data=systems)
    write_table(tmp_path / "table", meta, parts)
    batch = Batch(num_decodes=16, context_tokens=16 * 256, num_tokens=16, num_emitting=16)
    answers = [
        TableLatency(table, MODEL, interconnect=LINK, host=NO_HOST).iteration_s(batch)
        for table in (table_of(meta, parts), read_table(tmp_path / "table"))
    ]
    assert answers[0] == pytest.approx(answers[1], rel=1e-5)
    assert answers[0] > LAYERS * 14e-6


def test_collectives_and_older_measurements_are_borrowed_by_name(systems: Path) -> None:
    data = systems / "data" / "test_gpu"
    sizes = (1024, 1048576)
    path = data / "comm" / "vllm" / "0.9.0" / "custom_allreduce_perf.parquet"
    rows = [
        {"num_gpus": 2, "message_size": size, "latency": ms, "backend": f"vllm_{kind}"}
        for size in sizes
        for kind, ms in (("eager", 0.9), ("graph", 0.004), ("graph", 0.005), ("graph", 0.009))
    ]
    write(path, rows)
    write(data / "comm" / "vllm" / "0.11.0" / "custom_allreduce_perf.parquet", rows[:1])
    nccl = {"op_name": "all_reduce", "nccl_dtype": "half", "num_gpus": 4}
    write(
        data / "comm" / "nccl" / "2.20" / "nccl_perf.parquet",
        [{**nccl, "message_size": size, "latency": 0.02} for size in sizes],
    )
    for name in ("context", "generation"):  # attention of a half and a quarter of the heads
        file = data / "attention" / "vllm" / VERSIONS[-1] / f"{name}_attention_perf.parquet"
        whole = pq.read_table(file).to_pylist()
        write(
            file,
            [
                {**row, "num_heads": 32 // degree, "num_key_value_heads": 8 // degree}
                for degree in (1, 2, 4)
                for row in whole
            ],
        )
    meta, parts = import_aiconfigurator("test_gpu", MODEL, data=systems, tensor_parallel=2)
    assert parts["communication"] == [
        ("all_reduce", 2, 2 * values, pytest.approx(11.9)) for values in sizes
    ], "values of 16 bits are counted, and bytes looked up"
    assert "comm of vllm 0.9.0" in meta["source"], "never of a newer version"
    meta, parts = import_aiconfigurator("test_gpu", MODEL, data=systems, tensor_parallel=4)
    assert parts["communication"][0] == ("all_reduce", 4, 2048, pytest.approx(26.9))
    assert "comm of nccl 2.20" in meta["source"]


def test_an_older_version_serves_where_the_newest_lacks_the_shape(systems: Path) -> None:
    attention = systems / "data" / "test_gpu" / "attention" / "vllm"
    for name in ("context_attention_perf", "generation_attention_perf"):
        rows = pq.read_table(attention / "0.10.0" / f"{name}.parquet").to_pylist()
        write(attention / "0.10.0" / f"{name}.parquet", [{**row, "head_dim": 64} for row in rows])
    meta, _ = import_aiconfigurator("test_gpu", MODEL, data=systems)
    assert "attention of vllm 0.10.0rc1" in meta["source"]


def test_versions_sort_by_number() -> None:
    versions = ["1.0.0", "1.3.0rc9", "1.3.0rc20", "1.3.0", "1.3.0.post1", "1.10.0"]
    assert sorted(reversed(versions), key=version_key) == versions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"system": "tpu"}, "no kernel times of 'tpu'; there are: test_gpu$"),
        ({"backend": "mine"}, "no kernels of 'mine' on test_gpu; there are: vllm"),
        ({"version": "7"}, "no version '7' of vllm .*; there are: 0.10.0, 0.10.0rc1, 0.9.0"),
        (
            {"model": library.model("qwen3-32b")},
            "no decode attention of 64 heads on 8 KV heads; there are: 32 to 32 on 8; backends of",
        ),
        ({"model": library.model("deepseek-v3"), "dtype": "fp8"}, "no mla_generation_module_perf"),
        ({"dtype": "fp8_block"}, "gemm_dtype fp8_block; there are: bfloat16, fp8"),
        ({"dtype": "int3"}, "unknown dtype 'int3'; known: bfloat16, fp8, fp8_block"),
        ({"kv_cache_dtype": "int4"}, "unknown kv_cache_dtype 'int4'; known: auto"),
        ({"tensor_parallel": 3}, "does not divide"),
    ],
)
def test_what_is_not_there_is_named(systems: Path, options: dict[str, Any], message: str) -> None:
    given = {"system": "test_gpu", "model": MODEL, **options}
    with pytest.raises(ValueError, match=message) as error:
        import_aiconfigurator(given.pop("system"), given.pop("model"), data=systems, **given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [float("nan"), -1.0, 0.0, None])
def test_a_bad_row_is_refused_with_its_file(systems: Path, bad: float | None) -> None:
    path = systems / "data" / "test_gpu" / "gemm" / "vllm" / "0.10.0" / "gemm_perf.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[7]["latency"] = bad
    write(path, rows)
    with pytest.raises(TableError, match=r"0\.10\.0/gemm_perf\.parquet: row 7: latency is"):
        import_aiconfigurator("test_gpu", MODEL, data=systems)
    path.write_text("not Parquet")
    with pytest.raises(TableError, match=r"gemm_perf\.parquet: "):
        import_aiconfigurator("test_gpu", MODEL, data=systems)


def test_without_the_package_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibrate.profiles.kernel_tables.find_spec", lambda name: None)
    with pytest.raises(TableError, match="pip install aiconfigurator-core"):
        import_aiconfigurator("h200-sxm", MODEL)


# -- a measured profile with prefixes ---------------------------------------------------------

PROFILE = needs.SHARED / "vllm-rtx4090" / "profile"


@needs.shared("vllm-rtx4090/profile")
def test_composed_prefixes_are_near_a_profiles_measured_ones() -> None:
    with (PROFILE / "tp1" / "attention.csv").open() as file:
        rows = [{key: float(text) for key, text in row.items()} for row in csv.DictReader(file)]
    prefill = {
        (int(row["prefill_chunk"]), int(row["kv_prefill"])): row["time_us"]
        for row in rows
        if row["prefill_chunk"] and not row["n_decode"]
    }
    single = {
        int(row["kv_decode"]): row["time_us"]
        for row in rows
        if not row["prefill_chunk"] and row["n_decode"] == 1
    }
    composed = behind_prefixes({new: us for (new, c), us in prefill.items() if c == 0}, single)
    errors = np.array([composed[key] / prefill[key] - 1 for key in composed if key in prefill])
    assert len(errors) >= 20
    assert np.median(np.abs(errors)) < 0.25
    assert np.abs(errors).max() < 0.5


# -- the package itself -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def h200() -> tuple[dict[str, Any], dict[str, list[Any]], dict[str, dict[Any, float]]]:
    """The imported table, and the package's own rows (µs) of one layer's kernels."""
    import aiconfigurator_core

    meta, parts = import_aiconfigurator("h200-sxm", MODEL)
    version = meta["source"].split("vllm ")[1].split(" ")[0]
    data = Path(aiconfigurator_core.__file__).parent / "systems" / "data" / "h200_sxm"
    heads = [
        ("num_heads", "=", 32),
        ("num_key_value_heads", "=", 8),
        ("head_dim", "=", 128),
        ("kv_cache_dtype", "=", "bfloat16"),
        ("attn_dtype", "=", "bfloat16"),
        ("window_size", "=", 0),
    ]

    def raw(family: str, name: str, key: tuple[str, ...], filters: list[Any]) -> dict[Any, float]:
        path = data / family / "vllm" / version / f"{name}.parquet"
        rows = pq.read_table(path, filters=filters).to_pylist()
        found = {tuple(row[k] for k in key): row["latency"] * 1e3 for row in rows}
        assert len(found) == len(rows) > 0, "the package measured each of these points once"
        return found

    own = {
        "gemm": raw("gemm", "gemm_perf", ("m", "n", "k"), [("gemm_dtype", "=", "bfloat16")]),
        "decode": raw("attention", "generation_attention_perf", ("batch_size", "step"), heads),
        "prefill": raw("attention", "context_attention_perf", ("batch_size", "isl"), heads),
    }
    return meta, parts, own


def h200_latency(h200: Any, **changed: Any) -> TableLatency:
    meta, parts, _ = h200
    table = table_of(meta, {**parts, **changed})
    return TableLatency(table, MODEL, interconnect=LINK, host=NO_HOST)


def decode_us(model: TableLatency, sequences: int, context: int) -> float:
    batch = Batch(
        num_decodes=sequences,
        context_tokens=sequences * context,
        longest_tokens=context,
        num_tokens=sequences,
        num_emitting=sequences,
    )
    return model.iteration_s(batch) * 1e6


def prefill_us(model: TableLatency, new: int) -> float:
    chunk = PrefillChunk(Request(0, 0.0, new, 1, 1), new, 0)
    return model.iteration_s(Batch(prefills=[chunk], num_tokens=new, num_emitting=1)) * 1e6


def bracketing_products_us(gemm: dict[Any, float], m: int, n: int, k: int) -> float:
    """A product's time by the package's own rows: linear between its neighbours' times."""

    def between(axis: list[int], value: int) -> list[tuple[int, float]]:
        low = max(x for x in axis if x <= value)
        high = min((x for x in axis if x >= value), default=low)
        share = 0.0 if high == low else (value - low) / (high - low)
        return [(low, 1 - share), (high, share)]

    scale = max(n / 65536, 1.0)  # the vocabulary is wider than anything measured
    widths = between(sorted({n for _, n, _ in gemm}), min(n, 65536))
    depths = between(sorted({k for _, _, k in gemm}), k)
    return scale * sum(gemm[m, n, k] * a * b for n, a in widths for k, b in depths)


def own_step_us(h200: Any, rows: int, emitting: int, attention_us: float) -> float:
    """The package's own products and attention, with the estimates the table declares."""
    _, parts, own = h200
    gemm = own["gemm"]
    layer = sum(
        bracketing_products_us(gemm, rows, n, k)
        for n, k in ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
    )
    estimated = sum(us for name, m, us in parts["linear"] if "estimated" in name and m == rows)
    estimated += sum(us for name, m, us in parts["logits"] if "estimated" in name and m == emitting)
    vocabulary = bracketing_products_us(gemm, emitting, 128256, 4096)
    return LAYERS * (layer + attention_us) + vocabulary + estimated


@needs.tables
def test_h200_products_on_the_grid_are_the_packages_rows(h200: Any) -> None:
    """But for those, about one in five, that were slow when their neighbours were not."""
    _, parts, own = h200
    shares = [
        us / (own["gemm"][rows, width, 4096] * LAYERS)
        for name, rows, us in parts["linear"]
        for width in [{"o_proj": 4096, "qkv_proj": 6144}.get(name)]
        if width is not None
    ]
    kept = [abs(share - 1) < 1e-12 for share in shares]
    assert 0.6 < np.mean(kept) < 1
    assert 0.75 < min(shares) < 0.95
    assert max(shares) < 1 + 1e-12


@needs.tables
def test_h200_decode_steps_are_within_a_tenth_of_the_packages_sums(h200: Any) -> None:
    model, own = h200_latency(h200), h200[2]["decode"]
    for sequences in (1, 8, 32, 128, 256):
        for context in (16, 128, 1024):
            expected_us = own_step_us(h200, sequences, sequences, own[sequences, context - 1])
            assert decode_us(model, sequences, context) == pytest.approx(expected_us, rel=0.10)
        # Half-way between two contexts.
        between = (own[sequences, 511] + own[sequences, 1023]) / 2
        expected_us = own_step_us(h200, sequences, sequences, between)
        assert decode_us(model, sequences, 768) == pytest.approx(expected_us, rel=0.10)
    # Between two batches: the products of 96 rows were measured, the attention was not.
    expected_us = own_step_us(h200, 96, 96, (own[64, 1023] + own[128, 1023]) / 2)
    assert decode_us(model, 96, 1024) == pytest.approx(expected_us, rel=0.10)


@needs.tables
def test_h200_prefills_are_within_a_tenth_of_the_packages_sums(h200: Any) -> None:
    model, own = h200_latency(h200), h200[2]["prefill"]
    for new in (16, 256, 1024, 2048, 4096, 8192):
        expected_us = own_step_us(h200, new, 1, own[1, new])
        assert prefill_us(model, new) == pytest.approx(expected_us, rel=0.10)


@needs.tables
@pytest.mark.parametrize("left_out", [512, 1536, 3072, 4096])
def test_a_prefill_length_that_is_left_out_is_found_between_its_neighbours(
    h200: Any, left_out: int
) -> None:
    _, parts, own = h200
    kept = [row for row in parts["prefill_attention"] if row[0] != left_out]
    linear = [row for row in parts["linear"] if row[1] != left_out]
    model = h200_latency(h200, prefill_attention=kept, linear=linear)
    expected_us = own_step_us(h200, left_out, 1, own["prefill"][1, left_out])
    assert prefill_us(model, left_out) == pytest.approx(expected_us, rel=0.10)


@needs.tables
@pytest.mark.parametrize("left_out", [(64, 1024), (32, 4096), (128, 2048)])
def test_a_decode_that_is_left_out_is_found_between_its_neighbours(
    h200: Any, left_out: tuple[int, int]
) -> None:
    _, parts, own = h200
    sequences, context = left_out
    kept = [r for r in parts["decode_attention"] if r[0] != sequences and r[1] != context]
    model = h200_latency(h200, decode_attention=kept)
    own_us = own["decode"][sequences, context - 1]
    expected_us = own_step_us(h200, sequences, sequences, own_us)
    assert decode_us(model, sequences, context) == pytest.approx(expected_us, rel=0.10)


@needs.tables
@pytest.mark.parametrize("gpu", ["a100-80gb", "h100-sxm", "h200-sxm", "b200"])
def test_the_what_if_between_gpus_runs_from_measured_times(gpu: str) -> None:
    from orcast import simulate

    run = simulate("which-gpu", {"hardware.gpu": gpu, "workload.num_requests": 200})
    assert run.summary["latency"]["measured"] is True
    assert run.summary["completed"] == 200
    assert np.isfinite(run.summary["p99_tpot_ms"])


@needs.tables
@pytest.mark.parametrize("gpu", ["a100-80gb", "h200-sxm"])
def test_experts_and_tensor_parallelism_compose_too(gpu: str) -> None:
    model = library.model("qwen3-30b-a3b")
    meta, parts = import_aiconfigurator(gpu, model, tensor_parallel=2)
    assert meta["tensor_parallel"] == 2 and meta["gpu"] == gpu
    assert parts["moe"] == sorted(parts["moe"]) and parts["moe"][0][1] == 128
    latency = TableLatency(
        table_of(meta, parts), model, tensor_parallel=2, interconnect=LINK, host=NO_HOST
    )
    assert 1e-3 < decode_us(latency, 16, 1024) / 1e6 < 0.1


@needs.tables
def test_four_bit_products_are_measured_where_the_package_has_them() -> None:
    model = library.model("llama-3.1-8b").quantised("int4")
    meta, parts = import_aiconfigurator("a100-80gb", model, backend="trtllm", version="1.0.0")
    assert (meta["dtype"], meta["kernel_dtype"]) == ("int4", "int4_wo")
    sixteen = import_aiconfigurator(
        "a100-80gb", library.model("llama-3.1-8b"), backend="trtllm", version="1.0.0"
    )
    four_us, sixteen_us = (
        sum(us for name, rows, us in each["linear"] if rows == 1 and "estimated" not in name)
        for each in (parts, sixteen[1])
    )
    assert 1.5 < sixteen_us / four_us < 3.9
    with pytest.raises(TableError):
        import_aiconfigurator("h200-sxm", model)
