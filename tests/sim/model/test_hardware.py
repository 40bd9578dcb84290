"""The GPU library loads, is dense and plausible; bad figures are refused in one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sim.model.hardware import Gpu, Interconnect

GPUS = Path(__file__).parents[3] / "scenarios" / "gpus.yaml"
LIBRARY: dict[str, dict[str, Any]] = yaml.safe_load(GPUS.read_text())


def changed(**changes: Any) -> Gpu:
    return Gpu.from_mapping({**LIBRARY["h200-sxm"], **changes}, name="h200-sxm")


@pytest.mark.parametrize("name", LIBRARY)
def test_library_gpu_is_valid_and_has_numbers_not_text(name: str) -> None:
    mapping = LIBRARY[name]
    gpu = Gpu.from_mapping(mapping, name=name)
    assert gpu.name == name
    texts = [key for key, value in mapping.items() if isinstance(value, str)]
    assert set(texts) <= {"architecture", "source"}  # YAML 1.1 reads 3e12 as text


def test_library_has_the_promised_gpus() -> None:
    assert set(LIBRARY) == {
        "a100-40gb", "a100-80gb", "h100-sxm", "h100-pcie", "h200-sxm", "b200", "l40s",
        "rtx-4090", "rtx-pro-6000", "rtx-a6000", "rtx-3090", "mi300x", "cpu", "l4", "a10g", "t4",
        "v100-32gb", "l40", "rtx-5090", "h20", "h800-sxm", "h100-nvl", "gh200-96gb", "b300",
        "gb200", "gb300", "mi325x", "mi355x", "tpu-v5e", "tpu-v6e", "gaudi3", "trainium2",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(LIBRARY) - {"gaudi3", "trainium2"}))
def test_eight_bit_peak_is_the_dense_double_of_sixteen_bit(name: str) -> None:
    gpu = Gpu.from_mapping(LIBRARY[name], name=name)
    if gpu.float8_flops_per_s is None:
        assert gpu.peak_flops_per_s("float8") == gpu.bfloat16_flops_per_s
    else:
        assert gpu.peak_flops_per_s("float8") == pytest.approx(
            2 * gpu.bfloat16_flops_per_s, rel=0.02
        )
    assert gpu.peak_flops_per_s("float16") == gpu.bfloat16_flops_per_s


def test_four_bit_peak_is_at_least_the_dense_double_of_eight_bit() -> None:
    several = [Gpu.from_mapping(LIBRARY[name], name=name) for name in LIBRARY]
    fast = [gpu for gpu in several if gpu.float4_flops_per_s is not None]
    assert {gpu.name for gpu in fast} >= {"b200", "b300", "gb200", "rtx-5090", "mi355x"}
    for gpu in fast:
        assert gpu.float8_flops_per_s is not None
        assert 1.95 <= gpu.peak_flops_per_s("nvfp4") / gpu.float8_flops_per_s <= 4.1
        assert not gpu.unpacks("nvfp4")


def test_weights_of_four_bits_are_unpacked_where_tensor_cores_have_none() -> None:
    hopper = changed()
    for dtype in ("nvfp4", "mxfp4", "int4", "int8_wo"):
        assert hopper.unpacks(dtype)
        assert hopper.peak_flops_per_s(dtype) == hopper.bfloat16_flops_per_s
    assert changed(int8_flops_per_s=2e15).peak_flops_per_s("int8") == 2e15
    assert hopper.peak_flops_per_s("int8") == hopper.float8_flops_per_s


def test_a100_has_no_eight_bit_tensor_cores_and_its_dense_peak() -> None:
    gpu = Gpu.from_mapping(LIBRARY["a100-80gb"], name="a100-80gb")
    assert gpu.float8_flops_per_s is None
    assert gpu.bfloat16_flops_per_s == 312e12  # 624 would be the sparse figure


def test_number_written_as_text_is_understood() -> None:
    assert changed(memory_bytes_per_s="4.8e12").memory_bytes_per_s == 4.8e12


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"memory_bytes": -1}, "memory_bytes must be a positive finite number, not -1"),
        ({"memory_bytes_per_s": float("nan")}, "memory_bytes_per_s must be a positive finite"),
        ({"bfloat16_flops_per_s": float("inf")}, "bfloat16_flops_per_s must be a positive"),
        ({"price_usd_per_hour": True}, "price_usd_per_hour must be a positive finite"),
        ({"float8_flops_per_s": "fast"}, "float8_flops_per_s must be a positive finite"),
        ({"host_link_bytes_per_s": None}, "host_link_bytes_per_s must be a positive"),
        ({"memory_byte": 3}, "unknown key 'memory_byte'; allowed: memory_bytes"),
        ({"source": ""}, "source must be a text"),
        ({"interconnect": 3}, r"h200-sxm\.interconnect: must be a mapping"),
        ({"interconnect": {"bytes_per_s": 1}}, r"h200-sxm\.interconnect: latency_s is missing"),
    ],
)
def test_bad_figure_is_refused_in_one_clear_line(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        changed(**changes)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("h200-sxm")


def test_missing_figure_is_named() -> None:
    mapping = {key: value for key, value in LIBRARY["l40s"].items() if key != "memory_bytes"}
    with pytest.raises(ValueError, match="l40s: memory_bytes is missing"):
        Gpu.from_mapping(mapping, name="l40s")


def test_interconnect_stands_alone_too() -> None:
    link = Interconnect.from_mapping(LIBRARY["b200"]["interconnect"], name="mine")
    assert link.bytes_per_s == 900e9
