"""What kernels reach of a GPU's peaks: by architecture, and against those it was fitted to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from calibrate.profiles.kernel_tables import KernelTables, find_system
from sim.model.hardware import Gpu
from sim.model.kernel_rates import ARCHITECTURES, ASSUMED
from tests import needs

GPUS: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[3] / "scenarios" / "gpus.yaml").read_text()
)


def gpu(name: str, **changed: Any) -> Gpu:
    return Gpu.from_mapping(GPUS[name] | changed, name=name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shares_of_peaks_are_shares(name: str) -> None:
    rates = ARCHITECTURES[name]
    for kind in (rates.products, rates.products_float8, rates.experts, rates.experts_float8):
        assert 0 < kind.efficiency <= 1
        assert 0 < kind.memory_efficiency <= 1
        assert 0 <= kind.overhead_s < 1e-4
    assert 0 < rates.attention.efficiency <= 1
    assert 0 < rates.attention.memory_efficiency <= 1


def test_a_gpu_has_its_architectures_kernels_and_one_without_the_assumed() -> None:
    assert gpu("h200-sxm").kernel_rates is ARCHITECTURES["hopper"]
    assert gpu("b200").kernel_rates is ARCHITECTURES["blackwell"]
    assert gpu("mi300x").architecture is None
    assert gpu("mi300x").kernel_rates is ASSUMED


def test_an_unknown_architecture_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="h100-sxm: unknown architecture 'hoper'; allowed: ampere"):
        gpu("h100-sxm", architecture="hoper")


@pytest.mark.parametrize(
    ("name", "dtype", "few_bits"),
    [
        ("h100-sxm", "bfloat16", False), ("h100-sxm", "float8", True),
        ("a100-80gb", "float8", False), ("b200", "int4", False), ("h100-sxm", "nvfp4", False),
    ],
)  # fmt: skip
def test_products_are_of_few_bits_where_tensor_cores_have_them(
    name: str, dtype: str, few_bits: bool
) -> None:
    assert gpu(name).computes_in_few_bits(dtype) == few_bits
    rates = gpu(name).kernel_rates
    products = rates.products_float8 if few_bits else rates.products
    assert rates.products_of(few_bits=few_bits) is products


@needs.tables
@pytest.mark.parametrize(
    ("name", "error"),
    [("h100-sxm", 0.08), ("h200-sxm", 0.09), ("b200", 0.10), ("l40s", 0.13), ("a100-80gb", 0.10)],
)
def test_products_are_as_near_to_measured_ones_as_is_said(name: str, error: float) -> None:
    card, system = gpu(name), find_system(name)
    rates = card.kernel_rates.products
    tables = KernelTables(system, "vllm", system.versions("vllm")[0])
    points = [(*shape, time_us) for shape, time_us in tables.products("bfloat16").items()]
    width, depth, rows, measured_us = np.array(points).T
    narrow, wide = np.minimum(width, depth), np.maximum(width, depth)
    fitted = (narrow >= 1024) & (wide <= 32768) & (width * depth >= 2**21)
    fitted &= (np.log2(rows) % 1 == 0) & (rows <= 16384)
    width, depth, rows, measured_us = (x[fitted] for x in (width, depth, rows, measured_us))
    assert len(rows) > 1000
    compute_s = 2 * rows * width * depth / (card.bfloat16_flops_per_s * rates.efficiency)
    moved = 2 * (width * depth + rows * (width + depth))
    memory_s = moved / (card.memory_bytes_per_s * rates.memory_efficiency)
    fitted_us = (rates.overhead_s + np.maximum(compute_s, memory_s)) * 1e6
    assert np.abs(np.log(fitted_us / measured_us)).mean() < error
