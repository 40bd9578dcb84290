"""The figures of a sizing in words: counts, money, bytes, the answer in a sentence or two."""

from collections.abc import Mapping
from typing import Any

from scenarios.quantity import GAP, MISSING, plain

Figures = Mapping[str, Any]  # what `orcast size --json` prints
_SIZES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_BINARY = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def short(value: float | None, digits: int = 3) -> str:
    """A count as models are named: 7.43B, 224B, 36T."""
    if value is None:
        return MISSING
    for size, letter in _SIZES:
        if abs(value) >= 0.9995 * size:
            return f"{plain(value / size, digits)}{letter}"
    return plain(value, digits)


def power(value: float | None) -> str:
    """FLOPs: 1.02e22."""
    if value is None:
        return MISSING
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def usd(value: float | None) -> str:
    """Money: $0.0271, $1,240, $121k, $1.30M."""
    if value is None:
        return MISSING
    if value >= 1e5:
        return f"${short(value)}"
    return f"${value:,.0f}" if value >= 100 else f"${plain(value)}"


def memory(value: float | None) -> str:
    """Bytes: 12.6 GiB."""
    if value is None:
        return MISSING
    for size, unit in _BINARY:
        if value >= size:
            return f"{plain(value / size)}{GAP}{unit}"
    return f"{value:,.0f}{GAP}B"


def days(value: float | None) -> str:
    """A training run's length."""
    if value is None:
        return MISSING
    if value >= 2:
        return f"{plain(value)}{GAP}days"
    return f"{plain(24 * value)}{GAP}h"


def deployment(one: Figures) -> str:
    """``1 x l40s``, and ``4 of 1 x l40s`` where a load needs so many replicas."""
    name = f"{one['tensor_parallel']} x {one['gpu']}"
    return name if one.get("replicas") is None else f"{one['replicas']:,} of {name}"


def service(figures: Figures) -> str:
    """What is asked of serving: its objectives, and its load where there is one."""
    asked = figures["service"]
    limits = [f"{one['name']} ≤ {plain(one['limit_ms'])} ms" for one in asked["objectives"]]
    words = f"within {', '.join(limits)}" if limits else "with work always waiting"
    if asked["request_rate"] is not None:
        words += f", {plain(asked['request_rate'])} requests/s in all"
    return words


def shape(model: Figures) -> str:
    """A model's shape in a few words."""
    text = (
        f"{model['layers']} layers, width {model['hidden_size']:,}, "
        f"{model['attention_heads']} heads of {model['head_dim']} ({model['kv_heads']} KV), "
    )
    if model.get("experts"):
        return text + (
            f"{model['experts']} experts of width {model['expert_intermediate_size']:,}, "
            f"{model['experts_per_token']} per token"
        )
    return text + f"MLP {model['intermediate_size']:,}"


def count_of(candidate: Figures) -> str:
    """A candidate's parameters: 7.43B, or 17.2B (3.67B active)."""
    total, active = candidate["parameters"], candidate["activated_parameters"]
    return short(total) if active == total else f"{short(total)} ({short(active)} active)"


def budget(figures: Figures) -> str:
    """What may be spent, as it was asked."""
    given = figures["budget"]
    return usd(given["usd"]) if given.get("given") == "usd" else f"{power(given['flops'])} FLOPs"


def both(figures: Figures) -> str:
    """The budget in FLOPs and in money."""
    given = figures["budget"]
    flops, money = f"{power(given['flops'])} FLOPs", usd(given["usd"])
    return f"{money} ({flops})" if given.get("given") == "usd" else f"{flops} ({money})"


def title(figures: Figures) -> str:
    """The answer in a heading."""
    answer = figures["answer"]
    if "budget" not in figures:
        return f"What {answer['model']} takes"
    buys = "buys" if figures["budget"].get("given") == "usd" else "buy"
    return (
        f"{budget(figures)} {buys} {count_of(answer)} parameters on "
        f"{short(answer['tokens'])} tokens"
    )


def headline(figures: Figures) -> str:
    """The answer in a few sentences: what the budget buys, then what would exceed it."""
    answer = figures["answer"]
    if "budget" not in figures:
        total, active = answer["parameters"], answer["activated_parameters"]
        text = f"{total:,} parameters"
        if active != total:
            text += f", {active:,} of them activated by a token"
        if answer["training_usd"] is not None:
            text += (
                f"; training on {short(answer['tokens'])} tokens takes "
                f"{power(answer['training_flops'])} FLOPs, {days(answer['training_days'])} and "
                f"{usd(answer['training_usd'])}"
            )
        return text + "."
    first = figures["candidates"][0]
    if answer["compute_optimal"]:
        text = (
            f"Spent on training alone, {both(figures)} are best spent on {count_of(first)} "
            f"parameters and {short(first['tokens'])} tokens: a loss of {first['loss']:.4f}."
        )
        if answer["lifetime_usd"] is not None:
            text += (
                f" It stays the cheapest with its serving: {usd(answer['lifetime_usd'])} over "
                f"{short(figures['lifetime_optimum']['served_tokens'])} tokens."
            )
        return text
    served = short(figures["lifetime_optimum"]["served_tokens"])
    text = (
        f"{both(figures)} train {count_of(answer)} parameters on {short(answer['tokens'])} tokens "
        f"to a loss of {answer['loss']:.4f}; with {served} tokens served that costs "
        f"{usd(answer['lifetime_usd'])} over its life. The lowest loss they buy is "
        f"{first['loss']:.4f}, with {count_of(first)} on {short(first['tokens'])} tokens"
    )
    if first["lifetime_usd"] is not None:
        text += f", for {usd(first['lifetime_usd'])} over its life"
    return f"{text}.{beyond_budget(figures)}"


def beyond_budget(figures: Figures) -> str:
    """What would exceed the budget: the answer's size trained on to the lowest loss."""
    beyond, first = figures["beyond_budget"], figures["candidates"][0]
    if beyond is None:
        return ""
    text = (
        f" Beyond the budget: {count_of(figures['answer'])} trained on to that loss, on "
        f"{short(beyond['tokens'])} tokens, costs {usd(beyond['training_usd'])} to train, "
        f"{usd(beyond['over_usd'])} ({beyond['share']:.0%}) more, and "
        f"{usd(beyond['lifetime_usd'])} over its life"
    )
    if first["lifetime_usd"] is not None:
        saved = 1 - beyond["lifetime_usd"] / first["lifetime_usd"]
        text += f", {saved:.0%} less than {count_of(first)}"
    return text + "."


PARTS = {
    "embedding": "Embedding and head",
    "attention": "Attention",
    "mlp": "MLP",
    "experts": "Experts",
    "router": "Router",
    "norms": "Norms",
}
MEMORY_PARTS = {
    "parameter_bytes": "Parameters",
    "gradient_bytes": "Gradients",
    "optimizer_bytes": "Optimizer states",
    "activation_bytes": "Activations",
}
