"""Shared system prompts: prompts with the same prefix share its full blocks and nothing else."""

import numpy as np
import pytest

from sim.workload import Workload
from sim.workload.sessions import shared_prefixes


def test_prompts_of_one_prefix_share_its_full_blocks_only():
    prompt_tokens = np.array([300, 90, 100, 40, 500])
    content = shared_prefixes(
        np.random.default_rng(0), prompt_tokens, num_prefixes=1, shared_prefix_tokens=100
    )
    chains = [content.block_hashes(i, 16, int(n)) for i, n in enumerate(prompt_tokens)]
    assert [len(chain) for chain in chains] == [6, 5, 6, 2, 6]  # of 100, 90, 100, 40, 100 tokens
    assert all(chain == chains[0][: len(chain)] for chain in chains)


def test_each_prefix_has_its_own_blocks_and_about_its_share_of_requests():
    prompt_tokens = np.full(4000, 64)
    content = shared_prefixes(
        np.random.default_rng(0), prompt_tokens, num_prefixes=4, shared_prefix_tokens=48
    )
    chains = [tuple(content.block_hashes(request, 16, 64)) for request in range(4000)]
    kinds = sorted(set(chains))
    assert len(kinds) == 4
    assert len({block_hash for chain in kinds for block_hash in chain}) == 12
    assert [chains.count(chain) for chain in kinds] == pytest.approx([1000] * 4, abs=150)


def test_the_same_seed_gives_the_same_content_and_it_fits_a_workload():
    prompt_tokens = np.arange(1, 101)
    first, second = (
        shared_prefixes(
            np.random.default_rng(3), prompt_tokens, num_prefixes=5, shared_prefix_tokens=32
        )
        for _ in range(2)
    )
    assert first.ids.tobytes() == second.ids.tobytes()
    workload = Workload(np.zeros(100), prompt_tokens, np.ones(100), content=first)
    assert workload.slice(50).content.block_hashes(0, 8, 51) == first.block_hashes(50, 8, 51)


@pytest.mark.parametrize("bad", [0, -1, 1.5])
def test_prefixes_must_be_whole_and_positive(bad):
    with pytest.raises(ValueError, match=f"num_prefixes is {bad}"):
        shared_prefixes(
            np.random.default_rng(0), np.ones(1), num_prefixes=bad, shared_prefix_tokens=4
        )
    with pytest.raises(ValueError, match=f"shared_prefix_tokens is {bad}"):
        shared_prefixes(
            np.random.default_rng(0), np.ones(1), num_prefixes=4, shared_prefix_tokens=bad
        )
