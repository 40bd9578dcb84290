"""vLLM's own schedules: its V1 scheduler and its engine's loop over a device that only takes time.

Run as a script by a Python that has vLLM (`python -P tests/vllm/record.py`), where nothing of ours
has to be importable: a workload a line comes in, its schedule as a line goes out.

What decides is vLLM's code throughout: `EngineCore.step` and `step_with_batch_queue`, `Scheduler`
and `AsyncScheduler`, the KV cache manager, block hashes. Two things stand in: an executor that
"computes" one batch after the other for as long as the workload says and samples the answers that
the workload has, and a clock. The host takes no time: a decision falls on the moment at which the
result is there that the engine was waiting for.
"""
# ruff: noqa: E402  # what vLLM reads of the environment is set before it is loaded

from __future__ import annotations

import gc
import json
import os
import queue
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

# What vLLM prints as it is loaded is not for whoever reads the schedules.
SCHEDULES = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import torch
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine.core import EngineCore
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

STATE_BLOCK = 8192  # tokens: a multiple of every block size, and longer than any sequence
END = 2  # the end-of-sequence token; no stream has it
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "max_position_embeddings": 8192,
    "torch_dtype": "float32",
}


class Device:
    """vLLM's executor, as far as its engine's loop sees it: one batch after the other."""

    def __init__(self, workload: dict[str, Any]) -> None:
        self.workload = workload
        self.now = 0
        self.free_at = 0
        self.launched = 0
        self.steps: list[list[Any]] = []
        self.preempted: list[str] = []  # since the last decision, in order
        self.names: dict[str, tuple[str, int, int]] = {}  # vLLM's id: ours, request, sample
        self.scheduler: Any = None
        self._latest: Result | None = None

    def token(self, stream: int, position: int) -> int:
        """The token id at a position of a stream."""
        token: int = stream * self.workload["stream_tokens"] + position
        return token

    def execute_model(self, output: SchedulerOutput, non_block: bool = False) -> Result:
        """Note a decision and begin its batch as soon as the device is free."""
        scheduled = output.num_scheduled_tokens
        if scheduled or self.preempted:
            start = max(self.now, self.free_at) if scheduled else self.now
            self.steps.append(
                [
                    self.now,
                    start,
                    {self.names[each][0]: tokens for each, tokens in scheduled.items()},
                    [self.names[each][0] for each in self.preempted],
                    self._hits(output),
                    self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
                ]
            )
            self.preempted.clear()
        if not scheduled:
            return Result(self, self.now, [], [])
        durations = self.workload["durations"]
        self.free_at = start + durations[self.launched % len(durations)]
        self.launched += 1
        requests = self.scheduler.requests
        emits = [not requests[each].is_prefill_chunk for each in scheduled]
        self._latest = Result(self, self.free_at, list(scheduled), emits)
        return self._latest

    def sample_tokens(self, grammar: Any, non_block: bool = False) -> Result:
        """The engine asks for the latest batch's tokens apart from its forward pass."""
        assert grammar is None and self._latest is not None
        return self._latest

    def _hits(self, output: SchedulerOutput) -> dict[str, int]:
        """Tokens found in the prefix cache by each request that was admitted."""
        hits = {each.req_id: each.num_computed_tokens for each in output.scheduled_new_reqs}
        others = output.scheduled_cached_reqs
        computed = dict(zip(others.req_ids, others.num_computed_tokens, strict=True))
        hits |= {each: computed[each] for each in others.resumed_req_ids}
        return {self.names[each][0]: tokens for each, tokens in hits.items()}


class Result:
    """A batch's future: whoever asks for it waits until the device has computed it."""

    def __init__(self, device: Device, end: int, ids: list[str], emits: list[bool]) -> None:
        self.device, self.end, self.ids, self.emits = device, end, ids, emits

    def result(self) -> ModelRunnerOutput:
        """vLLM's output, one token for each sequence that has caught up."""
        device = self.device
        device.now = max(device.now, self.end)
        return ModelRunnerOutput(
            req_ids=self.ids,
            req_id_to_index={each: number for number, each in enumerate(self.ids)},
            sampled_token_ids=[
                [self._token(each)] if emits else []
                for each, emits in zip(self.ids, self.emits, strict=True)
            ],
        )

    def _token(self, each: str) -> int:
        _, number, sample = self.device.names[each]
        request = self.device.scheduler.requests.get(each)
        if request is None:  # it has ended; what is sampled now is thrown away
            return END
        asked = self.device.workload["requests"][number]
        position = request.num_output_tokens
        if position + 1 == asked["output_tokens"] < asked["max_tokens"]:
            return END
        return self.device.token(asked["answer_streams"][sample], position)


class Recorder:
    """Builds what is the same for all workloads once."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(MODEL))
            self.config: VllmConfig = EngineArgs(
                model=folder,
                skip_tokenizer_init=True,
                load_format="dummy",
                dtype="float32",
                enforce_eager=True,
                max_model_len=4096,
            ).create_engine_config()
        self.grammars = StructuredOutputManager(self.config)
        init_none_hash(sha256)

    def record(self, workload: dict[str, Any]) -> dict[str, Any]:
        """vLLM's schedule of one workload."""
        device = Device(workload)
        core = self._engine(workload, device)
        scheduler = core.scheduler
        preempt = scheduler._preempt_request

        def noted(request: Request, *rest: Any, **options: Any) -> None:
            device.preempted.append(request.request_id)
            preempt(request, *rest, **options)

        scheduler._preempt_request = noted
        arriving = deque(enumerate(workload["requests"]))
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        idle = 0
        # As EngineCoreProc.run_busy_loop: the input queue is drained, then the engine steps once.
        while True:
            if not (scheduler.has_requests() or core.batch_queue):
                if not arriving:
                    break
                device.now = max(device.now, arriving[0][1]["at"])
            while arriving and arriving[0][1]["at"] <= device.now:
                self._arrive(core, device, *arriving.popleft())
            outputs, executed = core.step_fn()
            core.post_step(executed)
            for output in (outputs or {}).values():
                for each in output.outputs:
                    if each.new_token_ids:
                        name = device.names[each.request_id][0]
                        first.setdefault(name, device.now)
                        last[name] = device.now
            idle = 0 if executed or outputs else idle + 1
            if idle > 50:
                raise RuntimeError(f"vLLM makes no progress: {json.dumps(workload)}")
        return {"steps": device.steps, "first": first, "last": last}

    def _engine(self, workload: dict[str, Any], device: Device) -> EngineCore:
        config = self.config
        config.model_config.max_model_len = workload["max_model_len"]
        scheduling, cache = config.scheduler_config, config.cache_config
        scheduling.policy = workload["policy"]
        scheduling.async_scheduling = workload["async_scheduling"]
        scheduling.scheduler_reserve_full_isl = workload["scheduler_reserve_full_isl"]
        for name in ("max_num_seqs", "max_num_batched_tokens", "long_prefill_token_threshold"):
            setattr(scheduling, name, workload[name])
        for name in ("block_size", "num_gpu_blocks", "enable_prefix_caching"):
            setattr(cache, name, workload[name])
        size = workload["block_size"]
        checkpoints = any(kind == "checkpoint" for kind, *_ in workload["tables"])
        cache.mamba_cache_mode = "align" if checkpoints else "none"
        tables = workload["tables"] or [["full", 0, 1]]
        blocks = KVCacheConfig(
            num_blocks=workload["num_gpu_blocks"],
            kv_cache_tensors=[],
            kv_cache_groups=[
                KVCacheGroupSpec([f"layer.{kind}.{number}"], _spec(kind, window, size))
                for kind, window, alike in tables
                for number in range(alike)
            ],
        )
        # What EngineCore.__init__ sets up and its steps use, without a model and its workers.
        core = EngineCore.__new__(EngineCore)
        core.vllm_config = config
        core.log_stats = False
        core.model_executor = device
        core.scheduler = scheduling.get_scheduler_cls()(
            vllm_config=config,
            kv_cache_config=blocks,
            structured_output_manager=self.grammars,
            block_size=STATE_BLOCK if any(kind == "state" for kind, *_ in tables) else size,
            log_stats=False,
        )
        core.batch_queue_size = config.max_concurrent_batches
        core.batch_queue = None
        if core.batch_queue_size > 1:
            core.batch_queue = deque(maxlen=core.batch_queue_size)
        core.step_fn = core.step if core.batch_queue is None else core.step_with_batch_queue
        core.async_scheduling = scheduling.async_scheduling
        core.check_for_draft_tokens = False
        core.is_mm_encoder_only = False
        core.is_pooling_model = False
        core.aborts_queue = queue.Queue()
        core._weight_version = "default"
        caching = workload["enable_prefix_caching"]
        core.request_block_hasher = get_request_block_hasher(size, sha256) if caching else None
        device.scheduler = core.scheduler
        return core

    def _arrive(self, core: EngineCore, device: Device, number: int, asked: dict[str, Any]) -> None:
        """As vLLM's front end: a request for n samples becomes n requests of one each."""
        prompt = [
            device.token(stream, position)
            for stream, tokens in asked["prompt"]
            for position in range(tokens)
        ]
        for sample in range(asked["samples"]):
            alone = asked["samples"] == 1
            # As ParentRequest.get_child_info names them; requests of equal priority and arrival are
            # in order of their names.
            request_id = f"{number}" if alone else f"{sample}_{number}"
            device.names[request_id] = (
                f"{number}" if alone else f"{number}.{sample}",
                number,
                sample,
            )
            core.add_request(
                Request(
                    request_id=request_id,
                    prompt_token_ids=prompt,
                    sampling_params=SamplingParams(
                        max_tokens=asked["max_tokens"], stop_token_ids=[END]
                    ),
                    pooling_params=None,
                    # The front end's clock is finer than ours: no two arrive at the same time.
                    arrival_time=float(number),
                    priority=asked["priority"],
                    block_hasher=core.request_block_hasher,
                )
            )


def _spec(kind: str, window: int, block_size: int) -> KVCacheSpec:
    """What a group of layers keeps."""
    shape = {"block_size": block_size, "num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}
    if kind == "checkpoint":  # states at the ends of blocks, where prefixes are cached
        return MambaSpec(
            block_size=block_size,
            shapes=((1,),),
            dtypes=(torch.float32,),
            mamba_cache_mode="align",
        )
    if kind == "state":  # as where prefixes are not cached: one block, however long the sequence
        return MambaSpec(block_size=STATE_BLOCK, shapes=((1,),), dtypes=(torch.float32,))
    if kind == "sliding":
        return SlidingWindowSpec(**shape, sliding_window=window)
    if kind == "chunked":
        return ChunkedLocalAttentionSpec(**shape, attention_chunk_size=window)
    return FullAttentionSpec(**shape)


def main() -> None:
    """Answer each workload with its schedule."""
    recorder = Recorder()
    gc.freeze()
    for line in sys.stdin:
        print(json.dumps(recorder.record(json.loads(line))), file=SCHEDULES, flush=True)


if __name__ == "__main__":
    main()
