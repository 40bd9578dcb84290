"""PromptContent: the hash chain of KV blocks says exactly which prefixes are equal."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.workload import PromptContent

ROOT = Path(__file__).parents[3]


def hashes(tokens, block_size, **content):
    return PromptContent.from_lists([tokens], **content).block_hashes(
        0, block_size, content.get("unit_tokens", 1) * len(tokens)
    )


prompts = st.lists(st.lists(st.integers(0, 2), max_size=24), min_size=1, max_size=12)


@given(prompts, st.integers(1, 9))
def test_hashes_are_equal_exactly_where_token_prefixes_are(rows, block_size):
    content = PromptContent.from_lists(rows)
    seen = {}
    for request, row in enumerate(rows):
        chain = content.block_hashes(request, block_size, len(row))
        assert len(chain) == len(row) // block_size
        for block, block_hash in enumerate(chain):
            prefix = tuple(row[: (block + 1) * block_size])
            assert 0 <= block_hash < 2**63
            assert seen.setdefault(block_hash, prefix) == prefix
    assert len(set(seen.values())) == len(seen)  # and no prefix has two hashes


@given(prompts, st.integers(1, 40), st.integers(2, 16))
def test_units_of_any_size_share_exactly_their_common_ids(rows, block_size, unit_tokens):
    content = PromptContent.from_lists(rows, unit_tokens=unit_tokens)
    seen = {}
    for request, row in enumerate(rows):
        chain = content.block_hashes(request, block_size, len(row) * unit_tokens)
        assert len(chain) == len(row) * unit_tokens // block_size
        for block, block_hash in enumerate(chain):
            end = (block + 1) * block_size
            prefix = (end, *row[: -(-end // unit_tokens)])
            assert seen.setdefault(block_hash, prefix) == prefix
    assert len(set(seen.values())) == len(seen)


@given(st.integers(0, 99), st.integers(1, 17), st.integers(0, 2**40), st.integers(1, 2**40))
def test_one_differing_token_changes_its_block_and_all_later_ones(at, block_size, token, change):
    first, second = [token] * 100, [token] * 100
    second[at] += change
    same = [a == b for a, b in zip(hashes(first, block_size), hashes(second, block_size), strict=1)]
    assert same == [block < at // block_size for block in range(100 // block_size)]


def test_swapped_and_repeated_tokens_are_told_apart():
    assert hashes([1, 2, 3, 4], 4) != hashes([2, 1, 3, 4], 4)
    assert hashes([1, 2, 3, 4], 2)[1] != hashes([3, 4, 1, 2], 2)[1]
    assert len(set(hashes([0] * 64, 4))) == 16


def test_only_full_blocks_of_the_asked_tokens_have_a_hash():
    content = PromptContent.from_lists([range(10)])
    whole = content.block_hashes(0, 4, 10)
    assert len(whole) == 2
    assert content.block_hashes(0, 4, 7) == whole[:1]
    assert content.block_hashes(0, 4, 3) == []
    assert content.block_hashes(0, 4, 0) == []
    assert content.block_hashes(0, 4, 1000) == whole  # nothing is known of the rest


def test_a_mooncake_prompt_is_known_up_to_its_last_token():
    content = PromptContent.from_lists(
        [[46, 47], [46, 47], [46, 48]], unit_tokens=512, known_tokens=[655, 655, 700]
    )
    first, second, third = (content.block_hashes(request, 16, 655) for request in range(3))
    assert first == second
    assert len(first) == 655 // 16
    assert [a == b for a, b in zip(first, third, strict=True)] == [True] * 32 + [False] * 8


def test_an_id_beyond_a_differing_one_is_not_the_same_prefix():
    """Also where a file's ids name their units alone."""
    assert hashes([1, 7], 512, unit_tokens=512)[1] != hashes([2, 7], 512, unit_tokens=512)[1]


def test_a_thousand_prompts_have_no_collisions():
    rng = np.random.default_rng(3)
    content = PromptContent.from_lists(rng.integers(0, 128_256, (1000, 256)).tolist())
    chains = [content.block_hashes(request, 1, 256) for request in range(1000)]
    first_tokens = len(set(content.ids[::256].tolist()))
    assert len({block_hash for chain in chains for block_hash in chain[:1]}) == first_tokens
    assert len({block_hash for chain in chains for block_hash in chain[8:]}) == 1000 * 248


def test_token_ids_that_differ_by_powers_of_two_do_not_collide():
    content = PromptContent.from_lists(
        [[1 << bit, 1 << other] for bit in range(62) for other in range(62)]
    )
    assert len({content.block_hashes(request, 2, 2)[0] for request in range(62 * 62)}) == 62 * 62


def test_hashes_are_the_same_in_every_process():
    program = (
        "from sim.workload import PromptContent;"
        "print(PromptContent.from_lists([range(40)]).block_hashes(0, 7, 40))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{hashes(range(40), 7)}\n"}


def test_narrow_token_ids_hash_like_wide_ones():
    wide = PromptContent.from_lists([[5, 6, 7, 8]])
    narrow = PromptContent(wide.ids.astype(np.int32), wide.offsets, wide.known_tokens)
    assert narrow.block_hashes(0, 2, 4) == wide.block_hashes(0, 2, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptContent.from_lists([[1, -2]]), "content id 1 is -2, expected 0 or more"),
        (lambda: PromptContent.from_lists([[1]], unit_tokens=0), "unit_tokens is 0"),
        (
            lambda: PromptContent.from_lists([[1], [2]], unit_tokens=8, known_tokens=[8, 9]),
            "request 1: known_tokens is 9, but its 1 ids of 8 tokens describe 0 to 8",
        ),
        (
            lambda: PromptContent(np.arange(3), np.array([0, 4]), np.array([3])),
            "offsets must ascend within the 3 ids",
        ),
        (
            lambda: PromptContent(np.arange(3), np.array([0, 3]), np.array([1, 1])),
            "2 offsets for 2 requests, expected one more",
        ),
    ],
)
def test_content_that_does_not_fit_together_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_asking_for_what_is_not_there_is_an_error():
    content = PromptContent.from_lists([[1], [2]])
    with pytest.raises(IndexError, match="request 2 of a content with 2 requests"):
        content.block_hashes(2, 16, 1)
    with pytest.raises(IndexError, match="request -1"):
        content.block_hashes(-1, 16, 1)
    with pytest.raises(ValueError, match="block_size is 0"):
        content.block_hashes(0, 0, 1)
    with pytest.raises(ValueError, match="num_tokens -1"):
        content.block_hashes(0, 1, -1)
