"""How InferenceMAX starts its servers, where it does not leave that to the engine.

Its rows tell model, GPU, engine and degrees. The rest is in its public scripts (github.com/
SemiAnalysisAI/InferenceX, ``benchmarks/*.sh``, at the versions of the rows' dates): type of the KV
cache and tokens of a batch. Some of its configurations decode speculatively (``spec-decoding: mtp``
in ``nvidia-master.yaml``). A row does not say of which configuration it is, so none of an image
that both kinds were run with can be read as plain decoding.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Server:
    """What a script gives; a budget of None is the prompt and a token of every sequence."""

    kv_cache_dtype: str = "auto"
    max_num_batched_tokens: int | None = 8192


# (part of the model's name, GPU, engine, weights), "": any; the first that fits.
_SERVERS: tuple[tuple[tuple[str, str, str, str], Server], ...] = (
    # On H100 twice as many sequences would have run at once, had their caches been in 8 bits.
    (("Llama-3.1-70B", "h100", "vllm", ""), Server("auto")),
    (("Llama-3.1-70B", "", "vllm", ""), Server("fp8")),
    (("Llama-3.1-70B", "", "trtllm", ""), Server("fp8", 16384)),
    (("gpt-oss", "b200", "vllm", ""), Server("fp8")),
    (("gpt-oss", "", "trtllm", ""), Server("fp8", 20000)),
    (("DeepSeek", "h200", "trtllm", ""), Server("fp8", None)),
    (("DeepSeek", "", "trtllm", ""), Server("fp8", 8192)),
    (("DeepSeek", "h200", "sglang", ""), Server("auto", 32768)),
    (("DeepSeek", "", "sglang", "fp4"), Server("fp8", 16384)),
    (("DeepSeek", "", "sglang", ""), Server("fp8", 32768)),
    (("Qwen3.5", "h200", "sglang", ""), Server("fp8", 16384)),
    (("Qwen3.5", "", "sglang", "bf16"), Server("auto", 32768)),
    (("Qwen3.5", "", "sglang", ""), Server("fp8", 32768)),
    (("GLM-5", "b200", "sglang", ""), Server("fp8", 32768)),
)
# (…, weights, version): configurations with spec-decoding have these images.
_SPECULATING = (
    ("DeepSeek", "", "trtllm", "", "1.2.0rc6.post3"),
    ("DeepSeek", "", "trtllm", "", "1.1.0rc2.post2"),
    ("DeepSeek", "b200", "sglang", "fp8", "0.5.9"),
)


def server_of(model: str, system: str, backend: str, precision: str) -> Server:
    """How the server of such a row was started."""
    row = (model, system, backend, precision)
    fits = (server for key, server in _SERVERS if _fits(key, row))
    return next(fits, Server())


def may_speculate(
    origin: str, model: str, system: str, backend: str, precision: str, version: str
) -> bool:
    """Whether a row of this image may have been decoded speculatively.

    In the dump no deployment of these has two times between tokens, and it is always the longer.
    """
    row = (model, system, backend, precision, version)
    return origin.startswith("source_file=") and any(_fits(key, row) for key in _SPECULATING)


def _fits(key: tuple[str, ...], row: tuple[str, ...]) -> bool:
    """Whether each part of a key is in the row's; versions and engines are whole words."""
    return all(part in value for part, value in zip(key, row, strict=True))
