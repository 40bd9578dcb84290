"""GPUs by name, alias, file and figures: what is taken, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from orcast import plan, simulate
from scenarios import library
from scenarios.errors import InputError
from scenarios.gpu_library import ALIASES
from scenarios.schema.load import load_scenario


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        *ALIASES.items(),
        ("H100-SXM", "h100-sxm"),
        ("NVIDIA H200", "h200-sxm"),
        ("rtx_4090", "rtx-4090"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_a_gpu_goes_by_the_names_people_use(given: str, name: str) -> None:
    assert library.gpu(given) == library.gpu(name)
    assert library.gpu(given).name == name


@pytest.mark.parametrize(
    ("given", "meant"),
    [("h200-sxn", "h200-sxm"), ("h200-nvl", "h200-sxm"), ("b20", "b200"), ("rtx-4080", "rtx-4090")],
)
def test_a_mistyped_gpu_is_told_the_near_one(given: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"did you mean '{meant}'"):
        library.gpu(given)


@pytest.mark.parametrize(
    "given",
    ["L4", "A10G", "T4", "V100", "A6000", "RTX 3090", "RTX 5090", "L40", "H20", "H800", "H100-NVL",
     "GH200", "B300", "GB200", "GB300", "MI325X", "MI355X", "TPU v5e", "TPU v6e", "Gaudi 3",
     "Trainium2"],
)  # fmt: skip
def test_the_cards_people_have_are_there(given: str) -> None:
    found = library.gpu(given)
    assert found.source and found.name in library.gpus()


@pytest.mark.parametrize("name", [name for name in library.gpus() if name != "cpu"])
def test_a_cards_figures_are_of_one_piece(name: str) -> None:
    gpu = library.gpu(name)
    if gpu.float8_flops_per_s is not None:
        assert gpu.float8_flops_per_s == pytest.approx(2 * gpu.bfloat16_flops_per_s, rel=0.03) or (
            name == "gaudi3"  # its matrix engines have one rate
        )
    if gpu.float4_flops_per_s is not None and gpu.float8_flops_per_s is not None:
        assert 1.99 < gpu.float4_flops_per_s / gpu.float8_flops_per_s <= 4
    assert (gpu.peak_watts is None) == ("publishes no power" in gpu.source)
    assert gpu.peak_watts is None or 0.02 < (gpu.idle_watts or 0) / gpu.peak_watts < 0.3
    assert "http" not in gpu.source


def test_power_takes_both_figures() -> None:
    own = {"like": "tpu-v5e", "peak_watts": 200}
    with pytest.raises(InputError, match="idle_watts is missing: power takes both"):
        library.gpu(own)
    with pytest.raises(InputError, match="idle_watts 300 exceeds peak_watts 200"):
        library.gpu({**own, "idle_watts": 300})


def test_integer_weights_run_at_the_rate_that_blackwell_ultra_has_left() -> None:
    assert (
        library.gpu("b300").peak_flops_per_s("int8")
        < 1e15
        < library.gpu("b200").peak_flops_per_s("int8")
    )
    assert library.gpu("rtx-3090").computes_in_few_bits("int8")


def test_figures_in_a_scenario_change_those_of_another() -> None:
    base = library.gpu("h100-sxm")
    own = library.gpu({"like": "h100", "memory_gb": 96, "fp4_tflops": 1, "link_gb_per_s": 100})
    assert own.name == "h100-sxm (changed)"
    assert (own.memory_bytes, own.float4_flops_per_s) == (96 * 10**9, 1e12)
    assert own.interconnect.bytes_per_s == 100e9
    assert own.bfloat16_flops_per_s == base.bfloat16_flops_per_s
    assert own.source.startswith("as h100-sxm but for what is told")
    assert library.gpu("h100-sxm") == base, "the library is as before"


def test_a_gpu_told_in_full_needs_no_other() -> None:
    figures: dict[str, Any] = {
        "name": "mine", "memory_gb": 64, "memory_bandwidth_gb_per_s": 2000, "bf16_tflops": 400,
        "price_usd_per_hour": 1.5,
    }  # fmt: skip
    own = library.gpu(figures)
    assert (own.name, own.memory_bytes_per_s, own.bfloat16_flops_per_s) == ("mine", 2e12, 4e14)
    with pytest.raises(InputError, match="mine: bf16_tflops is missing; or say which GPU"):
        library.gpu({key: value for key, value in figures.items() if key != "bf16_tflops"})


@pytest.mark.parametrize("named", [True, False])
def test_a_file_describes_a_gpu_as_the_librarys_does(named: bool) -> None:
    figures = "\n".join(
        f"{'  ' if named else ''}{line}"
        for line in (
            "memory_bytes: 5.0e+10", "memory_bytes_per_s: 1.0e+12", "bfloat16_flops_per_s: 1.0e+14",
            "float8_flops_per_s: null", "host_link_bytes_per_s: 3.0e+10", "price_usd_per_hour: 1",
            "source: mine", "interconnect: {bytes_per_s: 3.0e+10, latency_s: 1.0e-6, "
            "inter_node_bytes_per_s: 1.0e+10, inter_node_latency_s: 1.0e-5}",
        )
    )  # fmt: skip
    Path("card.yaml").write_text(f"mine:\n{figures}\n" if named else figures)
    assert library.gpu("card.yaml").name == ("mine" if named else "card")
    changed = library.gpu({"like": "card.yaml", "memory_gb": 80})
    assert (changed.memory_bytes, changed.memory_bytes_per_s) == (80 * 10**9, 1e12)
    summary = simulate(
        "quickstart",
        {"hardware.gpu": "card.yaml", "model": "qwen3-0.6b", "workload.num_requests": 5},
    ).summary
    assert summary["completed"] == 5


def test_a_file_may_speak_in_the_units_of_data_sheets(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("like: h100\nmemory_gb: 96\nprice_usd_per_hour: 2.2\n")
    own = library.gpu(str(file))
    assert (own.name, own.memory_bytes, own.price_usd_per_hour) == ("mine", 96e9, 2.2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("like: h100\nmemory: 96", "memory: unknown key; did you mean 'memory_gb'"),
        ("like: h900", "like: unknown GPU 'h900'"),
        ("like: h100\nmemory_gb: much", "memory_gb: expected a number, not 'much'"),
        ("memory_gb: 96", "memory_bandwidth_gb_per_s is missing"),
    ],
)
def test_a_file_in_those_units_is_checked(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=says):
        library.gpu(str(file))


def test_a_file_that_lacks_a_figure_is_refused() -> None:
    Path("card.yaml").write_text("memory_bytes: 5.0e+10\n")
    with pytest.raises(InputError, match="card: memory_bytes_per_s is missing"):
        library.gpu("card.yaml")


@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        ({"like": "h100-sxm", "memory_gib": 96}, r"gpu\.memory_gib: unknown key; did you mean"),
        ({"like": "h100-sxm", "memory_gb": -1}, r"hardware\.gpu\.memory_gb: -1: expected greater"),
        ({"like": "h100-sxm", "architecture": "x"}, "unknown architecture 'x'"),
        ({"like": "h300"}, "unknown GPU 'h300'; did you mean 'b300'"),
        ([1], r"hardware\.gpu: .*expected a string"),
    ],
)
def test_bad_figures_are_refused_in_one_line(gpu: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        simulate("quickstart", {"hardware.gpu": gpu, "workload.num_requests": 2})
    assert "\n" not in str(error.value)


def test_more_memory_holds_more_and_the_scenario_is_one_again() -> None:
    settings = {"workload.num_requests": 20}
    own = {"like": "h100", "memory_gb": 160}
    plain = simulate("quickstart", {**settings, "hardware.gpu": "h100"})
    more = simulate("quickstart", {**settings, "hardware.gpu": own})
    blocks = [run.deployment.memory.num_gpu_blocks for run in (plain, more)]
    assert blocks[1] > 1.8 * blocks[0]
    given = more.scenario["hardware"]["gpu"]
    assert (given["like"], given["memory_gb"]) == ("h100", 160.0)
    scenario, _ = load_scenario("quickstart", ["hardware.gpu={like: h100, memory_gb: 160}"])
    assert scenario.hardware.gpu_given == own


def test_a_plan_compares_gpus_by_alias_and_of_ones_own() -> None:
    few: dict[str, Any] = {
        "plan.candidates.replicas": {"max": 2}, "workload.num_requests": 200,
        "plan.candidates.engine": {}, "plan.candidates.layouts": [{"tensor_parallel": 1}],
    }  # fmt: skip
    named = plan("plan-chat", {**few, "plan.candidates.gpus": ["h100", "l40s"]})
    assert set(named.table["gpu"]) == {"h100-sxm", "l40s"}
    own = {"like": "h100", "name": "mine", "price_usd_per_hour": 1}
    mine = plan("plan-chat", {**few, "plan.candidates.gpus": None, "hardware.gpu": own})
    assert set(mine.table["gpu"]) == {"mine"}
