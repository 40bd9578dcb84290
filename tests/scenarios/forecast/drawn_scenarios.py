"""Random scenarios, as the plain mappings that YAML would give: small ones of every kind.

Sections are drawn one by one and know little of each other, so some contradict themselves; the
schema says so. An iteration of a fixed latency and what arrives at a constant rate are powers of
two, so that things often happen at the very same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

Section = dict[str, Any]
Draw = st.DrawFn

SCHEDULERS = ("static", "dynamic", "orca", "paged", "chunked", "chunked", "chunked", "chunked")
ORDERS = ("priority", "earliest_deadline", "shortest_prompt", "shortest_job", "fair")
ROUTERS = (
    "round_robin", "random", "least_outstanding", "least_kv", "prefix_aware", "session_sticky",
)  # fmt: skip
ITERATION_MS = 15.625  # a 64th of a second
SPECULATION: Sequence[Section] = (
    {"method": "ngram", "num_draft_tokens": 3, "match_rate": 0.6},
    {"method": "draft_model", "draft_model": "llama-3.2-1b", "num_draft_tokens": 2},
    {"method": "eagle", "num_draft_tokens": 3},
    {"method": "eagle", "branching": [2, 2]},
    {"method": "mtp", "num_draft_tokens": 1},
    {"method": "medusa", "num_draft_tokens": 2},
    {"method": "jacobi", "num_draft_tokens": 4},
    {"method": "lookahead", "window": 3, "ngram": 3, "guesses": 3},
)
# None; as the generation has it; in step with the clock; with several processes; overwhelmed.
FRONT_ENDS: Sequence[Section] = (
    {"enabled": False},
    {},
    {"enabled": True, "per_request_us": 0.0, "per_prompt_token_us": 0.0,
     "per_output_token_us": ITERATION_MS * 250, "latency_us": ITERATION_MS * 500},
    {"api_server_count": 2, "per_request_us": 9000.0, "per_prompt_token_us": 70.0,
     "per_output_token_us": 333.0, "latency_us": 0.0},
    {"per_request_us": 3100.0, "per_output_token_us": 11000.0, "latency_us": 900.0},
)  # fmt: skip

_KV_TIERS = st.sampled_from(
    [
        [{"kind": "host", "size_gib": 0.05}, {"kind": "nvme", "size_gib": 1.0, "ttl_s": 2.0}],
        [{"kind": "nvme", "size_gib": 0.05, "write_gb_per_s": 0.1}],
        [{"kind": "host", "size_gib": 0.05}, {"kind": "shared", "size_gib": 1.0}],
        [{"kind": "shared", "size_gib": 0.1, "latency_us": 5000.0}],
    ]
)


def _one_in(draw: Draw, count: int) -> bool:
    """Simple scenarios first: what is drawn least complicated is what a failure is shown with."""
    return draw(st.integers(0, count - 1)) == count - 1


def _maybe(draw: Draw, section: Section, count: int, key: str, values: st.SearchStrategy) -> None:  # type: ignore[type-arg]
    if _one_in(draw, count):
        section[key] = draw(values)


@st.composite
def drawn_scenarios(draw: Draw) -> Section:
    """A scenario of a few requests, on one engine or a cluster."""
    mixture = _one_in(draw, 8)
    fixed = draw(st.booleans())
    hardware: Section = {"gpu": "h200-sxm"}
    if mixture:
        hardware |= draw(
            st.sampled_from(
                [{"tensor_parallel": 2}, {"expert_parallel": 2},
                 {"data_parallel": 2, "expert_parallel": 2},
                 {"data_parallel": 4, "expert_parallel": 4},
                 {"data_parallel": 2, "tensor_parallel": 2, "expert_parallel": 4}]
            )
        )  # fmt: skip
    else:
        _maybe(draw, hardware, 10, "tensor_parallel", st.just(2))
        if _one_in(draw, 10):  # llama's 8 key/value heads, each held by two or four ranks
            ranks = draw(st.sampled_from([2, 4]))
            hardware |= {"tensor_parallel": 8 * ranks, "decode_context_parallel": ranks}
        _maybe(draw, hardware, 10, "data_parallel", st.just(2))
    _maybe(draw, hardware, 12, "pipeline_parallel", st.integers(2, 3))
    workload = _workload(draw, fixed)
    content: Section = {
        "name": "drawn",
        "model": _model(draw, hardware, mixture=mixture),
        "hardware": hardware,
        "engine": _engine(draw, workload),
        "latency": _latency(draw, fixed),
        "workload": workload,
    }
    if mixture and draw(st.booleans()):
        content["experts"] = {"routing": "zipf", "exponent": 1.1}
    if _one_in(draw, 7):
        # A draft speaks its target's language.
        fitting = [
            one for one in SPECULATION if "draft_model" not in one or "llama-3" in content["model"]
        ]
        drafts = dict(draw(st.sampled_from(fitting)))
        if fixed and drafts["method"] not in ("ngram", "jacobi", "lookahead"):
            drafts["draft_step_ms"] = 2.0
        content["speculation"] = drafts | {"acceptance": {"rate": draw(st.floats(0, 1))}}
    content["cluster"] = _cluster(draw)
    content["frontend"] = draw(st.sampled_from(FRONT_ENDS))
    return content


def _model(draw: Draw, hardware: Section, *, mixture: bool) -> str:
    """Some have windows or states; ranks that share out contexts want all of them whole."""
    if mixture:
        return "mixtral-8x7b"
    if "decode_context_parallel" in hardware or not _one_in(draw, 4):
        return "llama-3.1-8b"
    return draw(st.sampled_from(["gemma-3-12b", "mistral-7b-v0.1", "granite-4-h-small"]))


def _latency(draw: Draw, fixed: bool) -> Section:
    if fixed:
        return {"source": "fixed", "iteration_ms": ITERATION_MS}
    latency: Section = {}
    overhead = {"per_iteration_us": 200, "per_sequence_us": 7.5}
    _maybe(draw, latency, 3, "host_overhead", st.just(overhead))
    _maybe(draw, latency, 6, "swapped_block_us", st.just(90.0))
    return latency


# -- the engine -----------------------------------------------------------------------------------


def _engine(draw: Draw, workload: Section) -> Section:
    engine: Section = {"scheduler": draw(st.sampled_from(SCHEDULERS[::-1]))}
    if engine["scheduler"] not in ("static", "dynamic"):
        engine["async_scheduling"] = draw(st.booleans())
    engine |= _limits(draw)
    if _one_in(draw, 4):
        orders = ORDERS if "classes" in workload else ORDERS[2:-1]
        engine["scheduling_policy"] = draw(st.sampled_from(orders))
    _maybe(draw, engine, 6, "max_num_waiting", st.integers(1, 4))
    _maybe(draw, engine, 6, "max_num_queued_reqs", st.integers(1, 6))
    _maybe(draw, engine, 6, "scheduler_reserve_full_isl", st.just(False))
    _maybe(draw, engine, 6, "max_queue_time_s", st.sampled_from([ITERATION_MS / 250, 0.05, 0.3]))
    if engine["scheduler"] == "paged":
        engine["preemption"] = draw(st.sampled_from(["recompute", "swap"]))
        engine["swap_space_gib"] = draw(st.sampled_from([0.02, 1.0]))
        engine["watermark"] = draw(st.sampled_from([0.0, 0.01, 0.1]))
    if engine["scheduler"] in ("static", "dynamic", "orca"):
        engine["reservation"] = draw(st.sampled_from(["max_tokens", "pow2", "oracle"]))
        _maybe(draw, engine, 2, "placement", st.sampled_from(["anywhere", "buddy", "first_fit"]))
    if engine["scheduler"] == "dynamic":
        sizes = draw(st.sampled_from([[], [1], [1, engine["max_num_seqs"]]]))
        engine |= {"preferred_batch_sizes": sizes, "max_queue_delay_ms": draw(st.integers(0, 40))}
    if engine["scheduler"] in ("paged", "chunked") and engine["enable_prefix_caching"]:
        _maybe(draw, engine, 5, "kv_offloading_size_gib", st.sampled_from([0.03, 1.0]))
        _maybe(draw, engine, 4, "kv_tiers", _KV_TIERS)
        if "kv_tiers" in engine:
            _maybe(draw, engine, 2, "kv_tier_writes", st.just("through"))
            _maybe(draw, engine, 2, "kv_tier_reads", st.just("always"))
    return engine


def _limits(draw: Draw) -> Section:
    seqs = draw(st.integers(1, 8))
    block_size = draw(st.sampled_from([16, 4, 3, 1]))
    slots = draw(st.sampled_from([2000, 300, 150, 90]))
    limits: Section = {
        "max_num_seqs": seqs,
        "max_num_batched_tokens": draw(st.sampled_from([256, 40, seqs])),
        "block_size": block_size,
        "num_gpu_blocks_override": slots // block_size,
        "enable_prefix_caching": draw(st.booleans()),
    }
    _maybe(draw, limits, 6, "max_model_len", st.sampled_from([64, 100]))
    _maybe(draw, limits, 6, "long_prefill_token_threshold", st.just(5))
    return limits


# -- the workload ---------------------------------------------------------------------------------


def _workload(draw: Draw, fixed: bool) -> Section:
    workload: Section = {
        "arrivals": _arrivals(draw, fixed),
        "num_requests": draw(st.integers(1, 14)),
        "seed": draw(st.integers(0, 9)),
    }
    if _one_in(draw, 3):
        workload["classes"] = {
            "gold": {"share": 1, "lengths": _lengths(draw)},
            "junk": {"share": 2, "lengths": _lengths(draw)},
        }
        workload["class_priority"] = {"gold": 0, "junk": 9}
        workload["class_deadline_ms"] = {"gold": 50, "junk": 400}
    else:
        workload["lengths"] = _lengths(draw)
    _maybe(draw, workload, 3, "max_tokens", st.sampled_from([20, 60]))
    _maybe(draw, workload, 3, "max_concurrency", st.integers(1, 6))
    _maybe(draw, workload, 4, "shared_prefixes", st.just({"num_prefixes": 2, "tokens": 20}))
    if _one_in(draw, 4):
        gap_s = draw(st.sampled_from([0.0, 0.05, 0.5]))
        sessions: Section = {"turns": draw(st.sampled_from([1.5, 3])), "max_context_tokens": 80}
        sessions |= draw(
            st.sampled_from(
                [{"turn_gap_s": gap_s, "by_the_clock": True}, {"turn_gap_s": gap_s},
                 {"think_time_s": gap_s}]
            )
        )  # fmt: skip
        workload["sessions"] = sessions
    several = draw(st.integers(0, 11))
    if several in (9, 10):
        workload["samples"] = {
            "n": draw(st.sampled_from([2, 3, [1, 4]])),
            "lengths": draw(st.sampled_from(["independent", "equal"])),
        }
    elif several == 11:
        workload["beam_search"] = {"width": 2, "survival": 0.7}
    return workload


def _arrivals(draw: Draw, fixed: bool) -> Section:
    process = draw(st.sampled_from(["constant", "poisson", "all_at_once", "gamma"]))
    if process == "all_at_once":
        return {"process": process}
    rates = [64.0, 32.0, 128.0] if fixed else [200.0, 60.0, 20.0]
    arrivals: Section = {"process": process, "request_rate": draw(st.sampled_from(rates))}
    if process == "gamma":
        arrivals["burstiness"] = 0.3
    return arrivals


def _lengths(draw: Draw) -> Section:
    return {
        "prompt": draw(
            st.sampled_from(
                [
                    {"distribution": "uniform", "min": 1, "max": 50},
                    {"distribution": "fixed", "tokens": 16},
                    {"distribution": "lognormal", "median": 12, "sigma": 1.0, "max": 60},
                ]
            )
        ),
        "output": draw(
            st.sampled_from(
                [
                    {"distribution": "uniform", "min": 1, "max": 40},
                    {"distribution": "fixed", "tokens": 12},
                    {"distribution": "empirical", "values": [1, 1, 2, 30]},
                ]
            )
        ),
    }


# -- the cluster ----------------------------------------------------------------------------------


def _cluster(draw: Draw) -> Section:
    kind = draw(st.integers(0, 9))
    if kind < 2:
        return {"replicas": draw(st.integers(1, 2))}
    cluster: Section = {"router": draw(st.sampled_from(ROUTERS))}
    replicas = draw(st.integers(1, 3))
    if kind < 6:
        cluster["replicas"] = replicas
    elif kind < 8:
        cluster["groups"] = [_group(draw), _group(draw)]
        replicas = sum(group["replicas"] for group in cluster["groups"])
    else:
        cluster["groups"] = [_group(draw, role) for role in ("prefill", "decode")]
        cluster["kv_link"] = draw(
            st.sampled_from(
                [{"bandwidth_gb_per_s": 50}, {"bandwidth_gb_per_s": 0.1, "latency_us": 100}]
            )
        )
        replicas = sum(group["replicas"] for group in cluster["groups"])
    if _one_in(draw, 3) and kind < 8:
        cluster["autoscaling"] = {
            "target_outstanding": draw(st.sampled_from([1.0, 3.0])),
            "check_every_s": draw(st.sampled_from([0.0625, 0.1])),
            "startup_s": draw(st.sampled_from([0.0, 0.125, 1.0])),
            "cooldown_s": draw(st.sampled_from([0.0, 0.25])),
        }
    if draw(st.booleans()):
        cluster["failures"] = [_failure(draw, replicas) for _ in range(draw(st.integers(1, 3)))]
    return cluster


def _group(draw: Draw, role: str = "both") -> Section:
    group: Section = {"replicas": draw(st.integers(1, 2)), "role": role}
    engine: Section = {}
    if _one_in(draw, 3):
        engine["num_gpu_blocks_override"] = draw(st.sampled_from([300, 40, 12]))
    _maybe(draw, engine, 4, "max_num_seqs", st.integers(1, 3))
    _maybe(draw, engine, 6, "async_scheduling", st.booleans())
    _maybe(draw, engine, 8, "enable_prefix_caching", st.booleans())
    if _one_in(draw, 6):
        engine["scheduler"] = draw(st.sampled_from(["chunked", "paged", "orca"]))
    if engine:
        group["engine"] = engine
    _maybe(draw, group, 6, "hardware", st.just({"gpu": "h100-sxm"}))
    return group


def _failure(draw: Draw, replicas: int) -> Section:
    failure: Section = {
        "replica": draw(st.integers(0, replicas - 1)),
        "at_s": draw(st.sampled_from([0.0, 0.0625, 0.1, 0.25, 0.3])),
    }
    _maybe(draw, failure, 2, "recover_after_s", st.sampled_from([0.0625, 0.2]))
    return failure
