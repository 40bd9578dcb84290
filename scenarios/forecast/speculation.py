"""The section ``speculation`` of a scenario -> the technique, its latency and its memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scenarios import library
from scenarios.errors import InputError
from scenarios.forecast.acceptance_recording import read_recording
from scenarios.forecast.latency_source import parallelism_of
from scenarios.schema.latency import HostOverhead
from scenarios.schema.scenario import Scenario
from scenarios.schema.speculation import Speculation as Given
from sim import plain_file
from sim.kv.memory import MemoryBudget
from sim.latency.protocol import LatencyModel
from sim.model.hardware import Gpu
from sim.model.spec import ModelSpec
from sim.speculation import HEADS, DraftShape, Speculation, acceptance
from sim.speculation.drafting import (
    Drafting,
    FixedDraft,
    HeadsDraft,
    HostDraft,
    LayersDraft,
    ModelDraft,
    Projection,
    VerifyingLatency,
)
from sim.speculation.latency import SpeculativeLatency
from sim.speculation.memory import share_memory

# Host time of one drafting step: its inputs are prepared and its kernels launched, nothing is
# scheduled. Nobody measured it on your machine: an assumption, printed with the result.
HOST_PER_STEP_S = 5.0e-5
NGRAM_PER_SEQUENCE_S = 2.0e-5  # a compiled search through one sequence's tokens

Latencies = Callable[[ModelSpec, Scenario], LatencyModel]


@dataclass(frozen=True, slots=True)
class Speculator:
    """A scenario's technique, made concrete."""

    given: Given
    technique: Speculation
    draft: ModelSpec | None  # of methods that have a model of their own
    draft_tensor_parallel: int

    def memory(self, budget: MemoryBudget, scenario: Scenario, model: ModelSpec) -> MemoryBudget:
        """What is left of the target's budget. Raises ValueError where that is nothing."""
        weight_bytes, kv_bytes = self._draft_bytes(scenario, model)
        engine = scenario.engine
        shared = share_memory(
            budget,
            model,
            weight_bytes=weight_bytes,
            kv_bytes_per_token=kv_bytes,
            query_tokens=self.technique.shape.query_tokens,
            max_num_seqs=engine.max_num_seqs,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            tensor_parallel=scenario.hardware.tensor_parallel,
            ranks=scenario.hardware.expert_parallel,
            blocks_given=engine.num_gpu_blocks_override is not None,
        )
        given = engine.kv_cache_memory_gib
        if given is not None and shared.kv_bytes < budget.kv_bytes:
            raise ValueError(
                f"engine.kv_cache_memory_gib {given:g}: beside the draft's weights and logits "
                f"there is room for {shared.kv_bytes / 2**30:.1f}"
            )
        return shared

    def widened(self, scenario: Scenario) -> Scenario:
        """The scenario with limits as large as verifications are, for what is tabulated."""
        engine, tokens = scenario.engine, self.technique.shape.query_tokens
        rows = engine.max_num_seqs * tokens
        most = max(engine.max_num_batched_tokens, rows)
        wide = {"max_num_seqs": rows, "max_num_batched_tokens": most}
        return scenario.model_copy(update={"engine": engine.model_copy(update=wide)})

    def latency(
        self,
        target: LatencyModel,
        scenario: Scenario,
        model: ModelSpec,
        gpu: Gpu,
        latency_of: Latencies,
    ) -> SpeculativeLatency:
        """The target's latency model with drafting before it.

        `latency_of` makes the latency model of a draft model in a scenario of its own.
        """
        if not isinstance(target, VerifyingLatency):
            raise ValueError(
                f"the latency model {target.label!r} does not know what several query tokens of a "
                "sequence cost: it lacks further_queries_s"
            )
        return SpeculativeLatency(target, self._drafting(target, scenario, model, gpu, latency_of))

    def notes(self, scenario: Scenario) -> list[str]:
        """What the reader has to be told."""
        notes, given = [], self.given
        steps = given.method in ("draft_model", "tree", *HEADS, "medusa", "self_speculation")
        if scenario.latency.source != "fixed" and given.host_per_step_us is None and steps:
            notes.append(
                f"speculation: {HOST_PER_STEP_S * 1e6:g} µs of host time per drafting step is an "
                "assumption; give speculation.host_per_step_us"
            )
        if given.method == "ngram" and given.host_per_sequence_us is None:
            notes.append(
                f"speculation: {NGRAM_PER_SEQUENCE_S * 1e6:g} µs of host time per sequence looked "
                "up is an assumption; give speculation.host_per_sequence_us"
            )
        if scenario.latency.source == "table" and self.draft and given.draft_table is None:
            notes.append(
                "the draft's times are analytic: name its own table as speculation.draft_table"
            )
        longest = scenario.engine.max_model_len
        if self.draft is not None and longest is not None:
            known = self.draft.max_position_embeddings
            if known < longest:
                notes.append(
                    f"the draft {self.draft.name} knows {known} positions, engine.max_model_len is "
                    f"{longest}: beyond them a real draft proposes nothing"
                )
        return notes

    def _draft_bytes(self, scenario: Scenario, model: ModelSpec) -> tuple[int, int]:
        """Weights and KV bytes per token that the draft takes on one GPU."""
        tp, cache = scenario.hardware.tensor_parallel, scenario.engine.kv_cache_dtype
        if self.draft is not None:
            draft_tp = self.draft_tensor_parallel
            return (
                self.draft.weight_bytes(draft_tp),
                self.draft.kv_bytes_per_token(cache, draft_tp),
            )
        if self.given.method in HEADS:
            ranks = scenario.hardware.expert_parallel
            operations = [*model.linear_operations(tp), *model.expert_operations(tp, ranks)]
            layer = sum(op.weight_bytes for op in operations) // model.num_layers
            fusing = 2 * 2 * model.hidden_size**2 // tp
            return layer + fusing, model.kv_bytes_per_token(cache, tp) // model.num_layers
        if self.given.method == "medusa":
            head = model.hidden_size**2 + model.hidden_size * model.vocab_size
            return 2 * head * self.technique.shape.depth // tp, 0
        return 0, 0

    def _drafting(
        self,
        target: VerifyingLatency,
        scenario: Scenario,
        model: ModelSpec,
        gpu: Gpu,
        latency_of: Latencies,
    ) -> Drafting:
        given, shape, method = self.given, self.technique.shape, self.given.method
        if method in ("ngram", "jacobi", "lookahead"):
            if method != "ngram":
                return HostDraft()
            return HostDraft(
                (given.host_per_step_us or 0.0) / 1e6,
                _seconds(given.host_per_sequence_us, NGRAM_PER_SEQUENCE_S),
                scenario.hardware.expert_parallel,
                label="n-gram lookup on the host",
            )
        if scenario.latency.source == "fixed":
            if given.draft_step_ms is None:
                raise ValueError("latency.source fixed needs speculation.draft_step_ms")
            steps = 1 if method == "medusa" else shape.depth
            return FixedDraft(
                given.draft_step_ms / 1e3, steps, f"{given.draft_step_ms:g} ms a step"
            )
        if given.draft_step_ms is not None:
            raise ValueError("draft_step_ms belongs to latency.source fixed")
        host_s = _seconds(given.host_per_step_us, HOST_PER_STEP_S)
        if self.draft is not None:
            timed = latency_of(self.draft, self._draft_scenario(scenario, host_s))
            assert isinstance(timed, VerifyingLatency)  # of the same kind as the target's
            return ModelDraft(timed, shape.frontiers)
        projection = self._projection(scenario, model, gpu)
        if method == "medusa":
            return HeadsDraft(
                target,
                heads=shape.depth,
                projection=projection,
                host_per_step_s=host_s,
            )
        head = method in HEADS
        return LayersDraft(
            target,
            share=1.0 / model.num_layers if head else given.layer_share or 0.0,
            frontiers=shape.frontiers,
            keeps_cache=head,
            projection=projection if head else None,
            host_per_step_s=host_s,
        )

    def _draft_scenario(self, scenario: Scenario, host_s: float) -> Scenario:
        """The target's scenario with the draft's share of host and GPUs, and its own table."""
        latency = scenario.latency
        changed: dict[str, Any] = {
            "host_overhead": HostOverhead(per_iteration_us=host_s * 1e6),
        }
        if self.given.draft_table is not None:
            changed |= {"source": "table", "table": self.given.draft_table}
        elif latency.source == "table":
            changed |= {"source": "roofline", "table": None}
        parallel = {"tensor_parallel": self.draft_tensor_parallel}
        return scenario.model_copy(
            update={
                "latency": latency.model_copy(update=changed),
                "hardware": scenario.hardware.model_copy(update=parallel),
            }
        )

    def _projection(self, scenario: Scenario, model: ModelSpec, gpu: Gpu) -> Projection:
        """Eagle joins hidden state and embedding; each Medusa head begins with a residual block."""
        tp, latency = scenario.hardware.tensor_parallel, scenario.latency
        heads, rates = self.given.method == "medusa", gpu.kernel_rates.products
        return Projection(
            in_features=model.hidden_size * (1 if heads else 2),
            out_features=model.hidden_size // tp,
            count=self.technique.shape.depth if heads else 1,
            flops_per_s=gpu.bfloat16_flops_per_s * (latency.gemm_efficiency or rates.efficiency),
            bytes_per_s=gpu.memory_bytes_per_s
            * (latency.memory_efficiency or rates.memory_efficiency),
            launch_s=rates.overhead_s,
            ranks=scenario.hardware.expert_parallel,
        )


def speculator(
    scenario: Scenario, model: ModelSpec, *, beside: Path | None = None
) -> Speculator | None:
    """The scenario's technique; None where it does not speculate.

    Raises ValueError for a draft that cannot serve this target, and for impossible shapes.
    """
    given = scenario.speculation
    if given is None:
        return None
    engine, shape = scenario.engine, _shape(given)
    if engine.scheduler in ("static", "dynamic"):
        raise ValueError(
            f"engine.scheduler {engine.scheduler} batches by request and keeps all rows of a batch "
            "equally long, accepted tokens make them advance unevenly; allowed: orca, paged, "
            "chunked"
        )
    if shape.query_tokens > engine.max_num_batched_tokens:
        raise ValueError(
            f"one sequence verifies {shape.query_tokens} tokens, engine.max_num_batched_tokens is "
            f"{engine.max_num_batched_tokens}"
        )
    spread = parallelism_of(scenario.hardware)
    alone = (
        spread.pipeline_parallel, spread.sequence_parallel, spread.data_parallel,
        spread.decode_context_parallel,
    )  # fmt: skip
    if max(alone) > 1:
        raise ValueError(
            f"over ranks of {spread.words} it is not modelled, only over tensor_parallel and, "
            "without a draft model, expert_parallel"
        )
    if given.draft_model is not None and spread.expert_parallel > 1:
        raise ValueError(
            f"a draft model beside expert_parallel {spread.expert_parallel} is not modelled; "
            "methods without one are, such as eagle and ngram"
        )
    draft, parallel = None, scenario.hardware.tensor_parallel
    if given.draft_model is not None:
        # vLLM proposes what is likeliest, however the target samples.
        draft = replace(library.model(given.draft_model, beside=beside), sampling="greedy")
        parallel = given.draft_tensor_parallel or parallel
        _check_draft(draft, model, parallel, scenario.hardware.tensor_parallel)
    technique = Speculation(given.method, shape, _acceptance(given, shape, beside=beside))
    return Speculator(given, technique, draft, parallel)


def _check_draft(draft: ModelSpec, model: ModelSpec, parallel: int, target_parallel: int) -> None:
    sizes = [spec.num_parameters / 1e9 for spec in (draft, model)]
    if draft.num_parameters >= model.num_parameters:
        raise ValueError(
            f"the draft {draft.name} ({sizes[0]:.3g} billion parameters) is not smaller than the "
            f"target {model.name} ({sizes[1]:.3g})"
        )
    if draft.vocab_size != model.vocab_size:
        raise ValueError(
            f"the draft {draft.name} has a vocabulary of {draft.vocab_size} tokens, the target "
            f"{model.name} of {model.vocab_size}: its proposals would mean nothing"
        )
    if parallel not in (1, target_parallel):
        raise ValueError(
            f"draft_tensor_parallel {parallel}: allowed are 1 and the target's {target_parallel}"
        )
    draft.check_tensor_parallel(parallel)


def _shape(given: Given) -> DraftShape:
    if given.method == "lookahead":
        assert given.window and given.ngram and given.guesses
        return DraftShape.lookahead(given.window, given.ngram, given.guesses)
    # vLLM: a draft with a cache of its own gets its slots ahead.
    ahead = given.method in ("draft_model", "tree", *HEADS)
    if given.branching is not None:
        return DraftShape.tree(tuple(given.branching), ahead=ahead)
    k = given.num_draft_tokens or 0
    return DraftShape.chain(k, lookahead_slots=k if ahead else 0)


def _acceptance(given: Given, shape: DraftShape, *, beside: Path | None) -> acceptance.Acceptance:
    stated = given.acceptance
    if stated.trace is not None:
        return acceptance.recorded(_read_trace(stated.trace, beside), shape.depth)
    match_rate = 1.0 if given.match_rate is None else given.match_rate
    if stated.recording is not None:
        survival, match_rate = read_recording(stated.recording, given, shape, beside=beside)
    elif stated.per_position is not None:
        survival = np.array(stated.per_position)
    elif stated.per_rank is not None:
        survival = acceptance.ranked_tree(stated.per_rank, given.branching or ())
    else:
        assert stated.rate is not None
        if given.branching is not None:
            survival = acceptance.sampled_tree(stated.rate, given.branching)
        elif given.guesses is not None:
            survival = acceptance.parallel_guesses(stated.rate, shape.depth, given.guesses)
        else:
            survival = acceptance.chain(stated.rate, shape.depth)
    return acceptance.RandomAcceptance(survival, match_rate=match_rate, seed=given.seed)


def _read_trace(name: str, beside: Path | None) -> list[list[int | None]]:
    """Lines of JSON: a list of accepted tokens, one number per verification of one request, null
    where it had no draft."""
    path = library.find_file(name, beside=beside)
    if path is None or not path.is_file():
        raise InputError(f"{name}: no such acceptance trace")
    rows: list[list[int | None]] = []
    for number, line in enumerate(plain_file.read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{path}:{number}: not valid JSON") from None
        whole = isinstance(row, list) and all(count is None or type(count) is int for count in row)
        if not whole:
            raise InputError(
                f"{path}:{number}: expected a list of accepted tokens, e.g. [3, 0, 2], one number "
                "per verification, null without a draft"
            )
        rows.append(row)
    return rows


def _seconds(microseconds: float | None, default_s: float) -> float:
    return default_s if microseconds is None else microseconds / 1e6
