"""The front end of a scenario: what it gives, else what is assumed for its engine's generation."""

from __future__ import annotations

from collections.abc import Mapping

from scenarios.schema.generations import Generation
from scenarios.schema.scenario import Scenario
from sim.engine.front_end import FrontEnd
from sim.latency.protocol import LatencyModel
from sim.latency.table import TableLatency

# Where the constants come from. Tokenizing: Hugging Face tokenizers 0.23 needs 0.9 us a token on
# one core. A request's own millisecond is an assumption: it decides nothing below some hundred
# requests a second. The rest was fitted to how much mean TTFT exceeds two and a half inter-token
# times (half an iteration until the next decision, the one decided already, its own) in five
# recordings of vLLM 0.15, Llama-2-7B on one H100 at 5 to 20 requests/s: within 0.3 ms of each.
# Not fitted, and 2 to 3 ms more: Llama-2-70B and Llama-3.1-70B over four GPUs.
_VLLM = {
    "per_request_us": 1000.0,
    "per_prompt_token_us": 1.0,
    "per_output_token_us": 30.0,
    "latency_us": 2400.0,
}
ASSUMED: dict[Generation, dict[str, float]] = {"vllm": _VLLM, "vllm-sync": _VLLM}


def front_end(scenario: Scenario, fitted: Mapping[str, float]) -> FrontEnd | None:
    """None where clients talk to the engine itself. `fitted`: see `fitted_front_end`."""
    given, assumed = scenario.frontend, {**_assumed(scenario), **fitted}
    if given.enabled is False:
        return None
    us = {name: getattr(given, name) for name in _VLLM}
    us = {name: assumed.get(name, 0.0) if value is None else value for name, value in us.items()}
    found = FrontEnd(
        api_servers=given.api_server_count,
        **{f"{name.removesuffix('_us')}_s": value / 1e6 for name, value in us.items()},
    )
    return None if found.is_nothing else found


def fitted_front_end(latency: LatencyModel) -> dict[str, float]:
    """What a refined table says of it, by the scenario's names (µs); nothing of other models."""
    for name in ("inner", "target"):
        if hasattr(latency, name):
            return fitted_front_end(getattr(latency, name))
    refined = latency.table.meta.get("refined") if isinstance(latency, TableLatency) else None
    found = refined.get("front_end") if isinstance(refined, Mapping) else None
    return {name: float(found[name]["value"]) for name in _VLLM if found and name in found}


def described(scenario: Scenario, front_end: FrontEnd, fitted: Mapping[str, float]) -> str:
    """In words, with what of it is an assumption, so that it is never taken for granted."""
    assumed = {**_assumed(scenario), **fitted}
    count = front_end.api_servers
    parts = {
        "per_request_us": (front_end.per_request_s, "a request"),
        "per_prompt_token_us": (front_end.per_prompt_token_s, "a prompt token"),
        "per_output_token_us": (front_end.per_output_token_s, "an output token"),
        "latency_us": (front_end.latency_s, "each way"),
    }
    told: dict[str, list[str]] = {}
    for name, (seconds, what) in parts.items():
        whose = "fitted to a recording" if name in fitted else "assumed"
        if getattr(scenario.frontend, name) is not None:
            whose = "given"
        if whose == "given" or name in assumed:
            told.setdefault(whose, []).append(f"{seconds * 1e6:g} µs {what}")
    words = "; ".join(f"{', '.join(of)} ({whose})" for whose, of in told.items())
    return f"{count} API server{'s' if count > 1 else ''}, {words}"


def _assumed(scenario: Scenario) -> dict[str, float]:
    """Nothing where iterations are of given length: textbooks' clients sit beside the engine."""
    if scenario.latency.source == "fixed" and not scenario.frontend.enabled:
        return {}
    return ASSUMED.get(scenario.engine.generation, {})
