"""Source auto: measured where somebody measured, analytic part by part, and said of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orcast.composed import compose
from scenarios import library
from scenarios.errors import InputError
from scenarios.forecast.basis import basis
from scenarios.forecast.deployment import Deployment, deploy
from scenarios.forecast.provenance import latency_origins
from scenarios.schema.latency import Latency
from scenarios.schema.load import parse_scenario
from sim.batch import Batch, PrefillChunk
from sim.latency.overlapped import OverlappedLatency
from sim.latency.roofline import RooflineLatency
from sim.latency.table import TableLatency
from sim.request import Request
from tests import needs

SMALL = {
    "name": "small",
    "model": "llama-3.1-8b",
    "hardware": {"gpu": "h100-sxm"},
    "workload": {
        "arrivals": {"process": "all_at_once"},
        "lengths": {
            "prompt": {"distribution": "fixed", "tokens": 64},
            "output": {"distribution": "fixed", "tokens": 4},
        },
        "num_requests": 2,
    },
}


EIGHT = {"gpu": "h100-sxm", "tensor_parallel": 8}
NO_HOST = {"host_overhead": {"per_iteration_us": 0}}


def deployed(**sections: Any) -> Deployment:
    return deploy(parse_scenario({**SMALL, **sections}, origin="small"), compose=compose)


def source(deployment: Deployment) -> Any:
    latency = deployment.latency
    return latency.inner if isinstance(latency, OverlappedLatency) else latency


def origins(deployment: Deployment) -> dict[str, str]:
    return {one.part: one.source for one in latency_origins(deployment)}


def test_auto_is_the_default_and_what_is_given_alone_names_its_source() -> None:
    assert Latency().source == "auto"
    assert Latency.model_validate({"gemm_efficiency": 0.7}).source == "roofline"
    assert Latency.model_validate({"table": "tables/mine"}).source == "table"
    with pytest.raises(ValueError, match="gemm_efficiency belongs to source roofline, not auto"):
        Latency.model_validate({"source": "auto", "gemm_efficiency": 0.7})


def test_without_a_composer_auto_is_the_roofline() -> None:
    latency = source(deploy(parse_scenario(SMALL, origin="small")))
    assert isinstance(latency, RooflineLatency)
    assert basis(latency) == "analytic"


@needs.tables
def test_a_measured_deployment_says_whose_kernels_and_what_is_assumed() -> None:
    deployment = deployed()
    assert isinstance(source(deployment), TableLatency)
    assert basis(deployment.latency) == "measured" and deployment.latency.measured
    assert deployment.latency.label.startswith("measured kernels: vllm ")
    assert ";" not in deployment.latency.label, "nothing is estimated"
    told = origins(deployment)
    assert told["Linear layers, norms, activations"].startswith("measured, vllm ")
    assert "assumed for generation vllm" in told["Host"]


@needs.tables
def test_what_was_not_measured_is_analytic_and_named() -> None:
    deployment = deployed(engine={"weight_dtype": "int4"})
    assert isinstance(source(deployment), TableLatency)
    assert basis(deployment.latency) == "analytic" and not deployment.latency.measured
    assert deployment.latency.label.endswith("; analytic: linear")
    told = origins(deployment)
    assert told["Linear layers, norms, activations"].startswith("analytic, roofline: ")
    assert "there are: bfloat16, fp8" in told["Linear layers, norms, activations"]
    assert told["Attention of decodes"].startswith("measured, vllm ")


@needs.tables
def test_kernels_of_another_engine_are_estimates_of_vllms() -> None:
    """Weight-only int4 on an A100 was measured with TensorRT-LLM alone."""
    given: dict[str, Any] = {"hardware": {"gpu": "a100-80gb"}, "engine": {"weight_dtype": "int4"}}
    deployment = deployed(**given)
    assert basis(deployment.latency) == "estimated" and deployment.latency.measured
    assert "trtllm" in deployment.latency.label
    assert "for kernels of vllm" in origins(deployment)["Attention of decodes"]
    asked = deployed(**given, latency={"backend": "trtllm"})
    assert basis(asked.latency) == "measured"


@needs.tables
@pytest.mark.parametrize(
    "hardware",
    [
        {"gpu": "rtx-4090"},  # not among the package's
        {"gpu": "h100-sxm", "pipeline_parallel": 2},
    ],
)
def test_where_nothing_is_measured_auto_is_the_roofline(hardware: dict[str, Any]) -> None:
    deployment = deployed(hardware=hardware)
    assert not deployment.latency.measured
    assert deployment.latency.label.startswith("roofline (analytic, unmeasured)")


@needs.tables
def test_the_times_of_a_partly_analytic_table_are_the_rooflines_where_it_is() -> None:
    """Int4's products at the points of the grid, less what a table estimates by itself."""
    given = {"engine": {"weight_dtype": "int4"}}
    table = source(deployed(**given)).table
    roofline = source(deployed(**given, latency={"source": "roofline"}))
    operations = roofline.model.linear_operations()
    parts = table.parts["linear"].operations()
    for operation in operations:
        part = parts[operation.name]
        at = part.coordinates["tokens"].tolist().index(1024)
        expected_s = float(roofline._linear_s(operation, part.coordinates["tokens"])[at])
        assert part.time_s[at] == pytest.approx(expected_s)


@needs.tables
def test_scales_of_float8_are_different_kernels() -> None:
    def label(**engine: Any) -> str:
        return deployed(engine={"weight_dtype": "fp8", **engine}).latency.label

    assert ";" not in label() == label(float8_scales="tensor")
    assert label(float8_scales="channel").endswith("; estimated: linear")
    blocks = deployed(engine={"weight_dtype": "fp8", "float8_scales": "block"})
    assert "fp8_block products of sglang" in origins(blocks)["Linear layers, norms, activations"]


@needs.tables
def test_weights_of_four_bits_are_measured_where_a_gpu_computes_in_them() -> None:
    nvfp4 = {"weight_dtype": "nvfp4"}
    measured = deployed(hardware={"gpu": "b200"}, engine=nvfp4)
    assert basis(measured.latency) == "estimated", "of several engines' kernels, the fastest"
    told = origins(measured)["Linear layers, norms, activations"]
    assert "nvfp4 products as" in told and "ran them, where faster" in told
    assert deployed(engine=nvfp4).latency.label.endswith("; analytic: linear")


def test_scales_without_float8_are_refused() -> None:
    with pytest.raises(InputError, match=r"^scenario: engine\.float8_scales: the weights are bfl"):
        deployed(engine={"float8_scales": "block"})


@needs.tables
def test_a_checkpoint_says_what_has_a_scale(tmp_path: Path) -> None:
    config = dict(library.model_config(library.model_path("llama-3.1-8b")))
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    path = tmp_path / "blocks.json"
    path.write_text(json.dumps(config))
    model = deployed(model=str(path)).model
    assert (model.weight_dtype, model.float8_scales) == ("float8", "block")
    assert deployed(model=str(path), engine={"float8_scales": "tensor"}).model.float8_scales == (
        "tensor"
    )


@needs.tables
def test_prompts_wait_for_their_launches_where_the_engine_has_no_graphs_for_them() -> None:
    prompt, decode = Batch(prefills=[PrefillChunk(Request(0, 0.0, 1, 1, 1), 8, 0)]), Batch()
    prompt.num_tokens = prompt.num_seqs = 8
    decode.num_decodes = decode.num_tokens = decode.num_seqs = decode.num_emitting = 1
    decode.context_tokens = 64
    asked = {
        backend: source(deployed(hardware=EIGHT, latency={"backend": backend, **NO_HOST}))
        for backend in ("vllm", "trtllm")
    }
    launched_s = 610e-6 * 32  # of every layer
    assert asked["trtllm"].iteration_s(prompt) == pytest.approx(launched_s)
    assert asked["vllm"].iteration_s(prompt) < 0.5 * launched_s
    for latency in asked.values():
        assert latency.iteration_s(decode) < 0.5 * launched_s


@needs.tables
def test_a_backend_that_was_not_measured_is_named_with_those_that_were() -> None:
    with pytest.raises(InputError, match=r"latency: no kernels of 'mine' on h100_sxm; there are"):
        deployed(latency={"backend": "mine"})
