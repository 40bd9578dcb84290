"""The section ``experts`` of a scenario -> how tokens choose experts; traces of expert counts."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from scenarios import library
from scenarios.schema.hardware import Experts
from sim import plain_file
from sim.model.expert_routing import ExpertRouting
from sim.model.spec import ModelSpec, MoeSpec


def expert_routing(
    given: Experts | None, model: ModelSpec, *, beside: Path | None = None
) -> ExpertRouting | None:
    """The routing a scenario describes; None without experts. ValueError where it cannot be."""
    if model.moe is None:
        if given is not None:
            raise ValueError(f"{model.name} has no experts")
        return None
    chosen = model.moe.experts_per_token
    if given is None or given.routing == "uniform":
        return ExpertRouting.uniform(model.moe.num_experts, chosen)
    if given.routing == "zipf":
        assert given.exponent is not None
        return ExpertRouting.zipf(
            model.moe.num_experts,
            chosen,
            exponent=given.exponent,
            rng=np.random.default_rng(given.seed),
            placement=given.placement,
        )
    assert given.counts is not None
    if isinstance(given.counts, str):
        path = library.find_file(given.counts, beside=beside)
        if path is None or not path.is_file():
            raise ValueError(f"counts: no such file: {given.counts}")
        counts = read_counts(path, model.moe)
    else:
        counts = np.array([given.counts])
    if counts.shape[1] != model.moe.num_experts:
        raise ValueError(
            f"counts has {counts.shape[1]} experts, {model.name} has {model.moe.num_experts}"
        )
    return ExpertRouting.from_counts(counts, chosen, placement=given.placement)


def read_counts(path: Path, moe: MoeSpec) -> np.ndarray:
    """f8[layers, experts] from a CSV with columns expert, tokens and maybe layer, in any order.

    Experts that do not occur were sent nothing. ValueError names file and line.
    """
    found: dict[int, np.ndarray] = {}
    try:
        with plain_file.lines_of(path) as file:
            rows = csv.DictReader(file)
            columns = {name.strip() for name in rows.fieldnames or []}
            if not {"expert", "tokens"} <= columns <= {"layer", "expert", "tokens"}:
                raise ValueError(
                    f"{path}: columns {', '.join(sorted(columns)) or 'none'}; "
                    "expected expert, tokens and maybe layer"
                )
            for row in rows:
                _count(row, found, moe, f"{path}:{rows.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    if not found:
        raise ValueError(f"{path}: no counts")
    return np.array([found[layer] for layer in sorted(found)])


def _count(row: dict[str, str], found: dict[int, np.ndarray], moe: MoeSpec, where: str) -> None:
    try:
        layer, expert = int(row.get("layer") or 0), int(row["expert"])
        tokens = float(row["tokens"])
    except (TypeError, ValueError):
        raise ValueError(f"{where}: expected whole numbers") from None
    if not 0 <= expert < moe.num_experts:
        raise ValueError(f"{where}: expert {expert}; there are 0 to {moe.num_experts - 1}")
    if not 0 <= tokens < 1e15:
        raise ValueError(f"{where}: tokens {tokens:g}, expected a number from 0")
    counts = found.setdefault(layer, np.zeros(moe.num_experts))
    counts[expert] += tokens
