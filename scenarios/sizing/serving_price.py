"""The price of a deployment that serves: dollars a million tokens, alone or as a whole fleet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from scenarios.plan.target import replicas_for
from scenarios.schema.plan import Plan


@dataclass(frozen=True, slots=True)
class ServingCost:
    """One replica under saturation, or at its goodput; tokens are prompts and outputs together.

    ``load_share`` is the share of the saturated rate (1 without an objective), ``breaks`` the
    objective that more load would break first. For a load of its own there are ``replicas``, whole
    ones, and ``fill`` is how much of what they carry is asked for.
    """

    gpu: str
    tensor_parallel: int
    usd_per_hour: float
    requests_per_s: float
    tokens_per_s: float
    output_tokens_per_s: float
    median_tpot_ms: float
    load_share: float
    breaks: str
    kv_cache_tokens: int
    weight_bytes: int  # on each GPU
    basis: str  # of its times: measured, estimated, analytic or given
    warnings: tuple[str, ...]
    replicas: int | None = None
    fill: float = 1.0
    # drawn always busy and without work, estimated; None where power is not known
    full_watts: float | None = None
    idle_watts: float | None = None

    @property
    def label(self) -> str:
        return f"{self.tensor_parallel} x {self.gpu}"

    @property
    def usd_per_million_tokens(self) -> float:
        return self.usd_per_hour / 3600 / (self.fill * self.tokens_per_s) * 1e6

    @property
    def usd_per_million_output_tokens(self) -> float:
        return self.usd_per_hour / 3600 / (self.fill * self.output_tokens_per_s) * 1e6

    @property
    def joules_per_token(self) -> float | None:
        """Estimated: the draw grows with the load from that without work to that of a full one."""
        if self.full_watts is None or self.idle_watts is None:
            return None
        more = (self.full_watts - self.idle_watts) * self.load_share * self.fill
        return (self.idle_watts + more) / (self.fill * self.tokens_per_s)

    @property
    def tokens_per_gpu_s(self) -> float:
        return self.tokens_per_s / self.tensor_parallel

    @property
    def rank(self) -> tuple[float, int, float]:
        """The lower the better, as a plan ranks: price, then GPUs, then what is left to spare."""
        replicas = self.replicas or 1
        price = float(f"{self.usd_per_million_tokens:.9g}")  # equal fleets cost the same
        return price, replicas * self.tensor_parallel, -replicas * self.requests_per_s

    def at(self, share: float) -> ServingCost:
        """The same deployment at so many times the rate."""
        return replace(
            self,
            requests_per_s=share * self.requests_per_s,
            tokens_per_s=share * self.tokens_per_s,
            output_tokens_per_s=share * self.output_tokens_per_s,
        )

    def serving(self, request_rate: float | None) -> ServingCost:
        """As many replicas as that load needs; one that is always used where there is no load."""
        if request_rate is None:
            return self
        replicas = replicas_for(request_rate, self.requests_per_s, Plan())
        fill = request_rate / (replicas * self.requests_per_s)
        return replace(self, replicas=replicas, fill=fill)

    def figures(self) -> dict[str, Any]:
        """As plain data, prices with it; no reason to rule it out."""
        figures = asdict(self)
        del figures["warnings"]
        return figures | {
            "usd_per_million_tokens": self.usd_per_million_tokens,
            "usd_per_million_output_tokens": self.usd_per_million_output_tokens,
            "joules_per_token": self.joules_per_token,
            "tokens_per_gpu_s": self.tokens_per_gpu_s,
            "reason": "",
        }


@dataclass(frozen=True, slots=True)
class RuledOut:
    """A deployment that is not the answer, and why: too large, too slow or too dear.

    `status` is that of `scenarios.plan.exploration`, or ``cache`` (it cannot hold one request) or
    ``dear``: then the price is at least ``floor_usd_per_million_tokens``. `miss` is how many times
    a limit is missed, where that can be said.
    """

    gpu: str
    tensor_parallel: int
    status: str
    reason: str
    miss: float | None = None
    floor_usd_per_million_tokens: float | None = None

    @property
    def label(self) -> str:
        return f"{self.tensor_parallel} x {self.gpu}"

    def figures(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def cheapest(tried: Iterable[ServingCost | RuledOut]) -> ServingCost | None:
    """The deployment with the lowest price; None where none can be."""
    return min(
        (one for one in tried if isinstance(one, ServingCost)),
        key=lambda one: one.rank,
        default=None,
    )


def nearest_miss(tried: Iterable[ServingCost | RuledOut]) -> RuledOut | None:
    """The deployment that misses its objectives by least; None where none was compared."""
    missed = [one for one in tried if isinstance(one, RuledOut) and one.miss is not None]
    return min(missed, key=lambda one: one.miss or 0.0, default=None)
