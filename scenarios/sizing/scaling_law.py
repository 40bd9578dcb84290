"""Scaling laws: the loss of a model of N parameters trained on D tokens, and the best N and D.

Three forms, all with training compute C = 6 N D FLOPs (Kaplan et al. 2020, section 2.1):

- additive, Hoffmann et al. 2022 ("Chinchilla"), equation 2: ``L = A/N^alpha + B/D^beta + E``;
- Kaplan et al. 2020, equation 1.5: ``L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D``, N without
  embeddings;
- Rosenfeld et al. 2020, section 5: ``L = L_0 e / sqrt(e^2 + eta^2)``, ``e = A/N^alpha + B/D^beta
  + c``: the additive law, bent towards the loss ``L_0`` of a model that has learned nothing. The
  paper fits it anew for every data set, so it has no coefficients of its own here.

Which Chinchilla? Hoffmann et al. print 406.4/N^0.34 + 410.7/D^0.28 + 1.69. Those exponents are
rounded (0.2849 was cut to 0.28) and give, for Gopher's budget of 5.76e23 FLOPs, 32 billion
parameters, where the paper's figure 4 says 40 billion. The exponents before rounding, 0.3392 and
0.2849, do give it: 40.3 billion parameters and 2.38 trillion tokens. Courses write 0.29, which
gives 48.0 billion and 2.00 trillion. Both are here: ``chinchilla`` is the courses' form,
``chinchilla-unrounded`` the paper's. Besiroglu et al. 2024 found the paper's own fit not converged
and fitted the same runs again (``besiroglu``); that optimum agrees with the 70 billion parameters
and 1.4 trillion tokens Chinchilla was trained with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FLOPS_PER_PARAMETER_AND_TOKEN = 6  # forward 2, backward 4: Kaplan et al. 2020, section 2.1


@dataclass(frozen=True, slots=True)
class Optimum:
    """The parameters and tokens that reach the lowest loss within ``flops`` = 6 N D."""

    flops: float
    parameters: float
    tokens: float
    loss: float

    @property
    def tokens_per_parameter(self) -> float:
        return self.tokens / self.parameters


class ScalingLaw(Protocol):
    """What a law answers. Parameters and tokens are counts, losses nats per token."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    def loss(self, parameters: npt.ArrayLike, tokens: npt.ArrayLike) -> Floats: ...
    def optimum(self, flops: float) -> Optimum: ...
    def tokens_for_loss(self, parameters: float, loss: float) -> float | None: ...
    def coefficients(self) -> dict[str, float]: ...


@dataclass(frozen=True, slots=True)
class AdditiveLaw:
    """``L = a / N^alpha + b / D^beta + irreducible`` (Hoffmann et al. 2022, equation 2)."""

    name: str
    source: str
    a: float
    alpha: float
    b: float
    beta: float
    irreducible: float

    def loss(self, parameters: npt.ArrayLike, tokens: npt.ArrayLike) -> Floats:
        n, d = np.asarray(parameters, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
        return self.a / n**self.alpha + self.b / d**self.beta + self.irreducible

    def optimum(self, flops: float) -> Optimum:
        """Closed form: N = G (C/6)^(beta/(alpha+beta)), equation 4 of Hoffmann et al."""
        return _optimum_of(self, flops, _additive_parameters(self, flops))

    def tokens_for_loss(self, parameters: float, loss: float) -> float | None:
        """Tokens with which a model of this size reaches `loss`; None where none do."""
        left = loss - self.irreducible - self.a / parameters**self.alpha
        return _power(self.b / left, 1 / self.beta) if left > 0 else None

    def coefficients(self) -> dict[str, float]:
        return _coefficients(self)


@dataclass(frozen=True, slots=True)
class RosenfeldLaw:
    """``L = initial_loss e / sqrt(e^2 + eta^2)``, ``e = a/N^alpha + b/D^beta + c``.

    Rosenfeld et al. 2020, equations 4 and 5. Only the ratio of a, b and c to ``eta`` matters.
    """

    name: str
    source: str
    a: float
    alpha: float
    b: float
    beta: float
    c: float
    eta: float
    initial_loss: float

    def loss(self, parameters: npt.ArrayLike, tokens: npt.ArrayLike) -> Floats:
        n, d = np.asarray(parameters, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
        excess = self.a / n**self.alpha + self.b / d**self.beta + self.c
        loss: Floats = self.initial_loss * excess / np.hypot(excess, self.eta)
        return loss

    def optimum(self, flops: float) -> Optimum:
        """That of the additive law inside, which the bend does not move."""
        return _optimum_of(self, flops, _additive_parameters(self, flops))

    def tokens_for_loss(self, parameters: float, loss: float) -> float | None:
        """Tokens with which a model of this size reaches `loss`; None where none do."""
        share = loss / self.initial_loss
        if not 0 < share < 1:
            return None
        excess = self.eta * share / math.sqrt(1 - share**2)
        left = excess - self.c - self.a / parameters**self.alpha
        return _power(self.b / left, 1 / self.beta) if left > 0 else None

    def coefficients(self) -> dict[str, float]:
        return _coefficients(self)


@dataclass(frozen=True, slots=True)
class KaplanLaw:
    """``L = [(n_c/N)^(alpha_n/alpha_d) + d_c/D]^alpha_d`` (Kaplan et al. 2020, equation 1.5)."""

    name: str
    source: str
    n_c: float
    alpha_n: float
    d_c: float
    alpha_d: float

    def loss(self, parameters: npt.ArrayLike, tokens: npt.ArrayLike) -> Floats:
        n, d = np.asarray(parameters, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
        loss: Floats = ((self.n_c / n) ** self._ratio + self.d_c / d) ** self.alpha_d
        return loss

    @property
    def _ratio(self) -> float:
        return self.alpha_n / self.alpha_d

    def optimum(self, flops: float) -> Optimum:
        """Closed form: where the derivative of (n_c/N)^r + 6 d_c N/C by N is zero."""
        r = self._ratio
        product = flops / FLOPS_PER_PARAMETER_AND_TOKEN
        parameters = (r * self.n_c**r * product / self.d_c) ** (1 / (r + 1))
        return _optimum_of(self, flops, parameters)

    def tokens_for_loss(self, parameters: float, loss: float) -> float | None:
        """Tokens with which a model of this size reaches `loss`; None where none do."""
        left = _power(loss, 1 / self.alpha_d) - (self.n_c / parameters) ** self._ratio
        return self.d_c / left if left > 0 else None

    def coefficients(self) -> dict[str, float]:
        return _coefficients(self)


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """``L = a / x^alpha + c`` of one quantity: samples, parameters, tokens or FLOPs.

    The mean of n samples is the first of them: its squared error is sigma^2 / n.
    """

    name: str
    a: float
    alpha: float
    c: float

    def loss(self, x: npt.ArrayLike) -> Floats:
        return np.asarray(self.a / np.asarray(x, dtype=np.float64) ** self.alpha + self.c)

    def coefficients(self) -> dict[str, float]:
        return {"a": self.a, "alpha": self.alpha, "c": self.c}


@dataclass(frozen=True, slots=True)
class MixtureLaw:
    """The loss of a mixture of experts by activated parameters, tokens and number of experts.

    ``L = a E^delta N^(alpha + gamma ln E) + b E^omega D^(beta + zeta ln E) + c``, E bent towards
    ``most`` for many experts: ``1/E = 1/(experts - 1 + 1/(1/first - 1/most)) + 1/most``
    (Ludziejewski et al. 2025, "Joint MoE Scaling Laws", equations 5 and 6). One expert is a dense
    model; for any number of them it is an additive law, which `of` gives.
    """

    name: str
    source: str
    a: float
    alpha: float
    delta: float
    gamma: float
    b: float
    beta: float
    omega: float
    zeta: float
    first: float
    most: float
    c: float

    def of(self, experts: float) -> AdditiveLaw:
        """The law of models with so many experts of which a token activates one (or 2 of 2 E)."""
        start = 1 / (1 / self.first - 1 / self.most)
        bent = 1 / (1 / (experts - 1 + start) + 1 / self.most)
        log = math.log(bent)
        return AdditiveLaw(
            name=self.name,
            source=f"{self.source}; {experts:g} experts for each that a token activates",
            a=self.a * bent**self.delta,
            alpha=-(self.alpha + self.gamma * log),
            b=self.b * bent**self.omega,
            beta=-(self.beta + self.zeta * log),
            irreducible=self.c,
        )


# Fitted to 280 runs of up to 2.7B activated parameters, 1 to 32 experts of an MLP's full size, all
# parameters counted; the paper trusts it to about 400 tokens a parameter (appendices B, C and E).
JOINT_MIXTURE = MixtureLaw(
    "joint-moe",
    "Ludziejewski et al. 2025, table 3",
    a=35.91, alpha=-0.1889, delta=-0.2285, gamma=0.0098,
    b=35.98, beta=-0.1775, omega=0.5529, zeta=-0.0259,
    first=2.0732, most=290.4521, c=1.3637,
)  # fmt: skip


def _additive_parameters(law: AdditiveLaw | RosenfeldLaw, flops: float) -> float:
    both = law.alpha + law.beta
    g = (law.alpha * law.a / (law.beta * law.b)) ** (1 / both)
    return float(g * (flops / FLOPS_PER_PARAMETER_AND_TOKEN) ** (law.beta / both))


def _optimum_of(law: ScalingLaw, flops: float, parameters: float) -> Optimum:
    tokens = flops / (FLOPS_PER_PARAMETER_AND_TOKEN * parameters)
    return Optimum(flops, parameters, tokens, float(law.loss(parameters, tokens)))


def _coefficients(law: Any) -> dict[str, float]:
    names = [field.name for field in fields(law) if field.name not in ("name", "source")]
    return {name: float(getattr(law, name)) for name in names}


def _power(base: float, exponent: float) -> float:
    """Infinite where it overflows: so many tokens that there is no number for them."""
    try:
        return float(base**exponent)
    except OverflowError:
        return math.inf


def numeric_optimum(law: ScalingLaw, flops: float) -> Optimum:
    """The optimum by search over N: what the closed forms are held against."""
    from scipy.optimize import minimize_scalar

    product = flops / FLOPS_PER_PARAMETER_AND_TOKEN

    def loss_at(log_n: float) -> float:
        return float(law.loss(math.exp(log_n), product / math.exp(log_n)))

    found = minimize_scalar(
        loss_at, bounds=(0.0, math.log(product)), method="bounded", options={"xatol": 1e-10}
    )
    return _optimum_of(law, flops, math.exp(found.x))


def lifetime_optimum(law: ScalingLaw, *, loss: float, served_tokens: float) -> Optimum:
    """The model that reaches `loss` with the fewest FLOPs over training and serving together.

    Minimises 6 N D + 2 N T subject to L(N, D) = loss, T tokens served (Sardana et al. 2024,
    "Beyond Chinchilla-Optimal", equation 3). ``flops`` of the answer are those of training.
    Raises ``ValueError`` for a loss the law cannot reach.
    """
    from scipy.optimize import minimize_scalar

    def total(log_n: float) -> float:
        parameters = math.exp(log_n)
        tokens = law.tokens_for_loss(parameters, loss)
        if tokens is None or not math.isfinite(tokens):
            return math.inf
        return math.log(parameters * (6 * tokens + 2 * served_tokens))

    grid = np.linspace(0.0, math.log(1e18), 2000)
    values = np.array([total(x) for x in grid])
    if not np.isfinite(values).any():
        raise ValueError(f"no model reaches a loss of {loss:g} under the law {law.name}")
    best = int(values.argmin())
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(total, bounds=(low, high), method="bounded", options={"xatol": 1e-10})
    parameters = math.exp(found.x)
    tokens = law.tokens_for_loss(parameters, loss)
    assert tokens is not None
    flops = FLOPS_PER_PARAMETER_AND_TOKEN * parameters * tokens
    return Optimum(flops, parameters, tokens, loss)


def kaplan_frontier(flops: float) -> tuple[float, float]:
    """Kaplan's published compute-efficient frontier: (parameters, tokens) = (N, C/6N).

    N = 1.3e9 C^0.73 with C in PF-days (Kaplan et al. 2020, table 6): from runs stopped early, not
    from the law of equation 1.5, and so steeper than that law's own optimum.
    """
    parameters = 1.3e9 * (flops / (1e15 * 24 * 3600)) ** 0.73
    return parameters, flops / (FLOPS_PER_PARAMETER_AND_TOKEN * parameters)


LAWS: Mapping[str, ScalingLaw] = {
    law.name: law
    for law in (
        AdditiveLaw(
            "chinchilla",
            "Hoffmann et al. 2022, approach 3, as courses write it: 406.4/N^0.34 + 410.7/D^0.29 + "
            "1.69",
            a=406.4, alpha=0.34, b=410.7, beta=0.29, irreducible=1.69,
        ),
        AdditiveLaw(
            "chinchilla-unrounded",
            "Hoffmann et al. 2022, approach 3, before its exponents were rounded",
            a=406.4, alpha=0.3392, b=410.7, beta=0.2849, irreducible=1.6934,
        ),
        AdditiveLaw(
            "besiroglu",
            "Besiroglu et al. 2024, the Chinchilla runs fitted again",
            a=482.01, alpha=0.3478, b=2085.43, beta=0.3658, irreducible=1.8172,
        ),
        KaplanLaw(
            "kaplan",
            "Kaplan et al. 2020, equation 1.5 with table 2; N without embeddings",
            n_c=6.4e13, alpha_n=0.076, d_c=1.8e13, alpha_d=0.103,
        ),
    )
}  # fmt: skip
