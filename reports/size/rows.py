"""The tables of a sizing as texts: one list of rows each, for the terminal and for the page."""

from collections.abc import Iterator
from dataclasses import dataclass

from reports.size.text import (
    MEMORY_PARTS,
    PARTS,
    Figures,
    both,
    days,
    deployment,
    memory,
    power,
    service,
    shape,
    short,
    usd,
)
from scenarios.quantity import GAP, MISSING, plain


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table of texts; a line break in a column's name is where it may be broken."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: int | None = None  # the row that is the answer
    mark: str = ""  # what a page says beside it


def tables(figures: Figures) -> Iterator[Table]:
    """Every table that this sizing has, in reading order."""
    if "budget" in figures:
        yield _laws(figures)
        yield _within(figures)
        if len(figures["candidates"]) > 1:
            yield _beyond(figures)
    yield _model(figures)
    yield _training(figures)
    yield _inference(figures)
    if figures["serving"]:
        yield _serving(figures)


def _laws(figures: Figures) -> Table:
    rows = [
        (
            one["law"],
            short(one["parameters"]),
            short(one["tokens"]),
            plain(one["tokens_per_parameter"]),
            f"{one['loss']:.4f}",
        )
        for one in figures["laws"]
    ]
    other = figures["kaplan_frontier"]
    rows.append(
        (
            "kaplan's frontier",
            short(other["parameters"]),
            short(other["tokens"]),
            plain(other["tokens"] / other["parameters"]),
            MISSING,
        )
    )
    intervals = figures["law"].get("optimum_intervals")
    if intervals:
        low, high = intervals["parameters"], intervals["tokens"]
        loss = intervals["loss"]
        rows.insert(
            1,
            (
                f"  {figures['law']['confidence']:.0%} interval",
                f"{short(low[0])} to {short(low[1])}",
                f"{short(high[0])} to {short(high[1])}",
                "",
                f"{loss[0]:.4f} to {loss[1]:.4f}",
            ),
        )
    return Table(
        f"The best use of {power(figures['budget']['flops'])} training FLOPs, by law",
        ("law", "parameters", "tokens", "tokens/parameter", "loss"),
        tuple(rows),
        marked=0,
    )


def _within(figures: Figures) -> Table:
    """What the budget buys: every size trained for it, and no more."""
    rows, marked = [], None
    for index, one in enumerate(figures["candidates"]):
        if one["model"] == figures["answer"]["model"]:
            marked = index
        rows.append(
            (
                short(one["activated_parameters"]),
                f"{one['layers']} x {one['hidden_size']:,}",
                short(one["tokens_at_budget"]),
                f"{one['loss_at_budget']:.4f}",
                MISSING if one["gpu"] is None else deployment(one),
                usd(one["usd_per_million_tokens"]),
                usd(one["serving_usd"]),
                usd(one["lifetime_usd_at_budget"]),
            )
        )
    return Table(
        f"What {both(figures)} buy",
        (
            *("active", "layers\nx width", "tokens", "loss", "served on"),
            *("$/M\ntokens", "serving", "life"),
        ),
        tuple(rows),
        marked=marked,
        mark=" ← the answer",
    )


def _beyond(figures: Figures) -> Table:
    """Beyond the budget: every size trained on to the loss of the compute-optimal one."""
    budget_usd = figures["budget"]["usd"]
    rows = []
    for one in figures["candidates"]:
        cost = one["training_usd"]
        over = None if cost is None else cost / budget_usd - 1
        rows.append(
            (
                short(one["activated_parameters"]),
                short(one["tokens"]),
                usd(cost),
                MISSING if over is None else f"{abs(over):.0%}",
                usd(one["serving_usd"]),
                usd(one["lifetime_usd"]),
            )
        )
    return Table(
        f"Beyond the budget, models of the same loss, {figures['candidates'][0]['loss']:.4f}",
        ("active", "tokens", "training", "over the\nbudget", "serving", "life"),
        tuple(rows),
    )


def _model(figures: Figures) -> Table:
    model = figures["model"]
    counts, flops = model["parameters"], model["flops_per_token"]
    rows = [("Shape", shape(model)), ("Parameters", f"{counts['total']:,}")]
    rows += [
        (f"  {label}", f"{counts[key]:,} ({counts[key] / counts['total']:.1%})")
        for key, label in PARTS.items()
        if counts[key]
    ]
    if counts["activated"] != counts["total"]:
        rows += [
            ("Activated by a token", f"{counts['activated']:,}"),
            ("  without the input table", f"{counts['activated_without_input_table']:,}"),
        ]
    length = flops["sequence_length"]
    rows += [
        (f"FLOPs a token, forward ({length:,} in sequence)", power(flops["forward"])),
        ("FLOPs a token, training", power(flops["training"])),
        ("  with recomputation", power(flops["training_with_recomputation"])),
        ("  as laws count them, 6 N", power(flops["six_n"])),
        ("Weights", memory(model["weight_bytes"])),
        ("KV cache of a token", memory(model["kv_bytes_per_token"])),
    ]
    return Table(f"The model: {model['name']}", ("", ""), tuple(rows))


def _training(figures: Figures) -> Table:
    training = figures["training"]
    whole, each = training["memory"]["whole"], training["memory"]["per_gpu"]
    settings = training["settings"]
    rows = [(label, memory(whole[key]), memory(each[key])) for key, label in MEMORY_PARTS.items()]
    rows.append(("All", memory(whole["total_bytes"]), memory(each["total_bytes"])))
    rows.append(("Of the GPU's memory", "", memory(training["memory"]["gpu_memory_bytes"])))
    cost = training["cost"]
    if cost is not None:
        rows += [
            ("Tokens", short(training["tokens"]), ""),
            ("FLOPs (6 N D)", power(cost["flops"]), ""),
            ("GPU hours", f"{cost['gpu_hours']:,.0f}", ""),
            ("Time", days(cost["wall_s"] / 86400), ""),
            ("Cost", usd(cost["usd"]), ""),
        ]
        step = training["memory"].get("step")  # sizings of before have none
        if step is not None:
            each = f"{plain(step['step_s'])}{GAP}s, {step['mfu']:.1%} MFU"
            rows.append((f"A step of {short(step['tokens'])} tokens, analytic", each, ""))
        bill = figures["electricity"]["training_usd"]
        rows += [] if bill is None else [("Electricity, estimated", usd(bill), "")]
    kept = "layer inputs kept" if settings["checkpointing"] == "layer" else "nothing recomputed"
    return Table(
        f"Training on {training['gpus']:,} x {training['gpu']} at {training['mfu']:.0%} MFU, "
        f"{settings['micro_batch']} x {settings['sequence_length']:,} tokens a GPU, {kept}",
        ("", "one copy", f"each GPU, ZeRO {settings['zero_stage']}"),
        tuple(rows),
    )


def _inference(figures: Figures) -> Table:
    rows = tuple(
        (
            one["gpu"],
            MISSING if one["gpus_for_weights"] is None else f"{one['gpus_for_weights']:,}",
            MISSING if one["tensor_parallel"] is None else str(one["tensor_parallel"]),
            memory(one["weight_bytes_per_gpu"]),
            MISSING if one["kv_cache_tokens"] is None else f"{one['kv_cache_tokens']:,}",
        )
        for one in figures["inference"]
    )
    share = figures["inference"][0]["utilization"]
    return Table(
        f"Memory in serving, {share:.0%} of each GPU used",
        ("GPU", "to hold the weights", "to serve", "weights on each", "KV cache, tokens"),
        rows,
    )


def _serving(figures: Figures) -> Table:
    """Every deployment: its price, its floor if that is too dear already, or why it cannot be."""
    asked = figures["service"]
    head = ["deployment", "$/M tokens", "$/M output", "tokens/s", "median\nTPOT ms"]
    if asked["objectives"]:
        head.append("of full\nload")
    if asked["request_rate"] is not None:
        head.append("replicas")
    head.append("breaks first, or why not" if asked["objectives"] else "")
    return Table(
        f"Serving {figures['model']['name']} {service(figures)}",
        tuple(head),
        tuple(_deployment(one, head) for one in figures["serving"]),
        marked=0 if not figures["serving"][0]["reason"] else None,
    )


def _deployment(one: Figures, head: list[str]) -> tuple[str, ...]:
    name = f"{one['tensor_parallel']} x {one['gpu']}"
    if one["reason"]:
        floor = one["floor_usd_per_million_tokens"]
        price = MISSING if floor is None else f"≥ {usd(floor)}"
        return name, price, *[MISSING] * (len(head) - 3), one["reason"]
    texts = [
        name,
        usd(one["usd_per_million_tokens"]),
        usd(one["usd_per_million_output_tokens"]),
        f"{one['tokens_per_s']:,.0f}",
        f"{one['median_tpot_ms']:.1f}",
    ]
    if "of full\nload" in head:
        texts.append(f"{one['load_share']:.0%}")
    if "replicas" in head:
        texts.append(f"{one['replicas']:,}")
    return *texts, one["breaks"]
