"""LoRA adapters and answers bound to a grammar: a scenario's words of them as memory and time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from scenarios.schema.scenario import Scenario
from sim.kv.memory import MemoryBudget
from sim.latency.beside import BesideLatency
from sim.latency.protocol import LatencyModel
from sim.model.adapters import Adapters, adapter_bytes
from sim.model.hardware import Gpu
from sim.model.spec import ModelSpec

GIB = 2**30
_READ_EFFICIENCY = 0.8  # of the peak bandwidth, that thin matrices are read at: an assumption


def adapters_of(scenario: Scenario) -> Adapters | None:
    """Which adapters requests ask for, and the slots for them; None where for none.

    Classes of a trace are taken to be equally frequent.
    """
    workload, engine = scenario.workload, scenario.engine
    given = workload.adapters
    if not given:
        return None
    if workload.classes is not None:
        whole = sum(one.share for one in workload.classes.values())
        shares = tuple(workload.classes[name].share / whole for name in given)
    else:
        shares = tuple(1.0 / len(given) for _ in given)
    return Adapters(
        shares, engine.max_lora_rank or max(given.values()), engine.max_loras or len(given)
    )


def with_adapters_memory(
    budget: MemoryBudget, scenario: Scenario, model: ModelSpec
) -> MemoryBudget:
    """What the slots of adapters leave of the cache. ValueError where that is nothing."""
    found = adapters_of(scenario)
    if found is None:
        return budget
    tp, engine = scenario.hardware.tensor_parallel, scenario.engine
    taken = found.slots * adapter_bytes(model, found.rank, tp)
    left = budget.kv_bytes - max(taken - budget.spare_bytes, 0)
    blocks = budget.num_gpu_blocks
    if engine.num_gpu_blocks_override is None and left < budget.kv_bytes:
        share = max(left - budget.state_bytes, 0) / max(budget.kv_bytes - budget.state_bytes, 1)
        blocks = int(blocks * share)
    if blocks <= budget.null_blocks or left <= budget.state_bytes:
        raise ValueError(
            f"no memory is left for the KV cache: {found.slots} slots of adapters of rank "
            f"{found.rank} take {taken / GIB:.1f} GiB of each GPU; lower engine.max_loras or "
            "engine.max_lora_rank, or take a GPU with more memory"
        )
    return replace(
        budget,
        weight_bytes=budget.weight_bytes + taken,
        kv_bytes=left,
        num_gpu_blocks=blocks,
    )


def with_beside(
    latency: LatencyModel, scenario: Scenario, model: ModelSpec, gpu: Gpu
) -> LatencyModel:
    """`latency` with what adapters and grammars add to iterations, where the scenario has any."""
    found, grammar = adapters_of(scenario), scenario.workload.structured_output
    if found is not None:
        each_s = adapter_bytes(model, found.rank, scenario.hardware.tensor_parallel) / (
            gpu.memory_bytes_per_s * _READ_EFFICIENCY
        )
        grouping_s = model.num_layers * scenario.latency.lora_us_per_layer / 1e6
        shares = found

        def adapters_s(num_seqs: int) -> float:
            return shares.among(num_seqs) * each_s + shares.any_among(num_seqs) * grouping_s

        latency = BesideLatency(latency, adapters_s, part="adapters", operator="contractions")
    if grammar is not None:
        share = grammar.share
        each_s, step_s = grammar.per_sequence_us / 1e6, grammar.per_step_us / 1e6

        def grammar_s(num_seqs: int) -> float:
            return share * num_seqs * each_s + (1.0 - (1.0 - share) ** num_seqs) * step_s

        latency = BesideLatency(latency, grammar_s, part="host", operator="host")
    return latency


def beside_notes(scenario: Scenario, model: ModelSpec) -> Iterator[str]:
    """What is assumed of adapters."""
    found = adapters_of(scenario)
    if found is not None:
        taken = found.slots * adapter_bytes(model, found.rank, scenario.hardware.tensor_parallel)
        yield (
            f"{len(found.shares)} LoRA adapters: {found.slots} slots of rank {found.rank} take "
            f"{taken / GIB:.2f} GiB of each GPU; grouping them takes "
            f"{scenario.latency.lora_us_per_layer:g} us a layer, assumed "
            "(latency.lora_us_per_layer); how many are in a batch goes by their shares"
        )
