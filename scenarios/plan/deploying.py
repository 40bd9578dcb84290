"""A deployment that was chosen, as one types it: vLLM's and SGLang's commands, Kubernetes' YAML.

Flags are those of vLLM 0.32 and SGLang 0.5. What an engine has no flag for is said instead.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from scenarios import library
from scenarios.forecast.deployment import group_scenarios
from scenarios.forecast.latency_source import parallelism_of
from scenarios.model_library import IDS_FILE
from scenarios.schema.cluster import ReplicaGroup
from scenarios.schema.hardware import Hardware
from scenarios.schema.scenario import Scenario

# What a cluster calls a device, by how its name begins.
NVIDIA = "nvidia.com/gpu"
RESOURCES = {
    "mi": "amd.com/gpu",
    "tpu": "google.com/tpu",
    "gaudi": "habana.ai/gaudi",
    "trainium": "aws.amazon.com/neuron",
}
IMAGE = "vllm/vllm-openai:latest"
PORT = 8000
SGLANG = ("python", "-m", "sglang.launch_server")
NIXL = '{"kv_connector":"NixlConnector","kv_role":"kv_both"}'
# Methods that vLLM has, by its names.
VLLM_DRAFTS = ("draft_model", "ngram", "eagle", "mtp", "medusa")


def to_deploy(
    scenario: Scenario, *, gpus: int, replicas: int, serving: int, rate_per_s: float
) -> dict[str, Any]:
    """``vllm``, ``sglang``: one replica's command line; ``kubernetes``: YAML of all of them.

    gpus: of a replica. None, with a line in ``notes``, where the engine has no such scheduler.
    ``scenario``: the deployment without its spares under the whole load, to be forecast again.
    """
    engine = scenario.engine
    found: dict[str, Any] = {"vllm": None, "sglang": None, "kubernetes": None, "notes": []}
    found["scenario"] = _again(scenario, serving, rate_per_s)
    if engine.scheduler != "chunked":
        found["notes"] = [
            f"scheduler {engine.scheduler} is not that of today's engines: there is nothing to type"
        ]
        return found
    pools = [(group, mine) for group, mine, _ in group_scenarios(scenario) if group.role != "both"]
    if not pools:
        arguments = [*_vllm(scenario)]
        found["vllm"] = shlex.join(["vllm", "serve", *arguments])
        found["sglang"] = shlex.join([*SGLANG, *_sglang(scenario)])
        found["kubernetes"] = _kubernetes(scenario, arguments, gpus, replicas)
    else:
        found |= _apart(pools, replicas)
    found["notes"] = list(_notes(scenario, apart=bool(pools)))
    return found


def _apart(pools: Sequence[tuple[ReplicaGroup, Scenario]], units: int) -> dict[str, Any]:
    """A command for each pool, under a line that says how many of them."""
    vllm, sglang, kubernetes = [], [], []
    for group, mine in pools:
        number, pool = units * group.replicas, group.name or group.role
        arguments = [*_vllm(mine), "--kv-transfer-config", NIXL]
        mode = ["--disaggregation-mode", group.role]
        vllm += [f"# {group.role}, {number} of:", shlex.join(["vllm", "serve", *arguments])]
        sglang += [f"# {group.role}, {number} of:", shlex.join([*SGLANG, *_sglang(mine), *mode])]
        gpus = parallelism_of(mine.hardware).num_gpus
        kubernetes += _kubernetes(mine, arguments, gpus, number, pool=pool)
    return {"vllm": "\n".join(vllm), "sglang": "\n".join(sglang), "kubernetes": kubernetes}


def checkpoint(model: str) -> str:
    """What engines load for a model of the library: its first Hugging Face id; else as given."""
    ids: dict[str, str] = library.read_yaml(IDS_FILE)
    if model not in library.model_names():
        return model
    return next((given for given, name in ids.items() if name == model and "/" in given), model)


def _vllm(scenario: Scenario) -> Iterator[str]:
    engine, hardware = scenario.engine, scenario.hardware
    yield checkpoint(scenario.model)
    for flag, degree in (
        ("--tensor-parallel-size", hardware.tensor_parallel),
        ("--pipeline-parallel-size", hardware.pipeline_parallel),
        ("--data-parallel-size", _ranks(hardware)),
        ("--decode-context-parallel-size", hardware.decode_context_parallel),
    ):
        if degree > 1:
            yield from (flag, str(degree))
    if hardware.expert_parallel > 1 or hardware.experts_over > 1:
        yield "--enable-expert-parallel"
    # What the forecast took is said even where it is the default today.
    yield from ("--max-num-seqs", str(engine.max_num_seqs))
    yield from ("--max-num-batched-tokens", str(engine.max_num_batched_tokens))
    if engine.kv_cache_bytes is None:
        yield from ("--gpu-memory-utilization", f"{engine.gpu_memory_utilization:g}")
    else:
        yield from ("--kv-cache-memory-bytes", str(engine.kv_cache_bytes))
    if engine.num_gpu_blocks_override is not None:
        yield from ("--num-gpu-blocks-override", str(engine.num_gpu_blocks_override))
    if engine.block_size != 16:
        yield from ("--block-size", str(engine.block_size))
    if engine.max_model_len is not None:
        yield from ("--max-model-len", str(engine.max_model_len))
    if engine.weight_dtype == "fp8":
        yield from ("--quantization", "fp8")
    if engine.kv_cache_dtype == "fp8":
        yield from ("--kv-cache-dtype", "fp8")
    if not engine.enable_prefix_caching:
        yield "--no-enable-prefix-caching"
    if not engine.async_scheduling:
        yield "--no-async-scheduling"
    if engine.long_prefill_token_threshold:
        yield from ("--long-prefill-token-threshold", str(engine.long_prefill_token_threshold))
    if engine.scheduling_policy == "priority":
        yield from ("--scheduling-policy", "priority")
    if engine.max_num_queued_reqs is not None:
        yield from ("--max-num-queued-reqs", str(engine.max_num_queued_reqs))
    if engine.kv_offloading_size_gib:
        yield from ("--kv-offloading-size", f"{engine.kv_offloading_size_gib:g}")
    if engine.kv_tiers:  # how large they are is LMCache's own configuration
        connector = '{"kv_connector":"LMCacheConnectorV1","kv_role":"kv_both"}'
        yield from ("--kv-transfer-config", connector)
    drafting = scenario.speculation
    if drafting is not None and drafting.method in VLLM_DRAFTS:
        config: dict[str, Any] = {
            "method": drafting.method,
            "num_speculative_tokens": drafting.depth,
        }
        if drafting.draft_model is not None:
            config["model"] = checkpoint(drafting.draft_model)
        yield from ("--speculative-config", json.dumps(config))


def _sglang(scenario: Scenario) -> Iterator[str]:
    engine, hardware = scenario.engine, scenario.hardware
    yield from ("--model-path", checkpoint(scenario.model))
    ranks, shared = _ranks(hardware), hardware.expert_parallel > 1
    for flag, degree in (
        # Its data-parallel ranks of a mixture are among the tensor-parallel ones.
        ("--tp-size", hardware.tensor_parallel * (ranks if shared else 1)),
        ("--pp-size", hardware.pipeline_parallel),
        ("--dp-size", ranks),
        ("--ep-size", max(hardware.expert_parallel, hardware.experts_over)),
    ):
        if degree > 1:
            yield from (flag, str(degree))
    if shared:
        yield "--enable-dp-attention"
    yield from ("--max-running-requests", str(engine.max_num_seqs))
    yield from ("--chunked-prefill-size", str(engine.max_num_batched_tokens))
    yield from ("--mem-fraction-static", f"{engine.gpu_memory_utilization:g}")
    if engine.block_size != 1:
        yield from ("--page-size", str(engine.block_size))
    if engine.max_model_len is not None:
        yield from ("--context-length", str(engine.max_model_len))
    if engine.weight_dtype == "fp8":
        yield from ("--quantization", "fp8")
    if engine.kv_cache_dtype == "fp8":
        yield from ("--kv-cache-dtype", "fp8_e4m3")
    if not engine.enable_prefix_caching:
        yield "--disable-radix-cache"


def _ranks(hardware: Hardware) -> int:
    """Ranks with sequences of their own: engines apart, or those that share out experts."""
    return hardware.data_parallel if hardware.data_parallel > 1 else hardware.expert_parallel


def _again(scenario: Scenario, serving: int, rate_per_s: float) -> dict[str, Any]:
    content = scenario.model_dump(mode="json")
    if content["cluster"]["groups"]:
        for group in content["cluster"]["groups"]:
            group["replicas"] *= serving
    else:
        content["cluster"]["replicas"] = serving
    if content["workload"]["arrivals"] is not None:
        content["workload"]["arrivals"]["request_rate"] = rate_per_s
        content["workload"]["time_scale"] = 1.0
    return content


def _notes(scenario: Scenario, *, apart: bool) -> Iterator[str]:
    if apart:
        yield (
            "pools need a router before them that sends each request to both (the engines' own, "
            "llm-d's or Dynamo's), which is not in these commands"
        )
    if scenario.engine.weight_dtype not in ("auto", "fp8", "bf16", "fp16"):
        yield f"weights in {scenario.engine.weight_dtype} need a checkpoint that has them so"
    if scenario.engine.scheduling_policy not in ("fcfs", "priority"):
        yield f"no engine has a flag for scheduling_policy {scenario.engine.scheduling_policy}"
    hardware = scenario.hardware
    if min(hardware.tensor_parallel, hardware.expert_parallel) > 1 == hardware.data_parallel:
        yield "vLLM keeps each expert whole on one GPU; the forecast splits it by tensor_parallel"
    drafting = scenario.speculation
    if drafting is not None and drafting.method not in VLLM_DRAFTS:
        yield f"speculation by {drafting.method} has no flag in vLLM: it is not in these commands"
    elif drafting is not None:
        heads = ", and the trained heads' checkpoint to vLLM's"
        yield "add SGLang's own flags for speculation" + heads * (
            drafting.method in ("eagle", "medusa")
        )
    yield "the commands were made from the forecast's settings and not run"


def _kubernetes(
    scenario: Scenario, arguments: list[str], gpus: int, replicas: int, *, pool: str = ""
) -> list[dict[str, Any]]:
    """A Deployment of all replicas, and the Service before them; of one `pool` where there are."""
    letters = f"{scenario.model}-{pool}".lower()
    name = "".join(c if c.isalnum() else "-" for c in letters).strip("-")[-50:].strip("-")
    labels = {"app": name}
    container = {
        "name": "engine",
        "image": IMAGE,
        "command": ["vllm", "serve"],
        "args": arguments,
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": {_resource(scenario): gpus}},
        "readinessProbe": {"httpGet": {"path": "/health", "port": PORT}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108 - in the pod
    }
    pod = {
        "containers": [container],
        # Ranks of a tensor-parallel group talk through shared memory.
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "labels": labels},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": dict(labels)},
                "template": {"metadata": {"labels": dict(labels)}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"selector": labels, "ports": [{"port": PORT}]},
        },
    ]


def _resource(scenario: Scenario) -> str:
    given = scenario.hardware.gpu_given
    name = library.gpu_name(str(given.get("like", "") if isinstance(given, dict) else given))
    return next((what for kind, what in RESOURCES.items() if name.startswith(kind)), NVIDIA)
