"""Speculation in the engine: the text it writes, its schedules, and what it says was accepted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from tests import needs

torch = pytest.importorskip("torch", reason=needs.KERNELS)
pytest.importorskip("triton", reason=needs.KERNELS)

from calibrate.engine.assembly import engine  # noqa: E402
from calibrate.engine.engine import RealEngine  # noqa: E402
from calibrate.engine.executor import Sampling  # noqa: E402
from calibrate.engine.speculation.jacobi import jacobi_decode  # noqa: E402
from calibrate.engine.speculation.proposer import Proposal  # noqa: E402
from calibrate.engine.speculation.token_tree import TokenTree  # noqa: E402
from calibrate.engine.speculation.verification import by_rejection  # noqa: E402
from calibrate.engine.wall_clock import Clock  # noqa: E402
from calibrate.recordings.replay import replay  # noqa: E402
from kernels.logits_and_sample import restricted_probabilities  # noqa: E402
from kernels.transformer import Transformer  # noqa: E402
from sim.schedulers.engine_config import EngineConfig  # noqa: E402
from sim.speculation import DraftShape, Speculation  # noqa: E402
from sim.speculation.acceptance import ObservedAcceptance  # noqa: E402
from sim.workload.content import PromptContent  # noqa: E402
from sim.workload.workload import Workload  # noqa: E402
from tests.calibrate.engine.tiny_model import (  # noqa: E402
    all_logits,
    drawn_workload,
    greedy_reference,
    tiny_transformer,
)

MODEL = tiny_transformer()
WORKLOAD = drawn_workload(12, shared_tokens=9)


def near(model: Transformer, noise: float, seed: int = 5) -> Transformer:
    """A draft that often says what `model` says: the same weights, a little off."""
    generator = torch.Generator().manual_seed(seed)
    head = model.head + noise * torch.randn(model.head.shape, generator=generator)
    return Transformer(
        model.config, embeddings=model.embeddings, layers=model.layers,
        final_norm=model.final_norm, head=head, backend="torch",
    )  # fmt: skip


DRAFT = near(MODEL, 0.03)
CHAIN = DraftShape.chain(3, lookahead_slots=3)
METHODS: dict[str, tuple[str, DraftShape, Transformer | None]] = {
    "ngram": ("ngram", DraftShape.chain(4), None),
    "jacobi": ("jacobi", DraftShape.chain(5), None),
    "draft model": ("draft_model", CHAIN, DRAFT),
    "tree": ("tree", DraftShape.tree((3, 2, 1), ahead=True), DRAFT),
}
# policy, KV blocks (few enough for preemptions where the policy has any), further settings
POLICIES = {
    "orca": ("orca", 60, {}),
    "paged": ("paged", 27, {}),
    "paged, swap": ("paged", 27, {"preemption": "swap", "swap_blocks": 40}),
    "chunked": ("chunked", 27, {}),
    "chunked, no prefix cache": ("chunked", 27, {"enable_prefix_caching": False}),
    "chunked, short of tokens": ("chunked", 60, {"max_num_batched_tokens": 13}),
    "large": ("chunked", 900, {"max_num_batched_tokens": 4096}),
    "chunked, no room at the end": ("chunked", 60, {"max_model_len": 62}),
}


def speculating(
    method: str,
    workload: Workload = WORKLOAD,
    *,
    policy: str = "chunked",
    eos_token: int | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008
    **more: object,
) -> RealEngine:
    name, shape, draft = METHODS[method]
    scheduler, num_blocks, settings = POLICIES[policy]
    limits = {"max_num_seqs": 6, "max_num_batched_tokens": 48, "block_size": 4, "watermark": 0.0}
    config = EngineConfig(
        **(limits | settings | more),  # type: ignore[arg-type]
        speculation=Speculation(name, shape, ObservedAcceptance()),
    )
    return engine(
        workload, config, MODEL, scheduler=scheduler, num_blocks=num_blocks, draft=draft,
        eos_token=eos_token, clock=Clock(skip_idle=True), check=True, sampling=sampling,
    )  # fmt: skip


def prompt(workload: Workload, request: int) -> list[int]:
    content = workload.content
    assert content is not None
    first, end = content.offsets[request : request + 2]
    tokens: list[int] = content.ids[first:end].tolist()
    return tokens


@pytest.fixture(scope="module")
def reference() -> dict[int, list[int]]:
    return {
        request: greedy_reference(MODEL, prompt(WORKLOAD, request), tokens)
        for request, tokens in enumerate(WORKLOAD.output_tokens.tolist())
    }


CASES = [
    *((method, policy) for policy in ("chunked", "chunked, short of tokens") for method in METHODS),
    *(
        ("tree", policy)
        for policy in POLICIES
        if policy not in ("large", "chunked, short of tokens")
    ),
    ("ngram", "paged"),
    ("draft model", "paged, swap"),
    ("draft model", "chunked, no room at the end"),
]


@pytest.mark.parametrize(("method", "policy"), dict.fromkeys(CASES))
def test_greedy_answers_are_the_target_s_own_and_the_simulator_agrees(
    method: str, policy: str, reference: dict[int, list[int]]
) -> None:
    serving = speculating(method, policy=policy)
    served = serving.run()
    assert served.errors == {}
    assert served.outputs == reference
    config = serving.scheduler.config
    assert config.speculation is not None
    observed = config.speculation.acceptance
    assert isinstance(observed, ObservedAcceptance)
    again = replay(
        served.records,
        WORKLOAD,
        replace(config, speculation=replace(config.speculation, acceptance=observed.replayed())),
        scheduler=POLICIES[policy][0],
        num_blocks=POLICIES[policy][1],
    )
    assert again.differences == []


def test_drafts_are_accepted_and_given_up_and_their_sequences_preempted_and_swapped() -> None:
    """The test above sees all that can happen: else it would say little."""
    ngrams = speculating("ngram").run().records
    assert ngrams.iterations["accepted_tokens"].sum() > 3
    assert len(ngrams.preemptions["request"]) > 0
    tree = speculating("tree", policy="paged, swap").run().records.iterations
    assert tree["accepted_tokens"].sum() > 20
    assert tree["swap_blocks"].sum() > 0
    short = speculating("draft model", policy="chunked, short of tokens").run().records.iterations
    assert (short["verified_tokens"] % 4 != 0).any()


def test_a_draft_that_is_the_target_is_always_accepted() -> None:
    METHODS["itself"] = ("draft_model", CHAIN, MODEL)
    METHODS["itself, a tree"] = ("tree", DraftShape.tree((2, 2), ahead=True), MODEL)
    for method in ("itself", "itself, a tree"):
        serving = speculating(method)
        served = serving.run()
        depth = METHODS.pop(method)[1].depth
        speculation = serving.scheduler.config.speculation
        assert speculation is not None
        rows = speculation.acceptance.rows.values()  # type: ignore[attr-defined]
        # Whoever comes back from a preemption shares blocks that no draft may have filled whole.
        counts = np.array([count for row in rows for count in row])
        assert (counts == depth).mean() > 0.9, counts
        assert served.errors == {}


def test_an_answer_ends_with_its_end_of_sequence_token(reference: dict[int, list[int]]) -> None:
    eos_token = next(tokens[4] for tokens in reference.values() if len(tokens) > 6)
    for method in ("ngram", "tree"):
        served = speculating(method, eos_token=eos_token).run()
        for request, tokens in reference.items():
            end = tokens.index(eos_token) + 1 if eos_token in tokens else len(tokens)
            assert served.outputs[request] == tokens[:end]


def test_jacobi_iteration_finds_the_greedy_answer_in_at_most_its_length(
    reference: dict[int, list[int]],
) -> None:
    for request, tokens in reference.items():
        found = jacobi_decode(MODEL, prompt(WORKLOAD, request), len(tokens), block_size=4)
        assert found.tokens == tokens
        assert 1 <= found.passes <= len(tokens)


@pytest.mark.parametrize("branching", [(1, 1), (3, 2)])
@pytest.mark.parametrize("certain", [False, True])
def test_rejection_leaves_the_target_s_distribution_as_it_is(
    branching: tuple[int, ...], certain: bool
) -> None:
    """First and second token of 30,000 verifications over five tokens, by chi-square."""
    rows, vocabulary = 30_000, 5
    generator = torch.Generator().manual_seed(sum(branching) + certain)
    tree = TokenTree.of(DraftShape.tree(branching))
    draft, target = (
        torch.softmax(torch.randn(vocabulary + 1, vocabulary, generator=generator).double(), -1)
        for _ in range(2)
    )  # after the root, and after each first token
    tokens = torch.zeros(rows, len(tree), dtype=torch.int64)
    after = torch.zeros_like(tokens)  # a node's row in the two distributions
    for level, count in enumerate(branching):
        for node in range(*tree.levels[level]):
            q = draft[after[:, node]]
            drawn = torch.multinomial(q, count, replacement=True, generator=generator)
            if certain:  # n-grams: whatever is proposed, for a reason of its own
                drawn = (after[:, node, None] + torch.arange(count)) % vocabulary
            tokens[:, slice(*tree.children[node])] = drawn
            after[:, slice(*tree.children[node])] = drawn + 1
    verdicts = by_rejection(
        tree,
        np.full(rows, len(tree)),
        Proposal(tokens, None if certain else draft[after]),
        target[after],
        [()] * rows,
        generator=generator,
    )
    accepted = sum(len(found.path) > 1 for found in verdicts)
    assert 0.1 * rows < accepted < rows
    counts = np.zeros((vocabulary, vocabulary + 1))  # the last: no second token
    for found in verdicts:
        counts[found.fed[0], found.fed[1] if len(found.fed) > 1 else vocabulary] += 1
    first = counts.sum(1)
    assert chisquare(first, target[0].numpy() * rows).pvalue > 1e-3
    for token in range(vocabulary):
        second = counts[token, :vocabulary]
        expected = target[token + 1].numpy() * second.sum()
        if expected.min() > 4:
            assert chisquare(second, expected).pvalue > 1e-4


def test_sampled_answers_are_distributed_as_the_target_s_own() -> None:
    """Second and third tokens of many answers, by chi-square against exact probabilities.

    The second is a first verification's, the third is mostly its bonus or correction.
    """
    METHODS["far tree"] = ("tree", DraftShape.tree((3, 2), ahead=True), near(MODEL, 0.15))
    count, start = 250, prompt(WORKLOAD, 2)[:5]
    workload = Workload(
        np.zeros(count), np.full(count, 5), np.full(count, 3),
        content=PromptContent.from_lists([start] * count),
    )  # fmt: skip
    sampling = Sampling(temperature=0.7, top_k=4, seed=3)
    expected = _exact(start, sampling)
    for method in ("jacobi", "far tree"):
        serving = speculating(method, workload, policy="large", sampling=sampling, max_num_seqs=250)
        answers = serving.run().outputs.values()
        pairs = Counter((tokens[1], tokens[2]) for tokens in answers)
        likely = [pair for pair, share in expected.items() if share * count >= 5]
        observed = np.array([pairs[pair] for pair in likely] + [0.0])
        shares = np.array([expected[pair] for pair in likely] + [0.0])
        observed[-1], shares[-1] = count - observed.sum(), 1 - shares.sum()
        assert pairs.keys() <= expected.keys()  # top-k is kept
        assert chisquare(observed, shares * count).pvalue > 1e-3, method
    del METHODS["far tree"]


def _exact(prompt: list[int], sampling: Sampling) -> dict[tuple[int, int], float]:
    """The probability of an answer's second and third token, whatever the first."""
    found: dict[tuple[int, int], float] = Counter()

    def after(tokens: list[int]) -> dict[int, float]:
        logits = all_logits(MODEL, torch.tensor(tokens))[-1:]
        heat, most = torch.tensor([sampling.temperature]), torch.tensor([sampling.top_k])
        p = restricted_probabilities(logits, heat, most)[0]
        return {token: float(p[token]) for token in p.nonzero()[:, 0].tolist()}

    for first, p in after(prompt).items():
        for second, q in after([*prompt, first]).items():
            for third, r in after([*prompt, first, second]).items():
                found[second, third] += p * q * r
    return found
