"""What vLLM chooses where it is not told: limits of a batch by GPU and use, sizes of CUDA graphs.

Read in vLLM 0.32.0: ``EngineArgs.get_batch_defaults`` and
``_set_default_max_num_seqs_and_batched_tokens_args`` (engine/arg_utils.py),
``VllmConfig._set_cudagraph_sizes`` (config/vllm.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.model.hardware import Gpu

_GIB = 2**30
# From so much memory on, but an A100's: sequences, tokens of a server, of offline use.
_LIMITS = ((160 * _GIB, 1024, 16384, 16384), (70 * _GIB, 1024, 8192, 16384), (0, 256, 2048, 8192))
_MOST_CAPTURED = 512  # tokens of a CUDA graph …
_MOST_CAPTURED_BLACKWELL = 1024  # … and on data centres' Blackwells (compute capability 10)
_BLACKWELLS = ("b100", "b200", "b300", "gb200", "gb300")


def batch_limits(gpu: Gpu, engine: Mapping[str, Any]) -> dict[str, int]:
    """``max_num_seqs``, ``max_num_batched_tokens`` and ``max_cudagraph_capture_size``.

    Those that `engine` gives bound those that it does not.
    """
    name = gpu.name.lower()
    _, seqs, served, offline = next(
        limits
        for limits in _LIMITS
        if gpu.memory_bytes >= limits[0] and (limits[0] != 70 * _GIB or "a100" not in name)
    )
    tokens = offline if engine.get("usage_context") == "llm_class" else served
    given_seqs, given_tokens = engine.get("max_num_seqs"), engine.get("max_num_batched_tokens")
    longest = engine.get("max_model_len")
    if isinstance(given_seqs, int):
        seqs = given_seqs
    if isinstance(given_tokens, int):
        tokens = given_tokens
    elif isinstance(longest, int):
        tokens = min(tokens, seqs * longest)
    seqs = min(seqs, tokens)
    blackwell = name.startswith(_BLACKWELLS)
    most = _MOST_CAPTURED_BLACKWELL if blackwell else _MOST_CAPTURED
    return {
        "max_num_seqs": seqs,
        "max_num_batched_tokens": tokens,
        "max_cudagraph_capture_size": most,
    }


def capture_sizes(
    most: int, *, max_num_seqs: int, max_num_batched_tokens: int, query_tokens: int = 1
) -> tuple[int, ...]:
    """Sizes in tokens for which graphs are captured, none above `most`.

    `query_tokens`: what a decoding sequence brings to an iteration, its drafts included.
    """
    reached = min(max_num_seqs, most)
    decodes = {reached, *_strides(reached)} if query_tokens > 1 else {max_num_seqs}
    most = min(most, max_num_seqs * query_tokens * 2)
    sizes = {count * query_tokens for count in decodes if count * query_tokens <= most}
    most = min(most, max_num_batched_tokens)
    sizes |= {*_strides(most)}
    if max_num_batched_tokens <= most:
        sizes.add(max_num_batched_tokens)
    return tuple(sorted(size for size in sizes if size <= max_num_batched_tokens))


def _strides(most: int) -> list[int]:
    """1, 2, 4, multiples of 8 up to 256, multiples of 16 up to `most`."""
    small = [size for size in (1, 2, 4) if size <= most]
    return [*small, *range(8, min(most + 1, 256), 8), *range(256, most + 1, 16)]
