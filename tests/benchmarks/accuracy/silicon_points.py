"""The serving points that aiconfigurator-core ships (`silicon_sample.csv`), as scenarios.

A row is one aggregated deployment under a closed loop: so many requests in flight, fixed lengths.
What a row does not say is taken from what is public about its origin:

    InferenceMAX        rows of a dated file, of an analysis (the same figures again) or of its
                        db-dump. Its client draws lengths between 0.8 and 1 of the nominal ones, and
                        asks for temperature 0; its servers have no prefix cache, --async-scheduling
                        where that is not the default, and what `silicon_servers` has
    anything else       genai-perf as aiconfigurator's own `eval` calls it: fixed lengths, twice the
                        concurrency to warm up, ten times to count, all at once at first; a batch
                        has room for decodes and one prompt, or several of 1,024 tokens together:
                        what prompts take from others' decodes on H100 says so (aiconfigurator's
                        generator has 1,500 tokens more); vLLM before 0.14 schedules synchronously,
                        TensorRT-LLM and SGLang overlap; beside quantised weights
                        TensorRT-LLM's cache is in fp8: on H100 a step of Qwen3-32B grows with its
                        context by half of what 16 bits take

What others ask to be sampled is not known: greedily too.

The checkpoint decides on the format of quantised weights; where only a row says fp8, weights are
scaled per tensor unless it says blocks. Rows that contradict themselves are left out, and counted.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scenarios import library
from sim.model.config import read_config
from sim.model.weight_format import WEIGHT_DTYPES
from tests.benchmarks.accuracy.data import package
from tests.benchmarks.accuracy.silicon_servers import Server, may_speculate, server_of
from tests.benchmarks.accuracy.sources import latency

GPUS = {"b200_sxm": "b200", "h200_sxm": "h200-sxm", "h100_sxm": "h100-sxm"}
LIBRARY = {
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
    "nvidia/Qwen3-32B-NVFP4": "qwen3-32b",
}
WEIGHTS = {"bf16": "auto", "fp8": "fp8", "int4": "int4", "fp4": "nvfp4"}
GATES = ["linear_attn.in_proj_ba"]  # too narrow for blocks of 128
GPUS_PER_NODE = 8
RANGE = 0.8  # InferenceMAX: random-range-ratio
MOST_OF_PEAK = 0.7  # all other origins stay below 0.55
WAVES = 4  # requests for each one in flight
PROMPTS_TOGETHER = 1024  # tokens
# On these the model was developed.
DEVELOPED_ON = {("h100_sxm", "vllm"), ("h100_sxm", "trtllm")}
# After a look at these something was chosen: which kernels compute B200's experts in 8 bits, that
# TensorRT-LLM keeps the cache of InferenceMAX's Llama-3.1-70B in fp8 and that its products are less
# the scales of their inputs, that products in NVFP4 are as any engine ran them, that latent
# attention is the fastest engine's (Kimi), that a B200's experts in MXFP4 have inputs in 8 bits
# (gpt-oss).
CHOSEN_AFTER = {
    ("DeepSeek", "b200_sxm", ""),
    ("Llama-3.1-70B", "b200_sxm", "trtllm"),
    ("Llama-3.1-70B", "h200_sxm", "trtllm"),
    ("gpt-oss", "b200_sxm", "trtllm"),
    ("Kimi-K2.5", "b200_sxm", ""),
    ("Kimi-K2.5", "h200_sxm", ""),
}


@dataclass(frozen=True, slots=True)
class Point:
    """One measured row."""

    model: str
    system: str
    backend: str
    version: str
    precision: str
    quantisation: str  # fp8, or fp8_block where products or experts are said to be
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    tensor_parallel: int
    data_parallel: int  # of attention, over ranks that share the experts
    experts_over: int  # groups of tensor-parallel ranks that share the experts
    drawn_lengths: bool  # of InferenceMAX
    ttft_ms: float
    tpot_ms: float

    @property
    def group(self) -> tuple[str, str, str, str]:
        return self.model.split("/")[-1], self.system, self.backend, self.precision

    @property
    def gpus(self) -> int:
        return self.tensor_parallel * self.data_parallel

    @property
    def mark(self) -> str:
        """Nothing where the model was developed on this row, else a sign of how unseen it was."""
        if (self.system, self.backend) in DEVELOPED_ON:
            return ""
        seen = any(
            name in self.model and self.system == system and backend in ("", self.backend)
            for name, system, backend in CHOSEN_AFTER
        )
        return " ‡" if seen else " †"

    @property
    def asynchronous(self) -> bool:
        return self.drawn_lengths or self.backend != "vllm" or _before(self.version) >= (0, 14)

    @property
    def kv_cache_dtype(self) -> str:
        if self.drawn_lengths:
            return self._server.kv_cache_dtype
        return "fp8" if self.precision != "bf16" and self.backend == "trtllm" else "auto"

    @property
    def max_num_batched_tokens(self) -> int:
        least = self.concurrency
        if not self.drawn_lengths:
            return least + max(self.prompt_tokens, PROMPTS_TOGETHER)
        budget = self._server.max_num_batched_tokens
        return self.prompt_tokens + least if budget is None else max(budget, least)

    @property
    def _server(self) -> Server:
        return server_of(self.model, self.system, self.backend, self.precision)

    def scenario(self, source: str, configs: Path) -> dict[str, Any]:
        """The scenario of this row; `configs` is a folder for model configurations."""
        model, weights = _model(self, configs)
        return {
            "name": "silicon",
            "model": model,
            "hardware": {
                "gpu": GPUS.get(self.system, self.system),
                "tensor_parallel": self.tensor_parallel,
                "expert_parallel": self.data_parallel,
                "experts_over": self.experts_over,
            },
            "engine": {
                "generation": "vllm" if self.asynchronous else "vllm-sync",
                "weight_dtype": weights,
                "kv_cache_dtype": self.kv_cache_dtype,
                "max_num_seqs": self.concurrency,
                "max_num_batched_tokens": self.max_num_batched_tokens,
                "enable_prefix_caching": False,
            },
            "latency": latency(source, backend=self.backend),
            "workload": {
                "arrivals": {"process": "all_at_once"},
                "lengths": self._lengths(),
                "num_requests": WAVES * self.concurrency,
                "max_concurrency": self.concurrency,
                "sampling": "greedy",
            },
        }

    def _lengths(self) -> dict[str, Any]:
        """As the client draws them."""
        asked = {"prompt": self.prompt_tokens, "output": self.output_tokens}
        if self.drawn_lengths:
            return {
                name: {"distribution": "uniform", "min": int(RANGE * tokens), "max": tokens}
                for name, tokens in asked.items()
            }
        return {name: {"distribution": "fixed", "tokens": tokens} for name, tokens in asked.items()}


def points() -> tuple[list[Point], dict[str, int]]:
    """All rows that can be read, and why how many others cannot.

    Rows of one origin are left out together where one of them tells of more prompt tokens a second
    than its GPUs can compute: their prompts were found cached, or fewer were in flight. So are rows
    of which more were waiting than running: their servers held fewer sequences than were in flight.
    """
    path = package() / "systems" / "silicon_sample.csv"
    read: list[Point] = []
    left_out: dict[str, int] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            why = _contradiction(row)
            if why is None:
                read.append(_point(row))
            else:
                left_out[why] = left_out.get(why, 0) + 1
    cannot = {_origin(point) for point in read if _peak_share(point) > MOST_OF_PEAK}
    kept = [point for point in read if _origin(point) not in cannot]
    reason = f"of an origin with more than {MOST_OF_PEAK:.0%} of its GPUs' peak"
    left_out[reason] = len(read) - len(kept)
    served = [point for point in kept if not _waits(point)]
    left_out["whose requests waited longer than they were answered"] = len(kept) - len(served)
    return served, left_out


def _waits(point: Point) -> bool:
    """Whether more requests waited than ran: a limit on sequences that the row does not tell."""
    return point.ttft_ms > point.tpot_ms * (point.output_tokens - 1)


def _origin(point: Point) -> tuple[str, ...]:
    return (*point.group, point.version)


def _peak_share(point: Point) -> float:
    """Floating-point operations that a row says were done, over what its GPUs' peaks would do.

    Zero for models, GPUs and number formats that are not known here.
    """
    weights = WEIGHTS[point.precision]
    if point.system not in GPUS or weights not in ("auto", *WEIGHT_DTYPES):
        return 0.0
    flops, dtype = _work_of_a_token(point.model, weights)
    if dtype in ("nvfp4", "mxfp4"):
        return 0.0
    e2e_s = (point.ttft_ms + point.tpot_ms * (point.output_tokens - 1)) / 1e3
    drawn = (1 + RANGE) / 2 if point.drawn_lengths else 1.0
    tokens = drawn * (point.prompt_tokens + point.output_tokens)
    peak = library.gpu(GPUS[point.system]).peak_flops_per_s(dtype)
    return point.concurrency * tokens / e2e_s * flops / (peak * point.gpus)


@cache
def _work_of_a_token(named: str, weights: str) -> tuple[float, str]:
    """Floating-point operations of a token's products, and the type of the weights.

    None of models that are not understood.
    """
    config, name = _config(named)
    try:
        model = read_config(config, name=name)
    except ValueError:
        return 0.0, "bfloat16"
    if weights != "auto":
        model = model.quantised(weights)
    flops = float(sum(op.flops(1) for op in model.linear_operations(1)))
    if model.moe is not None:
        share = model.moe.experts_per_token / model.moe.num_experts
        flops += share * sum(op.flops(1) for op in model.expert_operations())
    return flops, model.weight_dtype


def _contradiction(row: dict[str, str]) -> str | None:
    """Why a row cannot be read as one engine in a closed loop; None where it can."""
    if row["mode"] != "agg":
        return "prefill and decode on different GPUs"
    tensor, data = _number(row, "tp_size"), max(_number(row, "attention_dp_size"), 1)
    moe_tensor, experts = _number(row, "moe_tp_size"), _number(row, "moe_ep_size")
    if tensor * data > GPUS_PER_NODE:
        return "more GPUs than a node has"
    is_dense = row["model_path"] in LIBRARY or "32B" in row["model_path"]
    if not is_dense and moe_tensor * experts != tensor * data:
        return "GPUs of attention and of experts differ"
    if data > 1 and (tensor > 1 or moe_tensor > 1):
        return "attention both tensor and data parallel"
    if _concurrency(row) != _number(row, "batch_size") * data:
        return "concurrency not known for sure"
    said = ("silicon_data_source", "model_path", "system", "backend", "precision")
    if may_speculate(*(row[name] for name in said), row["backend_version"]):
        return "of an image that speculative decoding was run with too"
    return None


def _point(row: dict[str, str]) -> Point:
    origin = row["silicon_data_source"]
    said = (row["gemm_quant_mode"], row["moe_quant_mode"])
    data = max(_number(row, "attention_dp_size"), 1)
    # A file of somebody's own measurements has its whole path.
    inference_max = origin.startswith("source_file=") and not origin.startswith("source_file=/")
    return Point(
        model=row["model_path"],
        system=row["system"],
        backend=row["backend"],
        version=row["backend_version"],
        precision=row["precision"] or "bf16",
        quantisation="fp8_block" if "fp8_block" in said else row["gemm_quant_mode"],
        prompt_tokens=_number(row, "isl"),
        output_tokens=_number(row, "osl"),
        concurrency=_concurrency(row),
        tensor_parallel=_number(row, "tp_size"),
        data_parallel=data,
        experts_over=max(_number(row, "moe_ep_size"), 1) if data == 1 else 1,
        drawn_lengths=inference_max or origin.startswith("db-dump/"),
        ttft_ms=float(row["silicon_ttft_ms"]),
        tpot_ms=float(row["silicon_tpot_ms"]),
    )


def _number(row: dict[str, str], name: str) -> int:
    return int(float(row[name] or 0))


def _concurrency(row: dict[str, str]) -> int:
    for part in row["silicon_data_source"].split("; "):
        if part.startswith("silicon_concurrency="):
            return int(float(part.partition("=")[2]))
    return 0


def _before(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _model(point: Point, configs: Path) -> tuple[str, str]:
    """The scenario's ``model`` and ``engine.weight_dtype``."""
    weights = WEIGHTS[point.precision]
    config, name = _config(point.model)
    if point.precision == "fp4" and (checkpoint := _four_bits(name)) is not None:
        (config, name), weights = checkpoint, "auto"
    elif _quantised(config) and point.precision != "bf16":
        weights = "auto"  # as the checkpoint has it
    elif point.quantisation == "fp8_block" and (checkpoint := _eight_bits(point.model)) is not None:
        (config, name), weights = checkpoint, "auto"
    elif point.quantisation == "fp8_block":
        config = config | {
            "quantization_config": {
                "quant_method": "fp8",
                "weight_block_size": [128, 128],
                "modules_to_not_convert": GATES,
            }
        }
        name, weights = f"{name}-fp8-blocks", "auto"
    path = configs / f"{name}.json"
    if not path.exists():
        path.write_text(json.dumps(config))
    return str(path), weights


def _quantised(config: dict[str, Any]) -> bool:
    """Whether a checkpoint's configuration, or its decoder's part, says how its weights lie."""
    return any("quantization_config" in part for part in (config, config.get("text_config", {})))


@cache
def _four_bits(name: str) -> tuple[dict[str, Any], str] | None:
    """NVIDIA's checkpoint of a model in NVFP4, which leaves some matrices in 16 bits.

    DeepSeek-R1's and V3's are quantised as V3.1's is: all but the projections of queries and keys.
    """
    name = {"deepseek-r1": "deepseek-v3.1", "deepseek-v3": "deepseek-v3.1"}.get(name, name)
    folder = package() / "model_configs"
    wanted = f"nvidia--{name}-nvfp4_config.json"
    path = next((path for path in folder.iterdir() if path.name.lower() == wanted), None)
    if path is None:
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    beside = path.with_name(path.name.replace("_config", "_hf_quant_config"))
    if beside.exists():
        said = json.loads(beside.read_text(encoding="utf-8"))
        config["quantization_config"] = {"quant_method": "modelopt", **said}
    return config, f"{name}-nvfp4"


@cache
def _eight_bits(model: str) -> tuple[dict[str, Any], str] | None:
    """Its makers' own checkpoint in float8 with a scale a block, where the package has it."""
    try:
        return _config(f"{model}-FP8")
    except FileNotFoundError:
        return None


@cache
def _config(model: str) -> tuple[dict[str, Any], str]:
    """A model's configuration, of the library or else of the package."""
    if model in LIBRARY:
        return library.model_config(library.model_path(LIBRARY[model])), LIBRARY[model]
    name = model.replace("zhipuai", "zai-org").replace("/", "--")
    path = package() / "model_configs" / f"{name}_config.json"
    return json.loads(path.read_text(encoding="utf-8")), model.split("/")[-1].lower()


def by_group(read: list[Point]) -> Iterator[tuple[tuple[str, str, str, str], list[Point]]]:
    """Points of each (model, GPU, backend, precision), in the order of their names."""
    for group in sorted({point.group for point in read}):
        yield group, [point for point in read if point.group == group]
