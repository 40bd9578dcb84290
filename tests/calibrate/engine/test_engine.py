"""The engine on a tiny model: its outputs, its schedules, and what it does when things go wrong."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests import needs

torch = pytest.importorskip("torch", reason=needs.KERNELS)
pytest.importorskip("triton", reason=needs.KERNELS)

from calibrate.engine import iteration_graphs  # noqa: E402
from calibrate.engine.engine import Served  # noqa: E402
from calibrate.engine.executor import Outcome  # noqa: E402
from calibrate.recordings.replay import replay  # noqa: E402
from kernels.transformer import ForwardBatch  # noqa: E402
from sim.batch import Batch  # noqa: E402
from sim.queues import QueueRules  # noqa: E402
from sim.request import Request  # noqa: E402
from sim.schedulers.engine_config import EngineConfig  # noqa: E402
from sim.workload.content import PromptContent  # noqa: E402
from sim.workload.samples import Samples  # noqa: E402
from sim.workload.workload import Workload  # noqa: E402
from tests.calibrate.engine.tiny_model import (  # noqa: E402
    drawn_workload,
    greedy_reference,
    serve,
    tiny_engine,
    tiny_transformer,
)

MODEL = tiny_transformer()
WORKLOAD = drawn_workload(16, shared_tokens=9)

# policy, KV blocks (few enough for preemptions where the policy has any), further settings
CASES = {
    "static": ("static", 90, {"pads_attention": False}),
    "static, padding attended to": ("static", 90, {}),
    "dynamic": ("dynamic", 90, {"preferred_batch_sizes": (2, 4), "max_queue_delay_s": 0.002}),
    "orca": ("orca", 60, {}),
    "orca, buddies": ("orca", 60, {"placement": "buddy", "reservation": "pow2"}),
    "orca, first fit": ("orca", 60, {"placement": "first_fit"}),
    "paged": ("paged", 24, {}),
    "paged, no prefix cache": ("paged", 24, {"enable_prefix_caching": False}),
    "paged, swap": ("paged", 24, {"preemption": "swap", "swap_blocks": 40}),
    "paged, little swap": ("paged", 24, {"preemption": "swap", "swap_blocks": 8}),
    "chunked": ("chunked", 24, {}),
    "chunked, no prefix cache": ("chunked", 24, {"enable_prefix_caching": False}),
    "chunked, small chunks": ("chunked", 64, {"long_prefill_token_threshold": 5}),
    "chunked, one long prompt at a time": ("chunked", 64, {"max_num_batched_tokens": 7}),
    "orca, ahead": ("orca", 60, {"async_scheduling": True}),
    "paged, ahead": ("paged", 24, {"async_scheduling": True}),
    "chunked, ahead": ("chunked", 24, {"async_scheduling": True}),
    "chunked, ahead, no prefix cache": (
        "chunked",
        24,
        {"async_scheduling": True, "enable_prefix_caching": False},
    ),
    "chunked, ahead, small chunks": (
        "chunked",
        64,
        {"async_scheduling": True, "long_prefill_token_threshold": 5},
    ),
    "paged, shortest prompt first": ("paged", 24, {"queue": QueueRules("shortest_prompt")}),
    "chunked, shortest job first": ("chunked", 24, {"queue": QueueRules("shortest_job")}),
}


def prompt(workload: Workload, request: int) -> list[int]:
    content = workload.content
    assert content is not None
    tokens: list[int] = content.ids[
        content.offsets[request] : content.offsets[request + 1]
    ].tolist()
    return tokens


@pytest.fixture(scope="module")
def reference() -> dict[int, list[int]]:
    return {
        request: greedy_reference(MODEL, prompt(WORKLOAD, request), tokens)
        for request, tokens in enumerate(WORKLOAD.output_tokens.tolist())
    }


@pytest.mark.parametrize("name", CASES)
def test_outputs_equal_a_plain_model_under_every_policy(
    name: str, reference: dict[int, list[int]]
) -> None:
    scheduler, num_blocks, settings = CASES[name]
    served = serve(WORKLOAD, MODEL, scheduler=scheduler, num_blocks=num_blocks, **settings)
    assert served.errors == {}
    assert served.outputs == reference


@pytest.mark.parametrize("name", CASES)
def test_the_simulator_makes_the_same_schedule_from_the_same_durations(name: str) -> None:
    scheduler, num_blocks, settings = CASES[name]
    engine = tiny_engine(WORKLOAD, MODEL, scheduler=scheduler, num_blocks=num_blocks, **settings)
    served = engine.run()
    again = replay(
        served.records,
        WORKLOAD,
        engine.scheduler.config,
        scheduler=scheduler,
        num_blocks=num_blocks,
    )
    assert again.differences == []


@pytest.mark.parametrize("scheduler", ["static", "orca", "paged", "chunked"])
def test_who_is_refused_or_gives_up_is_told_so_and_the_simulator_agrees(scheduler: str) -> None:
    settings = {
        "queue": QueueRules(max_waiting=9, max_wait_s=0.02),
        "max_num_seqs": 2,
        "pads_attention": False,
    }
    workload = replace(WORKLOAD, arrival_s=np.zeros(len(WORKLOAD)))
    engine = tiny_engine(workload, MODEL, scheduler=scheduler, num_blocks=60, **settings)
    served = engine.run()
    words = [text.split()[0] for text in served.errors.values()]
    assert words.count("refused:") == len(workload) - 9
    assert words.count("gave") > 0
    again = replay(
        served.records, workload, engine.scheduler.config, scheduler=scheduler, num_blocks=60
    )
    assert again.differences == []


@pytest.mark.parametrize("name", ["chunked", "paged, swap"])
def test_batches_padded_to_captured_shapes_give_the_same_answers(
    name: str, reference: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor what a GPU would replay is called again: the same inputs, the same padding."""
    monkeypatch.setattr(iteration_graphs, "MIXED_DECODES", (0, 3))
    monkeypatch.setattr(iteration_graphs, "PROMPT_TOKENS", (8, 24))
    monkeypatch.setattr(iteration_graphs, "MOST_PROMPTS", 2)
    scheduler, num_blocks, settings = CASES[name]
    engine = tiny_engine(
        WORKLOAD, MODEL, scheduler=scheduler, num_blocks=num_blocks, capture_sizes=(1, 4, 6),
        **settings,
    )  # fmt: skip
    graphs, replayed = engine.executor._graphs, []
    replay_one = graphs.replay

    def noted(staged: iteration_graphs.Staged) -> torch.Tensor:
        replayed.append(staged.shape)
        return replay_one(staged)

    monkeypatch.setattr(graphs, "replay", noted)
    assert engine.run().outputs == reference
    kinds = {(shape.decodes > 0, shape.prompts > 0) for shape in replayed}
    mixed = name.startswith("chunked")
    assert kinds == {(True, False), (False, True), *([(True, True)] if mixed else [])}


def test_small_caches_really_preempt_and_swap() -> None:
    recomputed = serve(WORKLOAD, MODEL, scheduler="chunked", num_blocks=24).records
    swapped = serve(
        WORKLOAD, MODEL, scheduler="paged", num_blocks=24, preemption="swap", swap_blocks=40
    ).records
    assert len(recomputed.preemptions["request"]) > 0
    assert swapped.iterations["swap_blocks"].sum() > 0


def test_shared_prompts_are_found_in_the_prefix_cache() -> None:
    cached = serve(WORKLOAD, MODEL).records.requests["cached_tokens"]
    assert (cached > 0).sum() > len(WORKLOAD) // 2


def test_a_different_schedule_is_noticed() -> None:
    engine = tiny_engine(WORKLOAD, MODEL, num_blocks=24)
    served = engine.run()
    other = replace(engine.scheduler.config, max_num_seqs=3)
    again = replay(served.records, WORKLOAD, other, scheduler="chunked", num_blocks=24)
    assert again.differences and "real run" in again.differences[0]


def test_an_iteration_is_schedule_prepare_forward_and_sample() -> None:
    iterations = serve(WORKLOAD, MODEL).records.iterations
    phases = sum(iterations[name] for name in ("schedule_s", "prepare_s", "forward_s", "sample_s"))
    assert (phases > 0).all()
    assert (phases <= iterations["duration_s"]).all()
    # What is left is bookkeeping after the sampled tokens are known.
    assert phases.sum() > 0.8 * iterations["duration_s"].sum()


def test_the_end_of_sequence_token_ends_a_sequence(reference: dict[int, list[int]]) -> None:
    eos_token = reference[3][0]
    served = serve(WORKLOAD, MODEL, eos_token=eos_token)
    for request, tokens in reference.items():
        expected = tokens
        if eos_token in tokens:
            expected = tokens[: tokens.index(eos_token) + 1]
        assert served.outputs[request] == expected
    assert served.outputs[3] == [eos_token]


@pytest.mark.parametrize("scheduler", ["static", "orca", "paged", "chunked"])
def test_a_cancelled_request_leaves_and_the_rest_goes_on(
    scheduler: str, reference: dict[int, list[int]]
) -> None:
    workload = replace(WORKLOAD, arrival_s=np.zeros(16))
    engine = tiny_engine(workload, MODEL, scheduler=scheduler, num_blocks=90)
    run = engine.executor.run
    iterations = 0

    def count_and_cancel(batch: Batch, decoding: Collection[Request]) -> Outcome:
        nonlocal iterations
        iterations += 1
        if iterations == 4:
            for request in (2, 5, 15):  # running or waiting by then
                engine.cancel(request)
        return run(batch, decoding)

    engine.executor.run = count_and_cancel  # type: ignore[method-assign]
    served = engine.run()
    assert set(served.errors.values()) <= {"cancelled"}
    assert 15 in served.errors
    for request, tokens in reference.items():
        if request in served.errors:
            assert served.outputs[request] == tokens[: len(served.outputs[request])]
        else:
            assert served.outputs[request] == tokens
    rejected = served.records.requests["rejected"]
    assert rejected.sum() == len(served.errors)
    assert (served.records.iterations["waiting"] >= 0).all()


def test_a_request_that_cannot_fit_is_told_so() -> None:
    large = replace(WORKLOAD, output_tokens=np.where(np.arange(16) == 7, 400, 3), max_tokens=None)
    served = serve(large, MODEL, num_blocks=32)
    assert set(served.errors) == {7}
    assert "do not fit: the KV cache holds 128" in served.errors[7]
    assert len(served.outputs) == 15


def test_a_sequence_with_a_nan_ends_alone(reference: dict[int, list[int]]) -> None:
    model = tiny_transformer()
    poisoned = 11
    served_tokens = {token for request in range(16) for token in prompt(WORKLOAD, request)}
    unused = next(token for token in range(97) if token not in served_tokens)
    ids = WORKLOAD.content.ids.copy()
    ids[WORKLOAD.content.offsets[poisoned + 1] - 1] = unused
    model.embeddings[unused] = torch.nan
    workload = replace(WORKLOAD, content=replace(WORKLOAD.content, ids=ids))
    served = serve(workload, model, num_blocks=24)
    spoiled = {request for request, tokens in reference.items() if unused in tokens}
    assert served.errors[poisoned] == "the model's logits are not finite"
    assert set(served.errors) <= spoiled | {poisoned}
    for request in set(reference) - set(served.errors):
        assert served.outputs[request] == reference[request]


@pytest.mark.parametrize("scheduler", ["static", "orca", "paged", "chunked"])
def test_running_out_of_memory_costs_the_prompts_of_that_iteration(
    scheduler: str, reference: dict[int, list[int]]
) -> None:
    engine = tiny_engine(WORKLOAD, MODEL, scheduler=scheduler, num_blocks=90)
    forward = engine.executor.model.forward
    failures = 0

    def fail_once(*arguments: object) -> torch.Tensor:
        nonlocal failures
        failures += 1
        if failures == 2:
            raise torch.OutOfMemoryError("tried to allocate 20.00 GiB\nand more")
        return forward(*arguments)

    engine.executor.model.forward = fail_once  # type: ignore[method-assign]
    try:
        served = engine.run()
    finally:
        del engine.executor.model.forward
    assert 0 < len(served.errors) < 16
    assert set(served.errors.values()) == {"out of memory: tried to allocate 20.00 GiB"}
    for request in set(reference) - set(served.errors):
        assert served.outputs[request] == reference[request]


def test_a_stopped_run_keeps_what_it_had(reference: dict[int, list[int]]) -> None:
    engine = tiny_engine(WORKLOAD, MODEL, num_blocks=24)
    engine._progress = lambda ended: engine.stop() if ended >= 5 else None
    served = engine.run()
    assert 0 < len(served.errors) < 16
    assert set(served.errors.values()) == {"interrupted"}
    for request in set(reference) - set(served.errors):
        assert served.outputs[request] == reference[request]
    assert len(served.records.requests["request"]) == 16


def test_a_cache_that_cannot_be_allocated_says_how_large_it_was() -> None:
    model = tiny_transformer()

    def full(num_blocks: int, block_size: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")

    model.new_kv_cache = full  # type: ignore[method-assign]
    with pytest.raises(
        MemoryError, match=r"cache of 4096 blocks needs 0\.03 GiB on cpu .*20.00 GiB"
    ):
        tiny_engine(WORKLOAD, model, num_blocks=4096)


def test_sampling_is_drawn_from_its_seed() -> None:
    from calibrate.engine.assembly import engine
    from calibrate.engine.executor import Sampling
    from calibrate.engine.wall_clock import Clock

    config = EngineConfig(max_num_seqs=4, max_num_batched_tokens=64, block_size=4)

    def outputs(seed: int) -> dict[int, list[int]]:
        sampling = Sampling(temperature=1.0, top_p=0.9, seed=seed)
        # All at once, so that batches do not depend on the clock.
        workload = replace(WORKLOAD, arrival_s=np.zeros(16))
        return dict(
            engine(
                workload, config, MODEL, scheduler="chunked", num_blocks=64, sampling=sampling,
                clock=Clock(skip_idle=True),
            ).run().outputs
        )  # fmt: skip

    assert outputs(1) == outputs(1)
    assert outputs(1) != outputs(2)


@pytest.mark.parametrize(
    ("scheduler", "num_blocks", "settings"),
    [
        ("chunked", 60, {}),
        ("chunked", 34, {}),
        ("paged", 60, {}),
        ("paged", 34, {"preemption": "swap", "swap_blocks": 60}),
    ],
)
def test_samples_share_blocks_and_copy_what_they_write(
    scheduler: str, num_blocks: int, settings: dict[str, object], reference: dict[int, list[int]]
) -> None:
    rng = np.random.default_rng(4)
    counts = rng.integers(1, 4, 16)
    lengths = [np.minimum(rng.integers(1, 14, n), 13).tolist() for n in counts.tolist()]
    samples = Samples(counts, np.concatenate(lengths).astype(np.int64))
    longest = np.array([max(each) for each in lengths])
    workload = replace(WORKLOAD, output_tokens=longest, max_tokens=None, samples=samples)
    engine = tiny_engine(workload, MODEL, scheduler=scheduler, num_blocks=num_blocks, **settings)
    served = engine.run()
    assert served.errors == {}
    for request, each in enumerate(lengths):
        expected = greedy_reference(MODEL, prompt(WORKLOAD, request), max(each))
        answers = served.samples.get(request, [served.outputs[request]])
        assert sorted(answers) == sorted(expected[:tokens] for tokens in each)
    again = replay(
        served.records,
        workload,
        engine.scheduler.config,
        scheduler=scheduler,
        num_blocks=num_blocks,
    )
    assert again.differences == []


@pytest.mark.parametrize("step", ["prepare", "launch", "collect"])
@pytest.mark.parametrize("scheduler", ["orca", "paged", "chunked"])
def test_ahead_running_out_of_memory_at_any_step_ends_everybody_with_an_error(
    step: str, scheduler: str, reference: dict[int, list[int]]
) -> None:
    engine = tiny_engine(WORKLOAD, MODEL, scheduler=scheduler, num_blocks=60, async_scheduling=True)
    work = getattr(engine.executor, step)
    calls = 0

    def fail(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise torch.OutOfMemoryError("tried to allocate 20.00 GiB\nand more")
        return work(*arguments)

    setattr(engine.executor, step, fail)
    served = engine.run()
    assert "out of memory: tried to allocate 20.00 GiB" in served.errors.values()
    assert len(served.records.requests["request"]) == len(WORKLOAD)
    for request, tokens in reference.items():
        if request in served.errors:
            answer = served.outputs.get(request, [])  # none, of those who had not come
            assert answer == tokens[: len(answer)]
        else:
            assert served.outputs[request] == tokens
    assert engine.scheduler.allocator.num_free == 60


def test_a_cancelled_clients_next_request_comes_by_the_clock() -> None:
    """Deciding ahead counts in iterations, clients do not."""
    workload = replace(
        WORKLOAD, arrival_s=np.zeros(len(WORKLOAD)), max_concurrency=3, request_ids=None
    )
    engine = tiny_engine(workload, MODEL, num_blocks=60, async_scheduling=True)
    for request in (1, 2, 5):
        engine.cancel(request)
    records = engine.run().records
    ended_s = float((records.iterations["start_s"] + records.iterations["duration_s"]).max())
    assert (records.requests["arrival_s"] <= ended_s).all()
    assert (records.iterations["waiting"] >= 0).all()


@pytest.mark.parametrize("ahead", [False, True])
def test_who_is_cancelled_before_the_engine_has_taken_it_in_is_cancelled_all_the_same(
    ahead: bool, reference: dict[int, list[int]]
) -> None:
    engine = tiny_engine(WORKLOAD, MODEL, num_blocks=60, async_scheduling=ahead)
    for request in (11, 15):
        engine.cancel(request)
    served = engine.run()
    assert served.errors == {11: "cancelled", 15: "cancelled"}
    assert served.outputs == reference | {11: [], 15: []}
    assert not engine._cancelled


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_nan_in_a_last_token_leaves_nothing_in_the_prefix_cache(ahead: bool, tokens: int) -> None:
    ids = [list(range(20)), [*range(20), 3], [*range(20), 5]]
    workload = Workload(
        arrival_s=np.array([0.0, 5.0, 10.0]),
        prompt_tokens=np.array([20, 21, 21]),
        output_tokens=np.array([tokens, 4, 4]),
        content=PromptContent.from_lists(ids),
    )
    model = tiny_transformer()
    forward = model.forward
    passes = 0

    def spoil(batch: ForwardBatch, kv_cache: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        hidden = forward(batch, kv_cache)
        if passes == tokens:
            kv_cache.copy_(torch.where(kv_cache != 0, torch.nan, kv_cache))
            hidden = hidden * torch.nan
        return hidden

    model.forward = spoil  # type: ignore[method-assign]
    engine = tiny_engine(workload, model, num_blocks=60, async_scheduling=ahead)
    served = engine.run()
    assert served.errors == {0: "the model's logits are not finite"}
    for request in (1, 2):
        assert served.outputs[request] == greedy_reference(model, ids[request], 4)


def sampled_workload() -> tuple[Workload, list[list[int]]]:
    """Requests for one to three samples each, and how long those are."""
    rng = np.random.default_rng(4)
    counts = rng.integers(1, 4, 16)
    lengths = [rng.integers(1, 14, n).tolist() for n in counts.tolist()]
    samples = Samples(counts, np.concatenate(lengths).astype(np.int64))
    longest = np.array([max(each) for each in lengths])
    return replace(WORKLOAD, output_tokens=longest, max_tokens=None, samples=samples), lengths


def assert_the_others_are_answered(served: Served, lengths: Sequence[Sequence[int]]) -> None:
    """Every sample of a request without an error has the reference's tokens."""
    for request, each in enumerate(lengths):
        if request in served.errors:
            continue
        expected = greedy_reference(MODEL, prompt(WORKLOAD, request), max(each))
        answers = served.samples.get(request, [served.outputs[request]])
        assert sorted(answers) == sorted(expected[:tokens] for tokens in each)


@pytest.mark.parametrize("failure", ["nan", "memory"])
@pytest.mark.parametrize("scheduler", ["paged", "chunked"])
def test_what_goes_wrong_with_a_sample_ends_its_request(failure: str, scheduler: str) -> None:
    workload, lengths = sampled_workload()
    engine = tiny_engine(workload, MODEL, scheduler=scheduler, num_blocks=60)
    forward, sample = MODEL.forward, engine.executor._sample
    spoiled = 0

    def fail(batch: ForwardBatch, kv_cache: torch.Tensor) -> torch.Tensor:
        nonlocal spoiled
        if failure == "memory" and batch.cu_seqlens is None and not spoiled:
            spoiled = 1
            raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")
        return forward(batch, kv_cache)

    def spoil(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal spoiled
        tokens = sample(hidden)
        spoiled += failure == "nan"
        return ~tokens if failure == "nan" and spoiled == 6 else tokens

    MODEL.forward, engine.executor._sample = fail, spoil  # type: ignore[method-assign]
    try:
        served = engine.run()
    finally:
        del MODEL.forward
    assert 0 < len(served.errors) < 16
    assert set(served.errors) <= set(range(16))
    assert served.records.requests["rejected"].sum() <= len(served.errors)
    assert_the_others_are_answered(served, lengths)
    assert engine.scheduler.allocator.num_free == 60


def test_samples_cannot_end_by_the_end_of_sequence_token() -> None:
    with pytest.raises(ValueError, match=r"workload\.samples cannot go with --eos"):
        tiny_engine(sampled_workload()[0], MODEL, eos_token=3)


@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize("failing", [{1}, {2, 3}])
@pytest.mark.parametrize("direction", ["out", "in"])
def test_a_swap_that_runs_out_of_memory_ends_its_request_and_keeps_no_host_blocks(
    direction: str, failing: set[int], samples: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calibrate.engine import host_blocks

    workload, lengths = WORKLOAD, [[tokens] for tokens in WORKLOAD.output_tokens.tolist()]
    if samples:
        workload, lengths = sampled_workload()
        workload = replace(workload, arrival_s=np.zeros(16))
    engine = tiny_engine(
        workload, MODEL, scheduler="paged", num_blocks=24, preemption="swap", swap_blocks=40
    )
    swap, calls = host_blocks.swap_blocks, 0

    def fail(*arguments: Any, **more: Any) -> None:
        nonlocal calls
        calls += more["direction"] == direction
        if more["direction"] == direction and calls in failing:
            raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")
        swap(*arguments, **more)

    monkeypatch.setattr(host_blocks, "swap_blocks", fail)
    served = engine.run()
    told = {number for number, text in served.errors.items() if text.startswith("out of memory")}
    assert len(told) == len(failing)
    assert_the_others_are_answered(served, lengths)
    assert engine.executor._hosts[0].num_free == 40
    assert engine.scheduler.allocator.num_free == 24


@pytest.mark.parametrize("step", ["_tables", "_to_device"])
def test_running_out_of_memory_while_inputs_are_prepared_leaves_no_stale_tokens(
    step: str, reference: dict[int, list[int]]
) -> None:
    engine = tiny_engine(WORKLOAD, MODEL, num_blocks=60)
    work, calls = getattr(engine.executor, step), 0

    def fail(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls in (4, 6, 8):
            raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")
        return work(*arguments)

    setattr(engine.executor, step, fail)
    served = engine.run()
    assert 0 < len(served.errors) < 16
    for request in set(reference) - set(served.errors):
        assert served.outputs[request] == reference[request]
