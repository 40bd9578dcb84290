"""The table of docs/lecture-figures.md: every figure of ours is computed again."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import orcast
from orcast.forecasted import Forecasted
from scenarios import library
from scenarios.errors import InputError
from scenarios.sizing.layer_tensors import ActivationSettings, layer_activations
from scenarios.sizing.model_anatomy import forward_flops_per_token, parameter_split
from scenarios.sizing.scaling_fit import fit_power, read_one_column
from scenarios.sizing.scaling_law import JOINT_MIXTURE, LAWS, RosenfeldLaw
from scenarios.sizing.training import Degrees
from scenarios.sizing.training_figures import training_figures
from scenarios.sizing.training_layout import layouts
from scenarios.sizing.training_step import training_step
from sim.kv.cache import BlockAllocator
from sim.speculation.acceptance import chain
from tests import needs

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "lecture-figures.md"
EXAMPLES = ROOT / "docs" / "examples"
POOL = EXAMPLES / "request-pool.csv"
GOPHER = 5.76e23  # FLOPs


@cache
def ran(name: str, *settings: tuple[str, Any]) -> Forecasted:
    return orcast.simulate(name, overrides=dict(settings))


def timetable() -> str:
    runs = [ran("static-vs-continuous", ("engine.scheduler", name)) for name in ("static", "orca")]
    return " / ".join(str(run.summary["iterations"]) for run in runs)


def request_pool() -> str:
    requests = ran(
        "static-vs-continuous", ("workload.trace", str(POOL)), ("engine.max_num_seqs", 3)
    ).requests
    began, ended = requests["scheduled_s"], requests["finished_s"]
    batches = [
        " ".join(f"R{number + 1}" for number in np.flatnonzero((began <= at) & (at < ended)))
        for at in (0, 1, 2)
    ]
    return "; ".join(batches)


def block_table() -> str:
    allocator, table, found = BlockAllocator(8, 4), list[int](), []
    for tokens in (6, 7, 8, 9):
        allocator.grow(table, tokens)
        assert len(table) == len(allocator.filled(tokens))
        found.append(" ".join(map(str, allocator.filled(tokens))))
    return "; ".join(found)


def useful(*settings: tuple[str, Any]) -> float:
    return float(ran("kv-waste", *settings).summary["kv_utilization"])


def reserved_memory() -> str:
    kinds = ("max_model_len", "pow2", "oracle")
    return " / ".join(f"{useful(('engine.reservation', kind)):.1%}" for kind in kinds)


def paged_memory() -> str:
    return f"{useful(('engine.scheduler', 'paged')):.1%}"


def sequences_of_13b() -> str:
    return f"{ran('kv-waste').summary['num_gpu_blocks'] * 16 / 2048:.1f}"


def token_of_13b() -> str:
    model = library.model("opt-13b")
    return f"{model.weight_bytes() / 1e9:.1f} GB; {model.kv_bytes(1) / 1e6:.2f} MB"


def alone(model: str, **hardware: int) -> Forecasted:
    fixed = {"distribution": "fixed"}
    return orcast.simulate(
        "single-stream",
        overrides={
            "model": model,
            "hardware": {"gpu": "a100-40gb"} | hardware,
            "workload.lengths": {
                "prompt": fixed | {"tokens": 32},
                "output": fixed | {"tokens": 256},
            },
            "workload.num_requests": 3,
        },
    )


def least_for_gpt3() -> str:
    for hardware in ({"pipeline_parallel": 10}, {"tensor_parallel": 2, "pipeline_parallel": 5}):
        with pytest.raises(InputError, match="does not fit"):
            alone("gpt-3-175b", **hardware)
    assert alone("gpt-3-175b", pipeline_parallel=11).summary["completed"] == 3
    return "11"


def seconds_of_256_tokens() -> str:
    runs = (
        alone("gpt-3-175b", pipeline_parallel=11),
        alone("gpt-3-175b", tensor_parallel=2, pipeline_parallel=6),
        alone("gpt-3-175b", tensor_parallel=8, pipeline_parallel=2),
    )
    return " / ".join(f"{run.summary['mean_e2el_ms'] / 1e3:.1f} s" for run in runs)


def seconds_of_small_ones() -> str:
    files = [str(EXAMPLES / f"gpt-3-{size}.json") for size in ("2.7b", "760m", "125m")]
    found = [alone(name).summary["mean_e2el_ms"] / 1e3 for name in ("opt-13b", *files)]
    return " / ".join(f"{each:.1f}" for each in found) + " s"


def tokens_of_3_gb() -> str:
    return f"{3e9 / library.model('gpt-3-175b').kv_bytes(1):.0f} tokens"


def end_to_end() -> str:
    requests = ran("quickstart", ("workload.num_requests", 300)).requests
    first = requests["first_token_s"] - requests["arrival_s"]
    last = requests["last_token_s"] - requests["arrival_s"]
    tokens = requests["output_tokens"]
    each = (last - first) / (tokens - 1).clip(lower=1)
    with_n, with_one_less = (
        float((first + each * count - last).abs().max()) for count in (tokens, tokens - 1)
    )
    assert with_n > 1e-3
    return f"{with_one_less:.3f} s"


def orca_over_static() -> str:
    gains = []
    for sigma in (0, 0.5, 1.0, 1.5):
        rates = [
            ran(
                "orca-vs-static",
                ("workload.lengths.output.sigma", sigma),
                ("engine.scheduler", name),
            ).summary["output_throughput"]
            for name in ("orca", "static")
        ]
        gains.append(f"{rates[0] / rates[1]:.1f}")
    return " / ".join(gains)


def attention_memory() -> str:
    ratios = []
    for length in (2048, 4096, 8192):
        plain, fused = (
            sum(
                tensor.num_bytes
                for tensor in layer_activations(
                    library.model("llama-2-7b"),
                    ActivationSettings(1, length, fused_attention=kept),
                )[2:7]
            )
            for kept in (False, True)
        )
        ratios.append(f"{plain / fused:.1f} ×")
    return " / ".join(ratios)


def speculated() -> str:
    expected = 1 + float(chain(0.8, 4).sum())
    assert expected == pytest.approx((1 - 0.8**5) / (1 - 0.8))
    return f"{expected:.2f}"


def optimum(law: str) -> Callable[[], str]:
    def found() -> str:
        best = LAWS[law].optimum(GOPHER)
        return f"{best.parameters / 1e9:.1f}B on {best.tokens / 1e12:.2f}T tokens"

    return found


def llama_parameters() -> str:
    return f"{library.model('llama-2-7b').num_parameters:,}"


def llama_training() -> dict[str, Any]:
    model = library.model("llama-2-7b")
    return training_figures(model, ActivationSettings(1, 4096), Degrees())


def llama_memory() -> str:
    found = llama_training()
    state = found["memory_bytes"]["total"] - found["memory_bytes"]["activations"]
    return f"{state / 2**30:.1f} GiB"


def llama_checkpoints() -> str:
    return f"{llama_training()['checkpoints_bytes'] / 2**30:.2f} GiB"


def llama_flops() -> str:
    flops = llama_training()["flops_per_token"]
    return f"{flops['forward'] / 1e9:.1f} / {flops['forward_causal'] / 1e9:.1f} GFLOP"


def experts() -> str:
    model = library.model("mixtral-8x7b")
    assert model.moe is not None
    split = parameter_split(model)
    used = split.experts * model.moe.experts_per_token / model.moe.num_experts
    return f"{split.experts / used:.0f} ×"


def exchanged() -> str:
    sent = training_figures(
        library.model("llama-2-7b"), ActivationSettings(1, 4096), Degrees(sequence=8)
    )["sent_bytes"]
    kinds = ("Ulysses' all-to-all, a layer forward", "or ring attention, a layer forward")
    return " / ".join(f"{sent[kind] / 1e6:.1f} MB" for kind in kinds)


def operator_classes() -> str:
    settings = ActivationSettings(8, 512, "none", fused_attention=False, dropout=True)
    model, gpu = library.model(str(EXAMPLES / "bert-large.json")), library.gpu("v100-32gb")
    found = training_step(model, settings, Degrees(), gpu).figures()["classes"].values()
    shares = (
        " / ".join(f"{100 * one['flop_share']:.2f}" for one in found),
        " / ".join(f"{100 * one['time_share']:.1f}" for one in found),
    )
    return "; ".join(f"{one} %" for one in shares)


def attention_time() -> str:
    model, gpu = library.model(str(EXAMPLES / "gpt-3-760m.json")), library.gpu("a100-40gb")
    ratios = []
    for length in (1024, 4096, 16384):
        fused, plain = (
            training_step(
                model, ActivationSettings(1, length, "none", kind), Degrees(), gpu
            ).attention_s
            for kind in (True, False)
        )
        ratios.append(f"{plain / fused:.1f} ×")
    return " / ".join(ratios)


def deviation() -> str:
    torch = pytest.importorskip("torch", reason=needs.KERNELS)
    pytest.importorskip("triton", reason=needs.KERNELS)
    from kernels.numerics import deviations

    found = deviations((128, 512), (32,), generator=torch.Generator().manual_seed(0))[1]
    return " / ".join(f"{one:.1e}" for one in (found.standard, found.flash, found.flash_rounded))


def rosenfeld() -> str:
    law = RosenfeldLaw("r", "", 406.4, 0.34, 410.7, 0.29, 1.69, 1.0, 11.76)
    best = law.optimum(GOPHER)
    return f"{best.parameters / 1e9:.1f}B on {best.tokens / 1e12:.2f}T tokens"


def mixture_over_dense() -> str:
    mixed, dense = library.model("mixtral-8x7b"), library.model("mistral-7b-v0.1")
    flops = [forward_flops_per_token(model, 4096) for model in (mixed, dense)]
    parameters = mixed.num_parameters / dense.num_parameters
    return f"{parameters:.1f} × / {flops[0] / flops[1]:.1f} ×"


def mixtures_law() -> str:
    return " / ".join(f"{JOINT_MIXTURE.of(each).optimum(1e21).loss:.3f}" for each in (1, 8, 32))


def mean_of_samples() -> str:
    axis = read_one_column(EXAMPLES / "laws" / "mean-of-samples.csv")
    assert axis is not None
    law = fit_power(axis[1], bootstrap=0)[0]
    return f"{law.a:.2f} and {law.alpha:.2f}"


def refusal() -> str:
    with pytest.raises(InputError, match="does not fit") as error:
        orcast.simulate(
            "single-stream", overrides={"model": "gpt-3-175b", "hardware.gpu": "a100-40gb"}
        )
    said = re.search(r"; (\d+) GPUs of that kind would do(.*)$", str(error.value))
    assert said is not None
    return said[1] + said[2]


def step_on_h100() -> str:
    model, gpu = library.model("llama-2-7b"), library.gpu("h100-sxm")
    best = layouts(model, ActivationSettings(1, 4096), gpu, gpus=64, batch_tokens=4e6)[0]
    return f"{best.step.figures()['mfu']:.1%}"


def latent_cache() -> str:
    return f"{library.model('deepseek-v3').kv_bytes(1):,} B"


ROWS: dict[str, Callable[[], str]] = {
    "iterations of seven sequences on four rows, static / continuous": timetable,
    "request pool, at most three: iterations 1, 2, 3": request_pool,
    "tokens in each block after 6, 7, 8, 9 tokens": block_table,
    "KV memory that holds a token, reserved: Max / Pow2 / Oracle": reserved_memory,
    "KV memory that holds a token, paged": paged_memory,
    "sequences of 2,048 tokens beside 13B on an A100-40GB": sequences_of_13b,
    "weights of 13B; cache of one of its tokens": token_of_13b,
    "A100-40GB that GPT-3 175B can be deployed on, fewest": least_for_gpt3,
    "256 tokens of GPT-3 175B on 11 / 2 × 6 / 8 × 2 A100-40GB": seconds_of_256_tokens,
    "256 tokens of 13B / 2.7B / 760M / 125M on one": seconds_of_small_ones,
    "what a cache of 3 GB holds of GPT-3 175B": tokens_of_3_gb,
    "largest E2E − TTFT − TPOT × (n − 1)": end_to_end,
    "Orca over static, sigma of lengths 0 / 0.5 / 1 / 1.5": orca_over_static,
    "memory of attention without / with FlashAttention, 2K / 4K / 8K": attention_memory,
    "tokens a step, four drafts accepted at 0.8": speculated,
    "best use of Gopher's 5.76e23 FLOPs, `chinchilla`": optimum("chinchilla"),
    "the same, `chinchilla-unrounded`": optimum("chinchilla-unrounded"),
    "the same, `kaplan`": optimum("kaplan"),
    "parameters of Llama-2-7B": llama_parameters,
    "its weights, gradients and optimiser in training": llama_memory,
    "its activations checkpointed at layer boundaries, b = 1, s = 4,096": llama_checkpoints,
    "FLOPs of a token forward, without / with causal mask": llama_flops,
    "parameters of Mixtral's experts over those a token uses": experts,
    "bytes a layer sends forward, Llama-2-7B, 8 ranks: Ulysses / ring": exchanged,
    "cache of a token of DeepSeek-V3": latent_cache,
    "operator classes of BERT-large's training step on a V100: share of FLOPs, of time": (
        operator_classes
    ),
    "attention without over with FlashAttention, time of a training step, 1K / 4K / 16K, A100": (
        attention_time
    ),
    "deviation from float64, 512 tokens: standard / flash, float32 kept / flash, bf16 kept": (
        deviation
    ),
    "the same, `rosenfeld` with the course's terms": rosenfeld,
    "Mixtral 8x7B over Mistral 7B: parameters / FLOPs of a token": mixture_over_dense,
    "loss of 1e21 FLOPs, `joint-moe`, 1 / 8 / 32 experts for each that a token uses": mixtures_law,
    "squared error of the mean of n samples with σ = 2: a and α of a / n^α": mean_of_samples,
    "GPT-3 175B on A100-40GB: what a refusal says would do": refusal,
    "a training step of Llama-2-7B on 64 H100: share of the peak, 6 N a token": step_on_h100,
}


def rows_of_the_page() -> dict[str, str]:
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        if len(cells) == 4 and cells[0] in ROWS:
            found[cells[0]] = cells[2]
    return found


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_lectures_table_is_what_comes_out(row: str) -> None:
    assert rows_of_the_page()[row] == ROWS[row]()


def test_every_row_of_the_page_is_checked() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    assert len(lines) - 2 == len(ROWS) == len(rows_of_the_page())
