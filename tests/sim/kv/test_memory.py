"""The memory budget against textbook answers and a recorded engine."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sim.kv.memory import MemoryBudget, memory_budget
from sim.kv.profiling_run import (
    COMMUNICATOR_BYTES,
    CUDA_GRAPH_BYTES,
    ProfilingRun,
    activation_bytes,
)
from sim.model.config import read_config
from sim.model.hardware import Gpu
from sim.model.parallelism import Parallelism
from sim.model.spec import ModelSpec

SCENARIOS = Path(__file__).parents[3] / "scenarios"
GPUS = yaml.safe_load((SCENARIOS / "gpus.yaml").read_text())


def model(name: str) -> ModelSpec:
    text = (SCENARIOS / "models" / f"{name}.json").read_text()
    return read_config(json.loads(text), name=name)


def budget(model_name: str, gpu_name: str, **settings: Any) -> MemoryBudget:
    return memory_budget(
        model(model_name), Gpu.from_mapping(GPUS[gpu_name], name=gpu_name), **settings
    )


@pytest.mark.parametrize("tokens", [2048, 8192])
def test_13b_on_an_a100_40gb_holds_six_to_eight_sequences_of_2048(tokens: int) -> None:
    assert 6 <= budget("opt-13b", "a100-40gb", max_num_batched_tokens=tokens).slots // 2048 <= 8


@pytest.mark.parametrize("tensor_parallel", [1, 8])
def test_gpt3_in_half_precision_needs_eleven_a100_40gb(tensor_parallel: int) -> None:
    """Its weights alone would do with ten, of which no division has room for the rest."""
    with pytest.raises(
        ValueError,
        match=r"; 11 GPUs .* would do \(pipeline_parallel 11\), or 16 \(tensor_parallel 16\)$",
    ) as error:
        budget("gpt-3-175b", "a100-40gb", tensor_parallel=tensor_parallel)
    assert f"gpt-3-175b does not fit on {tensor_parallel} x a100-40gb" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "gpu", "settings"),
    [
        ("gpt-3-175b", "a100-40gb", {}),
        ("llama-3.1-405b", "a100-80gb", {}),
        ("llama-3.1-405b", "a100-80gb", {"gpu_memory_utilization": 0.6}),
        ("deepseek-v3", "h100-sxm", {}),
        ("qwen2.5-14b", "rtx-4090", {"max_num_batched_tokens": 2048}),  # 40 heads, 8 of keys
    ],
)
def test_what_a_refusal_says_would_do_can_be_deployed(
    name: str, gpu: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=" would do ") as error:
        budget(name, gpu, **settings)
    said = re.findall(r"(\d+)(?: GPUs of that kind would do)? \(([^)]*)\)", str(error.value))
    assert said
    for gpus, degrees in said:
        given = {key: int(value) for key, value in (one.split() for one in degrees.split(", "))}
        spread = Parallelism(**given)
        assert spread.num_gpus == int(gpus)
        assert budget(name, gpu, parallelism=spread, **settings).num_gpu_blocks > 0


def test_llama_on_an_rtx_4090_is_near_the_recorded_engine() -> None:
    recorded_blocks = 2588  # vLLM 0.19 on that card, which kept CUDA graphs out of the budget
    settings = {"max_num_batched_tokens": 2048, "max_num_seqs": 256}
    then = budget("llama-3.1-8b", "rtx-4090", profiling=ProfilingRun(graphs=False), **settings)
    today = budget("llama-3.1-8b", "rtx-4090", **settings)
    assert then.num_gpu_blocks == pytest.approx(recorded_blocks, rel=0.03)
    assert then.reserve_bytes - today.reserve_bytes == -CUDA_GRAPH_BYTES


def test_each_group_of_ranks_has_buffers_of_its_own() -> None:
    alone = ProfilingRun().reserve_bytes(Parallelism())
    one = ProfilingRun().reserve_bytes(Parallelism(tensor_parallel=8))
    two = ProfilingRun().reserve_bytes(Parallelism(tensor_parallel=2, pipeline_parallel=4))
    assert (one - alone, two - alone) == (COMMUNICATOR_BYTES, 2 * COMMUNICATOR_BYTES)
    assert ProfilingRun(context=True).reserve_bytes(Parallelism()) > alone


def test_parts_add_up_to_what_may_be_used() -> None:
    got = budget("llama-3.1-70b", "h100-sxm", tensor_parallel=4, block_size=32)
    total = got.weight_bytes + got.activation_bytes + got.reserve_bytes + got.kv_bytes
    assert total == got.usable_bytes == int(85029027840 * 0.9)
    assert got.num_gpu_blocks == got.kv_bytes // got.bytes_per_block
    assert got.slots == got.num_gpu_blocks * 32
    assert got.bytes_per_block == 32 * 327_680 // 4


def test_fp8_cache_holds_twice_the_tokens() -> None:
    half, full = (
        budget("llama-3.1-8b", "h200-sxm", kv_cache_dtype=dtype).num_gpu_blocks
        for dtype in ("auto", "fp8")
    )
    assert full in (2 * half, 2 * half + 1)


def test_more_gpus_leave_more_room() -> None:
    slots = [budget("llama-3.1-70b", "h200-sxm", tensor_parallel=tp).slots for tp in (2, 4, 8)]
    assert slots == sorted(slots)


def test_suggested_number_of_gpus_is_the_smallest_that_works() -> None:
    with pytest.raises(ValueError, match=r"; 2 GPUs of that kind would do \(tensor_parallel 2\)$"):
        budget("llama-3.1-70b", "h200-sxm")
    assert budget("llama-3.1-70b", "h200-sxm", tensor_parallel=2).num_gpu_blocks > 0


def test_override_replaces_the_estimate_but_weights_must_still_fit() -> None:
    settings = {"max_num_batched_tokens": 2048, "num_gpu_blocks_override": 999_999}
    got = budget("llama-3.1-8b", "rtx-4090", **settings)
    assert got.num_gpu_blocks == 999_999
    tight = budget("llama-3.1-8b", "rtx-4090", gpu_memory_utilization=0.65, **settings)
    assert tight.num_gpu_blocks == 999_999  # no room for one block by our own estimate
    with pytest.raises(ValueError, match="does not fit on 1 x rtx-4090"):
        budget("llama-3.1-70b", "rtx-4090", **settings)


def test_a_given_cache_is_as_large_as_that_and_must_fit_beside_the_rest() -> None:
    found = budget("llama-3.1-8b", "rtx-4090", kv_cache_bytes=4 * 2**30)
    assert found.kv_bytes == 4 * 2**30
    assert found.num_gpu_blocks == 4 * 2**30 // found.bytes_per_block
    assert found.spare_bytes > 0
    with pytest.raises(ValueError, match=r"kv_cache_memory_gib 40: expected 0\.002 \(a block\) to"):
        budget("llama-3.1-8b", "rtx-4090", kv_cache_bytes=40 * 2**30)
    with pytest.raises(ValueError, match="does not fit on 1 x rtx-4090"):
        budget("llama-3.1-70b", "rtx-4090", kv_cache_bytes=2**30)


def test_batch_too_large_for_any_number_of_gpus_says_so() -> None:
    with pytest.raises(ValueError, match="would not help; lower max_num_batched_tokens"):
        budget("qwen3-0.6b", "rtx-4090", max_num_batched_tokens=20_000_000)


def test_activation_peak_is_one_layer_for_many_tokens_and_the_sampler_for_many_rows() -> None:
    llama = model("llama-3.1-8b")
    assert activation_bytes(llama, 8192, 1) == 8192 * (2 * 4096 + 3 * 14336) * 2
    assert activation_bytes(llama, 256, 256) == 256 * (2 * 4096 + 38 * 128256)
    assert activation_bytes(llama, 8192, 1, 8) == 8192 * (2 * 4096 + 3 * 14336 // 8) * 2
    rejecting = activation_bytes(llama, 256, 256, sampler="flashinfer")
    assert rejecting == 256 * (2 * 4096 + 14 * 128256)


def test_experts_take_a_chunk_of_what_all_ranks_have_gathered() -> None:
    mixture = model("qwen3-30b-a3b")  # 8 of 128 experts of width 768, hidden 2048
    of_token = 8 * (2048 + 768)
    assert activation_bytes(mixture, 8192, 1) == 8192 * (2 * 2048 + of_token) * 2
    four = 8192 * 2 * 2048 + 32768 * (of_token + 2 * 2048)
    assert activation_bytes(mixture, 8192, 1, ranks=4) == four * 2
    eight = 8192 * 2 * 2048 + 32768 * of_token + 65536 * 2 * 2048
    assert activation_bytes(mixture, 8192, 1, ranks=8) == eight * 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"gpu_memory_utilization": 0.0}, "gpu_memory_utilization must be above 0"),
        ({"gpu_memory_utilization": 1.5}, "at most 1, not 1.5"),
        ({"gpu_memory_utilization": float("nan")}, "not nan"),
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"max_num_seqs": -3}, "max_num_seqs must be at least 1"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens must be at least 1"),
        ({"num_gpu_blocks_override": 0}, "num_gpu_blocks_override must be at least 1"),
        ({"tensor_parallel": 3}, "attention heads"),
        ({"kv_cache_dtype": "fp3"}, "unknown kv_cache_dtype 'fp3'"),
    ],
)
def test_bad_setting_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        budget("llama-3.1-8b", "h200-sxm", **settings)


# -- spread over several GPUs -----------------------------------------------------------------


def spread(model_name: str, **degrees: Any) -> MemoryBudget:
    return budget(model_name, "h200-sxm", parallelism=Parallelism(**degrees))


def test_stages_hold_the_cache_of_their_layers() -> None:
    whole, staged = spread("llama-3.1-8b"), spread("llama-3.1-8b", pipeline_parallel=4)
    assert staged.bytes_per_block == whole.bytes_per_block // 4
    assert staged.slots > 4 * whole.slots, "a quarter of the weights, too"


def test_the_stage_with_least_room_decides() -> None:
    staged = spread("llama-3.1-8b", pipeline_parallel=5)  # 7, 7, 6, 6, 6 layers
    assert staged.bytes_per_block == 16 * 131_072 * 7 // 32
    first = model("llama-3.1-8b").stages(5)[0]
    assert staged.weight_bytes == first.weight_bytes(first_stage=True, last_stage=False)


@pytest.mark.parametrize("kind", ["ulysses", "ring"])
def test_ranks_of_a_sequence_share_its_cache_and_not_the_weights(kind: str) -> None:
    whole = spread("llama-3.1-8b")
    split = spread("llama-3.1-8b", sequence_parallel=8, sequence_kind=kind)
    assert split.weight_bytes == whole.weight_bytes
    assert split.bytes_per_block == whole.bytes_per_block // 8
    assert split.slots > 7.9 * whole.slots, "but for the buffers of their group"


@pytest.mark.parametrize(("name", "tp", "ranks"), [("llama-3.1-70b", 16, 2), ("deepseek-v3", 8, 8)])
def test_ranks_that_share_out_contexts_hold_so_many_times_the_tokens(
    name: str, tp: int, ranks: int
) -> None:
    copies, shared = (
        budget(
            name, "b200", null_block=True, block_size=16,
            parallelism=Parallelism(tensor_parallel=tp, decode_context_parallel=degree),
        )
        for degree in (1, ranks)
    )  # fmt: skip
    assert shared.block_size == 16 * ranks
    assert shared.bytes_per_block == copies.bytes_per_block
    assert (shared.num_gpu_blocks, shared.null_blocks) == (copies.num_gpu_blocks, 1)
    assert shared.slots == ranks * copies.slots == (copies.num_gpu_blocks - 1) * 16 * ranks


def test_ranks_of_experts_add_up_their_blocks() -> None:
    dealt = spread("deepseek-v3", expert_parallel=8)
    held = dealt.num_gpu_blocks * dealt.bytes_per_block
    assert dealt.kv_bytes - 16 * 61 * 576 * 2 < held <= dealt.kv_bytes
    moved = spread("deepseek-v3", expert_parallel=32)
    assert moved.weight_bytes < 0.5 * dealt.weight_bytes


def test_four_bits_leave_room_for_more_cache() -> None:
    gpu = Gpu.from_mapping(GPUS["h100-sxm"], name="h100-sxm")
    sixteen, eight, four = (
        memory_budget(model("llama-3.1-8b").quantised(kind), gpu)
        for kind in ("bf16", "fp8", "int4")
    )
    assert sixteen.weight_bytes - four.weight_bytes == four.kv_bytes - sixteen.kv_bytes
    assert sixteen.slots < eight.slots < four.slots


def test_what_does_not_fit_on_many_gpus_says_how_many_there_are() -> None:
    with pytest.raises(ValueError, match=r"deepseek-v3 does not fit on 4 x h200-sxm: each GPU"):
        spread("deepseek-v3", pipeline_parallel=2, expert_parallel=2)
