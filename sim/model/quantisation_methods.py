"""What a checkpoint's configuration says of how its weights lie.

Read are ``quantization_config`` and ``compression_config`` of a config.json, MLX's ``quantization``
and ModelOpt's hf_quant_config.json: fp8 (blocks, per tensor), fbgemm, compressed-tensors, ModelOpt,
AWQ, GPTQ, AutoRound, bitsandbytes, MXFP4, Quark, MLX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sim.model import weight_format
from sim.model.module_names import ModulePatterns
from sim.model.quantisation import Quantisation
from sim.model.weight_format import WeightFormat

UNDERSTOOD = (
    "awq, gptq, auto-round, bitsandbytes, compressed-tensors, fbgemm_fp8, fp8, mlx, modelopt, "
    "mxfp4, quark"
)


def read_quantisation(
    config: Mapping[str, Any], beside: Mapping[str, Any] | None, *, name: str
) -> Quantisation | None:
    """What the configuration (and hf_quant_config.json beside it) says; None: plain weights.

    Raises ``ValueError``, one line, on what is not understood.
    """
    found = next(
        (
            config[key]
            for key in ("quantization_config", "compression_config", "quantization")
            if config.get(key)
        ),
        beside,
    )
    if not found:
        return None
    if not isinstance(found, Mapping):
        raise ValueError(f"{name}: quantization_config must be a mapping, not {found!r}")
    inner = found.get("quantization")
    said = {**found, **inner} if isinstance(inner, Mapping) else found
    method = str(said.get("quant_method") or _implied(said)).lower()
    method = method.removesuffix("_marlin").replace("_", "-")
    reader = _READERS.get(method)
    if method.startswith("modelopt"):
        reader = _modelopt
    if reader is None:
        raise ValueError(
            f"{name}: quantization_config quant_method {said.get('quant_method')!r} is not "
            f"understood; understood: {UNDERSTOOD}"
        )
    try:
        return reader(said)
    except _Unclear as error:
        raise ValueError(f"{name}: quantization_config: {error}") from None
    except (TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(
            f"{name}: quantization_config of {method} cannot be read: {error}"
        ) from None


class _Unclear(ValueError):
    """Something in it that cannot be told."""


def _implied(said: Mapping[str, Any]) -> str:
    """The method of a section that does not name it."""
    if "quant_algo" in said:
        return "modelopt"
    if "config_groups" in said:
        return "compressed-tensors"
    if "group_size" in said and "bits" in said:
        return "mlx"
    return "none"


def _ignored(said: Mapping[str, Any], *keys: str) -> ModulePatterns:
    listed: list[str] = []
    for key in keys:
        value = said.get(key) or []
        listed += [value] if isinstance(value, str) else [str(one) for one in value]
    return ModulePatterns(listed)


def _positive(said: Mapping[str, Any], *keys: str, default: int | None = None) -> int:
    for key in keys:
        value = said.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value <= 2**20:
            raise _Unclear(f"{key} must be a whole number, not {value!r}")
        return value
    if default is None:
        raise _Unclear(f"{keys[0]} is missing")
    return default


def _bits(said: Mapping[str, Any], *keys: str) -> int:
    bits = _positive(said, *keys)
    if bits not in (2, 3, 4, 5, 6, 8):
        raise _Unclear(f"{keys[0]} {bits} is not understood; understood: 2, 3, 4, 5, 6, 8")
    return bits


# -- one method each ----------------------------------------------------------------------------


def _fp8(said: Mapping[str, Any]) -> Quantisation:
    block = said.get("weight_block_size")
    form = weight_format.fp8_tensor()
    if block is not None:
        form = weight_format.fp8_block(int(block[1]), int(block[0]))
    ignored = _ignored(said, "modules_to_not_convert", "ignored_layers")
    return Quantisation("fp8", ((None, form),), ignored)


def _fbgemm(said: Mapping[str, Any]) -> Quantisation:
    ignored = _ignored(said, "modules_to_not_convert")
    return Quantisation("fbgemm_fp8", ((None, weight_format.fp8_channel()),), ignored)


def _awq(said: Mapping[str, Any]) -> Quantisation:
    form = weight_format.integers(
        _bits(said, "bits", "w_bit"),
        _positive(said, "group_size", "q_group_size", default=128),
        zero_point=said.get("zero_point") is not False,
    )
    return Quantisation("awq", ((None, form),), _ignored(said, "modules_to_not_convert"))


def _gptq(said: Mapping[str, Any]) -> Quantisation:
    form = weight_format.integers(
        _bits(said, "bits"), _positive(said, "group_size", default=128),
        zero_point=True, order=True,
    )  # fmt: skip
    without = [key[2:] for key in said.get("dynamic") or {} if key.startswith("-:")]
    ignored = _ignored(said, "modules_to_not_convert")
    return Quantisation(
        "gptq", ((None, form),), ignored.and_also(f"re:{pattern}" for pattern in without)
    )


def _auto_round(said: Mapping[str, Any]) -> Quantisation:
    form = weight_format.integers(
        _bits(said, "bits"), _positive(said, "group_size", default=128), zero_point=True
    )
    extra = said.get("extra_config") or {}
    whole = [name for name, own in extra.items() if int(own.get("bits", 4)) >= 16]
    return Quantisation("auto-round", ((None, form),), ModulePatterns(whole))


def _bitsandbytes(said: Mapping[str, Any]) -> Quantisation:
    ignored = _ignored(said, "llm_int8_skip_modules")
    if said.get("load_in_8bit") or said.get("_load_in_8bit"):
        form = WeightFormat("int8", 8, "int8 (bitsandbytes)", output_bytes=4)
    else:  # an absmax of 64 weights, quantised itself with double quantisation (QLoRA, section 3)
        twice = said.get("bnb_4bit_use_double_quant")
        each = 1 + 4 / 256 if twice else 4
        kind = said.get("bnb_4bit_quant_type") or "nf4"
        form = WeightFormat("int4", 4, f"{kind} (bitsandbytes)", group=(64, 1), group_bytes=each)
    return Quantisation("bitsandbytes", ((None, form),), ignored)


def _mxfp4(said: Mapping[str, Any]) -> Quantisation:
    """gpt-oss: the routed experts' weights, the rest is plain."""
    ignored = _ignored(said, "modules_to_not_convert")
    return Quantisation("mxfp4", ((None, weight_format.mxfp4()),), ignored, only_experts=True)


def _mlx(said: Mapping[str, Any]) -> Quantisation:
    """MLX quantises embeddings and head too; a group has a scale and a bias of 16 bits."""
    mode = said.get("mode") or "affine"
    if mode == "mxfp4":
        form = weight_format.mxfp4()
    elif mode == "affine":
        bits, group = _bits(said, "bits"), _positive(said, "group_size", default=64)
        dtype = "int8_wo" if bits == 8 else "int4"
        words = f"int{bits}, groups of {group} (MLX)"
        form = WeightFormat(dtype, bits, words, group=(group, 1), group_bytes=4)
    else:
        raise _Unclear(f"mode {mode!r} of MLX is not understood; understood: affine, mxfp4")
    whole = [name for name, own in said.items() if own is False]
    return Quantisation("mlx", ((None, form),), ModulePatterns(whole), everywhere=True)


def _compressed(said: Mapping[str, Any]) -> Quantisation:
    rules = []
    for group in (said.get("config_groups") or {}).values():
        weights = group.get("weights")
        if weights is None:
            continue
        targets = group.get("targets") or ["Linear"]
        everything = any(str(one) in ("Linear", "MoEGate") for one in targets)
        form = _scheme(weights, group.get("input_activations"), str(said.get("format") or ""))
        rules.append((None if everything else ModulePatterns(map(str, targets)), form))
    if not rules:
        raise _Unclear("config_groups names no weights")
    rules.sort(key=lambda rule: rule[0] is None)  # named modules before everything
    kv = said.get("kv_cache_scheme")
    return Quantisation(
        "compressed-tensors", tuple(rules), _ignored(said, "ignore"), kv_cache_dtype=_kv(kv)
    )


def _scheme(
    weights: Mapping[str, Any], inputs: Mapping[str, Any] | None, packing: str
) -> WeightFormat:
    """compressed-tensors' QuantizationArgs, by type, bits and strategy."""
    kind, strategy = str(weights.get("type") or "int"), str(weights.get("strategy") or "")
    bits, group = _bits(weights, "num_bits"), weights.get("group_size")
    if kind == "float" and bits == 4:
        mx = "mxfp4" in packing or group == 32
        return weight_format.mxfp4() if mx else weight_format.nvfp4()
    if kind == "float" and bits == 8:
        block = weights.get("block_structure")
        if strategy == "block" and block:
            return weight_format.fp8_block(int(block[1]), int(block[0]))
        if group == 32:
            return weight_format.mxfp8()
        return weight_format.fp8_channel() if strategy == "channel" else weight_format.fp8_tensor()
    if kind == "int" and bits == 8 and inputs is not None:
        return weight_format.int8_channel()
    if kind == "int":
        size = -1 if strategy == "channel" or group is None else int(group)
        return weight_format.integers(bits, size, zero_point=weights.get("symmetric") is False)
    raise _Unclear(f"weights of type {kind!r} with {bits} bits are not understood")


_ALGORITHMS: dict[str, Callable[[int], WeightFormat]] = {
    "FP8": lambda _: weight_format.fp8_tensor(),
    "FP8_PER_CHANNEL_PER_TOKEN": lambda _: weight_format.fp8_channel(),
    "FP8_PB_WO": lambda _: weight_format.fp8_block(),
    "FP8_BLOCK_SCALES": lambda _: weight_format.fp8_block(),
    "NVFP4": lambda _: weight_format.nvfp4(),
    "NVFP4_AWQ": lambda _: weight_format.nvfp4(),
    "W4A8_NVFP4_FP8": lambda _: weight_format.nvfp4(),
    "W4A16_NVFP4": lambda _: weight_format.nvfp4(),
    "MXFP4": lambda _: weight_format.mxfp4(),
    "W4A8_MXFP4_FP8": lambda _: weight_format.mxfp4(),
    "MXFP8": lambda _: weight_format.mxfp8(),
    "W4A16_AWQ": lambda group: weight_format.integers(4, group, zero_point=False),
    "W4A8_AWQ": lambda group: weight_format.integers(4, group, zero_point=False),
    "W4A16": lambda group: weight_format.integers(4, group, zero_point=False),
    "W8A16": lambda group: weight_format.integers(8, group, zero_point=False),
    "W8A8_SQ_PER_CHANNEL": lambda _: weight_format.int8_channel(),
    "INT8_SQ": lambda _: weight_format.int8_channel(),
}


def _modelopt(said: Mapping[str, Any]) -> Quantisation:
    """NVIDIA ModelOpt: one algorithm, or one a layer (MIXED_PRECISION)."""
    algorithm = str(said.get("quant_algo") or "").upper()
    ignored = _ignored(said, "exclude_modules", "ignore", "modules_to_not_convert")
    kv = said.get("kv_cache_quant_algo", said.get("kv_cache_scheme"))
    group = _positive(said, "group_size", default=128)
    rules: list[tuple[ModulePatterns | None, WeightFormat]] = []
    if algorithm == "MIXED_PRECISION":
        named: dict[WeightFormat, list[str]] = {}
        for module, own in (said.get("quantized_layers") or {}).items():
            form = _algorithm(str(own.get("quant_algo")).upper(), group)
            named.setdefault(form, []).append(str(module))
        rules += [(ModulePatterns(modules), form) for form, modules in named.items()]
        if not rules:
            raise _Unclear("MIXED_PRECISION without quantized_layers")
    else:
        rules.append((None, _algorithm(algorithm, group)))
    return Quantisation("modelopt", tuple(rules), ignored, kv_cache_dtype=_kv(kv))


def _algorithm(name: str, group: int) -> WeightFormat:
    if name not in _ALGORITHMS:
        known = ", ".join(_ALGORITHMS)
        raise _Unclear(f"quant_algo {name!r} is not understood; understood: {known}")
    return _ALGORITHMS[name](group)


def _quark(said: Mapping[str, Any]) -> Quantisation:
    """AMD Quark: one global scheme, layers of their own, layers left out."""
    rules = [
        (ModulePatterns([str(pattern)]), _quark_format(own))
        for pattern, own in (said.get("layer_quant_config") or {}).items()
        if own.get("weight")
    ]
    whole = _quark_format(said["global_quant_config"])
    cache = said.get("kv_cache_group") and said.get("kv_cache_quant_config")
    return Quantisation(
        "quark", (*rules, (None, whole)), _ignored(said, "exclude"),
        kv_cache_dtype="fp8" if cache else None,
    )  # fmt: skip


def _quark_format(own: Mapping[str, Any]) -> WeightFormat:
    weight = own["weight"]
    weight = weight[0] if isinstance(weight, list) else weight
    dtype, scheme = str(weight.get("dtype")), str(weight.get("qscheme"))
    if dtype.startswith("fp8"):
        return (
            weight_format.fp8_channel() if scheme == "per_channel" else weight_format.fp8_tensor()
        )
    if dtype in ("fp4", "mxfp4"):
        return weight_format.mxfp4()
    if dtype in ("int4", "uint4"):
        group = int(weight.get("group_size") or -1)
        return weight_format.integers(4, group, zero_point=dtype == "uint4")
    if dtype == "int8":
        return weight_format.int8_channel()
    raise _Unclear(f"weights of dtype {dtype!r} (Quark) are not understood")


def _kv(said: Any) -> str | None:
    """The KV cache's type, where the checkpoint has scales for one."""
    if not said:
        return None
    if isinstance(said, Mapping):
        eight = said.get("num_bits") == 8 and said.get("type") == "float"
        return "fp8" if eight else None
    return "fp8" if str(said).upper().startswith("FP8") else None


_READERS: dict[str, Callable[[Mapping[str, Any]], Quantisation]] = {
    "fp8": _fp8,
    "fbgemm-fp8": _fbgemm,
    "awq": _awq,
    "gptq": _gptq,
    "gptqmodel": _gptq,
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
    "bitsandbytes": _bitsandbytes,
    "mxfp4": _mxfp4,
    "mlx": _mlx,
    "compressed-tensors": _compressed,
    "quark": _quark,
}
