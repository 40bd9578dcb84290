"""A model's figures as plain data: parameters, FLOPs, memory in training and in serving."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from scenarios import library
from scenarios.forecast.memory import profiling_run
from scenarios.schema.engine import Engine
from scenarios.schema.sizing import Training
from scenarios.sizing.layer_tensors import HALF, SINGLE, ActivationSettings
from scenarios.sizing.model_anatomy import forward_flops_per_token, parameter_split
from scenarios.sizing.training import (
    Degrees,
    TrainingMemory,
    gpus_to_hold_weights,
    least_gpus_to_train,
    training_flops_per_token,
    training_memory,
)
from scenarios.sizing.training_step import training_step
from sim.kv.memory import memory_budget
from sim.model.hardware import Gpu
from sim.model.spec import ModelSpec

MOST_TENSOR_PARALLEL = 64


def model_figures(model: ModelSpec, training: Training) -> dict[str, Any]:
    """Shape, parameters by part, FLOPs a token, bytes of weights and of a token's KV."""
    split = parameter_split(model)
    figures: dict[str, Any] = {
        "name": model.name,
        "layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "attention_heads": model.num_attention_heads,
        "kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.intermediate_size,
        "vocab_size": model.vocab_size,
    }
    if model.moe is not None:
        figures |= {
            "experts": model.moe.num_experts,
            "experts_per_token": model.moe.experts_per_token,
            "expert_intermediate_size": model.moe.intermediate_size,
        }
    length = training.sequence_length
    tied = model.tie_word_embeddings
    table = 0 if tied else model.vocab_size * model.hidden_size
    return figures | {
        "parameters": {
            "total": model.num_parameters,
            "activated": model.num_activated_parameters,
            # A token reads one row of the input table: some publish the rest as activated.
            "activated_without_input_table": model.num_activated_parameters - table,
            **asdict(split),
        },
        "flops_per_token": {
            "forward": forward_flops_per_token(model, length),
            "training": training_flops_per_token(model, length),
            "training_with_recomputation": training_flops_per_token(
                model, length, checkpointing=training.checkpointing
            ),
            "six_n": 6 * model.num_activated_parameters,
            "sequence_length": length,
        },
        "weight_bytes": model.weight_bytes(),
        "kv_bytes_per_token": model.kv_bytes_per_token(),
    }


def training_memory_figures(model: ModelSpec, training: Training, gpu: Gpu) -> dict[str, Any]:
    """Bytes of training by part, of the whole model and on each GPU of the cluster."""
    settings = ActivationSettings(
        micro_batch=training.micro_batch,
        sequence_length=training.sequence_length,
        checkpointing=training.checkpointing,
        fused_attention=training.fused_attention,
        dropout=training.dropout,
    )
    options: dict[str, Any] = {
        "gradient_bytes_each": SINGLE if training.gradient_dtype == "float32" else HALF
    }
    degrees = training_degrees(training, settings)
    whole = training_memory(model, settings, **options)
    each = training_memory(model, settings, degrees, **options)
    step = training_step(model, settings, degrees, gpu, **options)
    return {
        "whole": _bytes(whole),
        "per_gpu": _bytes(each),
        "gpu_memory_bytes": gpu.memory_bytes,
        "fits": each.total_bytes <= gpu.memory_bytes,
        "least_gpus": least_gpus_to_train(model, settings, gpu, degrees, **options),
        "step": step.figures(),
    }


def training_degrees(training: Training, settings: ActivationSettings) -> Degrees:
    """The cluster's degrees; all GPUs that are left over are data-parallel ranks.

    Raises ValueError where the degrees do not divide the GPUs.
    """
    group = training.tensor_parallel * training.pipeline_parallel * training.sequence_parallel
    if training.gpus % group:
        raise ValueError(
            f"training.gpus {training.gpus:,} is no multiple of its tensor, pipeline and sequence "
            f"degrees, {group}"
        )
    data = training.gpus // group
    return Degrees(
        tensor=training.tensor_parallel,
        pipeline=training.pipeline_parallel,
        data=data,
        sequence=training.sequence_parallel,
        zero_stage=training.zero_stage,
        micro_batches=max(1, round(training.batch_tokens / settings.tokens / data)),
        expert=training.expert_parallel,
    )


def _bytes(memory: TrainingMemory) -> dict[str, float]:
    return {**asdict(memory), "total_bytes": memory.total_bytes}


def inference_memory_figures(
    model: ModelSpec, gpus: Iterable[str], engine: Engine
) -> list[dict[str, Any]]:
    """For each GPU type: how many hold the weights, and how many serve, with which KV cache."""
    rows = []
    for name in gpus:
        gpu = library.gpu(name)
        row: dict[str, Any] = {
            "gpu": name,
            "gpu_memory_bytes": gpu.memory_bytes,
            "utilization": engine.gpu_memory_utilization,
            "gpus_for_weights": gpus_to_hold_weights(
                model, gpu, utilization=engine.gpu_memory_utilization
            ),
            "tensor_parallel": None,
            "weight_bytes_per_gpu": None,
            "kv_cache_tokens": None,
        }
        for degree in range(1, MOST_TENSOR_PARALLEL + 1):
            try:
                memory = memory_budget(
                    model,
                    gpu,
                    tensor_parallel=degree,
                    gpu_memory_utilization=engine.gpu_memory_utilization,
                    block_size=engine.block_size,
                    kv_cache_dtype=engine.kv_cache_dtype,
                    max_num_batched_tokens=engine.max_num_batched_tokens,
                    max_num_seqs=engine.max_num_seqs,
                    profiling=profiling_run(engine),
                    remedy=False,
                )
            except ValueError:  # it cannot be split so, or does not fit
                continue
            row |= {
                "tensor_parallel": degree,
                "weight_bytes_per_gpu": memory.weight_bytes,
                "kv_cache_tokens": memory.slots,
            }
            break
        rows.append(row)
    return rows
