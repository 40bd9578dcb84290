"""vLLM serves for real: a tiny model on the processor, requests that arrive as time passes.

Run as a script by a Python that has vLLM (`python -P tests/vllm/serve.py`), where nothing of ours
has to be importable: traffic comes in as a line, what happened goes out as a line.

All of it is vLLM's: the engine core's busy loop and its input queue, scheduler, KV cache manager,
the executor with its worker process, the model (random weights) and the sampler. A thread stands in
for the front end: it puts requests into the engine's input queue as they fall due, and follows a
conversation up when an answer has come.

vLLM's CPU platform switches asynchronous scheduling off, as "not required on CPU". Its engine core,
worker process and model runner do it there all the same, so it is switched on again once the
configuration is made: two batches are in flight then, one of them being computed.

Times are of one clock, in nanoseconds. That a request is put into the input queue, and that the
loop finds this queue empty and goes on to decide, is noted under the queue's lock: a decision knows
exactly the requests that were put before it.
"""
# ruff: noqa: E402  # what vLLM reads of the environment is set before it is loaded

from __future__ import annotations

import heapq
import json
import os
import queue
import sys
import tempfile
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

# What vLLM prints is not for whoever reads the recording.
RECORDING = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the engine core has the other one
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import torch
import vllm
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest, EngineCoreRequestType
from vllm.v1.engine.core import EngineCore, EngineCoreProc, EngineShutdownState
from vllm.v1.executor import Executor
from vllm.v1.request import Request

VOCABULARY = 2048
STOPS = list(range(2, 66))  # one token of 32 ends an answer, where answers may end
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "torch_dtype": "float32",
}

clock = time.monotonic_ns


class Inbox(queue.Queue):
    """The engine's input queue, which notes what is put into it and when it is found empty."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived: dict[str, int] = {}
        self.found_empty: list[int] = []

    def _put(self, item: tuple[EngineCoreRequestType, Any]) -> None:
        kind, content = item
        if kind == EngineCoreRequestType.ADD:
            self.arrived[content[0].request_id] = clock()
        super()._put(item)

    def empty(self) -> bool:
        with self.mutex:
            empty = not self._qsize()
            if empty:
                self.found_empty.append(clock())
            return empty


class Core(EngineCoreProc):
    """vLLM's engine core and its busy loop, in this process; it notes every turn of the loop."""

    def __init__(self, config: VllmConfig) -> None:
        # What EngineCoreProc.__init__ sets up and its loop uses, without sockets and handshakes.
        self.input_queue = Inbox()
        self.output_queue = queue.Queue()
        self.engine_index = 0
        self.engines_running = False
        self.shutdown_state = EngineShutdownState.RUNNING
        self.publish_dp_lb_stats = False
        self.process_input_queue_block = True
        self.enable_fault_tolerance = False
        EngineCore.__init__(self, config, Executor.get_class(config), log_stats=False)
        self.turns: list[dict[str, Any]] = []
        self.first: dict[str, int] = {}  # by request: the turn that brought its first token
        self.last: dict[str, int] = {}
        self._watch()

    def _process_engine_step(self) -> bool:
        found_empty = self.input_queue.found_empty
        turn: dict[str, Any] = {"decided": found_empty[-1], "preempted": []}
        if len(found_empty) > 1:  # there was nothing to do, and the loop has slept
            turn["slept"] = found_empty[0]
        found_empty.clear()
        self.turns.append(turn)
        return bool(super()._process_engine_step())

    def _watch(self) -> None:
        scheduler = self.scheduler
        schedule, update = scheduler.schedule, scheduler.update_from_output
        preempt = scheduler._preempt_request

        def noted_schedule(*rest: Any) -> SchedulerOutput:
            output = schedule(*rest)
            if output.num_scheduled_tokens:
                self.turns[-1] |= {
                    "tokens": dict(output.num_scheduled_tokens),
                    "hits": _hits(output),
                    "free_blocks": scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
                }
            return output

        def noted_update(output: SchedulerOutput, *rest: Any) -> dict[int, EngineCoreOutputs]:
            outputs = update(output, *rest)
            if output.num_scheduled_tokens:
                number = len(self.turns) - 1
                self.turns[-1]["result"] = clock()
                for each in (one for of in outputs.values() for one in of.outputs):
                    if each.new_token_ids:
                        self.first.setdefault(each.request_id, number)
                        self.last[each.request_id] = number
            return outputs

        def noted_preempt(request: Request, *rest: Any, **options: Any) -> None:
            self.turns[-1]["preempted"].append(request.request_id)
            preempt(request, *rest, **options)

        scheduler.schedule = noted_schedule
        scheduler.update_from_output = noted_update
        scheduler._preempt_request = noted_preempt


def _hits(output: SchedulerOutput) -> dict[str, int]:
    """Tokens found in the prefix cache by each request that was admitted."""
    hits = {each.req_id: each.num_computed_tokens for each in output.scheduled_new_reqs}
    others = output.scheduled_cached_reqs
    computed = dict(zip(others.req_ids, others.num_computed_tokens, strict=True))
    return hits | {each: computed[each] for each in others.resumed_req_ids}


class Client(threading.Thread):
    """Sends requests as they fall due and takes their answers; they are numbered as they are sent.

    The place of a request in the traffic may be another: a conversation goes on when it does.
    """

    def __init__(self, core: Core, traffic: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.sent: list[dict[str, Any]] = []
        self.start_ns = 0
        self._core = core
        self._traffic = traffic
        self._asked: list[dict[str, Any]] = traffic["requests"]
        self._numbers: dict[int, int] = {}  # of those sent, by their place in the traffic
        self._answers: list[list[int]] = []
        self._streams: dict[int, tuple[Random, list[int]]] = {}

    def run(self) -> None:
        core = self._core
        self.start_ns = clock()
        try:
            self._serve_all()
        finally:
            core.shutdown_state = EngineShutdownState.REQUESTED
            core.input_queue.put_nowait((EngineCoreRequestType.WAKEUP, None))

    def _serve_all(self) -> None:
        asked = self._asked
        due = [(one["at_s"], place) for place, one in enumerate(asked) if one["after"] is None]
        heapq.heapify(due)
        turns = {one["after"]: place for place, one in enumerate(asked)}  # that go on with another
        answered = 0
        while answered < len(asked):
            wait_s = max(due[0][0] - self._now_s(), 0.0) if due else None
            try:
                _, outputs = self._core.output_queue.get(timeout=wait_s)
            except queue.Empty:
                self._send(heapq.heappop(due)[1])
                continue
            for each in outputs.outputs:
                number = int(each.request_id)
                self._answers[number] += each.new_token_ids
                if each.finish_reason is not None:
                    answered += 1
                    place = turns.get(self.sent[number]["place"])
                    if place is not None:
                        heapq.heappush(due, (self._now_s() + asked[place]["at_s"], place))

    def _now_s(self) -> float:
        return (clock() - self.start_ns) / 1e9

    def _send(self, place: int) -> None:
        """As vLLM's thread for its input sockets, once a message is there."""
        core, asked, number = self._core, self._asked[place], len(self.sent)
        pieces = [*self._before(asked), *asked["prompt"]]
        tokens = [token for stream, count in pieces for token in self._tokens(stream, count)]
        self._numbers[place] = number
        self.sent.append({"place": place, "prompt": pieces, "max_tokens": asked["max_tokens"]})
        self._answers.append([])
        params = SamplingParams(
            max_tokens=asked["max_tokens"],
            stop_token_ids=STOPS if asked["stops"] else None,
            detokenize=False,
        )
        request = EngineCoreRequest(
            request_id=f"{number}",
            prompt_token_ids=tokens,
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        content = core.preprocess_add_request(request)
        core.input_queue.put_nowait((EngineCoreRequestType.ADD, content))

    def _before(self, asked: dict[str, Any]) -> list[tuple[int, int]]:
        """Of a conversation that goes on: the prompt and the answer before, if there is room."""
        if asked["after"] is None:
            return []
        number = self._numbers[asked["after"]]
        first, second = self._traffic["answer_streams"]
        answer = (first + number * (second - first), len(self._answers[number]))
        pieces = [*self.sent[number]["prompt"], answer]
        tokens = sum(count for _, count in [*pieces, *asked["prompt"]])
        return pieces if tokens + asked["max_tokens"] <= self._traffic["max_model_len"] else []

    def _tokens(self, stream: int, count: int) -> list[int]:
        """The first token ids of a stream: an answer's own, others random."""
        first, second = self._traffic["answer_streams"]
        if stream >= first:
            return self._answers[(stream - first) // (second - first)]
        rng, tokens = self._streams.setdefault(stream, (Random(stream), []))
        while len(tokens) < count:
            tokens.append(rng.randrange(VOCABULARY))
        return tokens[:count]

    def requests(self) -> list[dict[str, Any]]:
        """What was sent, in order, and what came of it."""
        core = self._core
        return [
            {
                "arrived": core.input_queue.arrived[f"{number}"] - self.start_ns,
                "prompt": one["prompt"],
                "max_tokens": one["max_tokens"],
                "output_tokens": len(answer),
                "first_turn": core.first[f"{number}"],
                "last_turn": core.last[f"{number}"],
            }
            for number, (one, answer) in enumerate(zip(self.sent, self._answers, strict=True))
        ]


def configuration(traffic: dict[str, Any], model: str) -> VllmConfig:
    """vLLM's configuration for a model's folder."""
    limits = ("max_num_seqs", "max_num_batched_tokens", "long_prefill_token_threshold")
    config = EngineArgs(
        model=model,
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype="float32",
        enforce_eager=True,
        max_model_len=traffic["max_model_len"],
        block_size=traffic["block_size"],
        num_gpu_blocks_override=traffic["num_gpu_blocks"],
        enable_prefix_caching=traffic["enable_prefix_caching"],
        **{name: traffic[name] for name in limits},
    ).create_engine_config()
    config.scheduler_config.async_scheduling = traffic["async_scheduling"]
    return config


def serve(traffic: dict[str, Any]) -> dict[str, Any]:
    """What happened, times from the start of the run."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VLLM_RPC_BASE_PATH"] = folder  # where its sockets lie
        (Path(folder) / "config.json").write_text(json.dumps(MODEL))
        core = Core(configuration(traffic, folder))
        client = Client(core, traffic)
        client.start()
        try:
            core.run_busy_loop()
        except SystemExit:  # the way it ends
            client.join()
        finally:
            core.shutdown()
    for turn in core.turns:
        for moment in ("decided", "slept", "result"):
            if moment in turn:
                turn[moment] -= client.start_ns
    return {
        "turns": core.turns,
        "requests": client.requests(),
        "batches_in_flight": core.batch_queue_size,
        "versions": {"vllm": vllm.__version__, "torch": torch.__version__},
    }


def main() -> None:
    """One run."""
    recording = serve(json.loads(sys.stdin.readline()))
    print(json.dumps(recording), file=RECORDING, flush=True)


if __name__ == "__main__":
    main()
