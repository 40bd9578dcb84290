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


def title(figures: Figures) -> str:
    """The answer in a heading."""
    answer = figures["answer"]
    if "budget" not in figures:
        return f"What {answer['model']} takes"
    if answer["compute_optimal"]:
        return (
            f"{power(figures['budget']['flops'])} FLOPs buy {count_of(answer)} "
            f"parameters on {short(answer['tokens'])} tokens"
        )
    return (
        f"Train {count_of(answer)} parameters on {short(answer['tokens'])} tokens, "
        f"not {count_of(figures['candidates'][0])} on "
        f"{short(figures['candidates'][0]['tokens'])}"
    )


def headline(figures: Figures) -> str:
    """The answer in a sentence or two."""
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
    text = (
        f"Spent on training alone, {power(figures['budget']['flops'])} FLOPs "
        f"({usd(figures['budget']['usd'])}) are best spent on {count_of(first)} "
        f"parameters and {short(first['tokens'])} tokens: a loss of {first['loss']:.4f}."
    )
    if answer["compute_optimal"]:
        if answer["lifetime_usd"] is not None:
            text += (
                f" It stays the cheapest with its serving: {usd(answer['lifetime_usd'])} over "
                f"{short(figures['lifetime_optimum']['served_tokens'])} tokens."
            )
        return text
    text += (
        f" A model of {count_of(answer)} reaches the same loss on "
        f"{short(answer['tokens'])} tokens. Training it costs {usd(answer['training_usd'])}, but "
        f"with {short(figures['lifetime_optimum']['served_tokens'])} tokens served it costs "
        f"{usd(answer['lifetime_usd'])} over its life"
    )
    if first["lifetime_usd"] is not None:
        saved = 1 - answer["lifetime_usd"] / first["lifetime_usd"]
        text += f" instead of {usd(first['lifetime_usd'])}, {saved:.0%} less"
    return f"{text}.{over_budget(figures)}"


def over_budget(figures: Figures) -> str:
    """By how much training the answer exceeds the budget, and what there is within it."""
    over = figures.get("over_budget")  # sizings of before have none
    if over is None:
        return ""
    optimal, within = over["compute_optimal"], over["answer_within_budget"]
    text = (
        f" Its training exceeds the budget by {usd(over['training_usd'])} ({over['share']:.0%}). "
        "Within the budget only the compute-optimal model reaches this loss"
    )
    if optimal["lifetime_usd"] is not None:
        text += f", at {usd(optimal['lifetime_usd'])} over its life"
    return text + (
        f"; {count_of(figures['answer'])} trained for the budget alone ({short(within['tokens'])} "
        f"tokens) comes to a loss of {within['loss']:.4f}, at {usd(within['lifetime_usd'])}."
    )


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
