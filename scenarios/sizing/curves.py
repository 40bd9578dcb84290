"""Curves of a sizing: loss against size at fixed budgets, and the best loss of each budget."""

from __future__ import annotations

from typing import Any

import numpy as np

from scenarios.sizing.scaling_law import FLOPS_PER_PARAMETER_AND_TOKEN, LAWS, Optimum, ScalingLaw

BUDGETS = (0.01, 0.1, 1.0, 10.0)  # shares of the sizing's own
POINTS = 61


def iso_flop_curves(law: ScalingLaw, flops: float) -> list[dict[str, Any]]:
    """For budgets around `flops`: loss against parameters (Hoffmann et al. 2022, figure 3)."""
    curves = []
    for share in BUDGETS:
        best = law.optimum(share * flops)
        parameters = best.parameters * np.geomspace(1 / 30, 30, POINTS)
        tokens = share * flops / (FLOPS_PER_PARAMETER_AND_TOKEN * parameters)
        curves.append(
            {
                "flops": share * flops,
                "parameters": [float(f"{value:.5g}") for value in parameters],
                "loss": [float(f"{value:.5g}") for value in law.loss(parameters, tokens)],
                "optimum": optimum_figures(best),
            }
        )
    return curves


def frontier(law: ScalingLaw, flops: float) -> dict[str, list[float]]:
    """The best loss and size for budgets three orders of magnitude around `flops`."""
    budgets = flops * np.geomspace(1e-3, 1e3, 25)
    best = [law.optimum(float(budget)) for budget in budgets]
    return {
        "flops": [float(f"{budget:.5g}") for budget in budgets],
        "loss": [float(f"{one.loss:.5g}") for one in best],
        "parameters": [float(f"{one.parameters:.5g}") for one in best],
    }


def all_laws(law: ScalingLaw, flops: float) -> list[dict[str, Any]]:
    """What every law with coefficients makes of the budget, the chosen one first."""
    others = [other for other in LAWS.values() if other.name != law.name]
    return [
        {
            "law": one.name,
            "source": one.source,
            **optimum_figures(one.optimum(flops)),
            "frontier": frontier(one, flops),
        }
        for one in (law, *others)
    ]


def optimum_figures(best: Optimum) -> dict[str, float]:
    return {
        "flops": best.flops,
        "parameters": best.parameters,
        "tokens": best.tokens,
        "tokens_per_parameter": best.tokens_per_parameter,
        "loss": best.loss,
    }
