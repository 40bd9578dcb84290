"""System prompts and conversations: what is the same shares its blocks, and nothing else does."""

from itertools import pairwise

import numpy as np
import pytest

from sim.workload import Workload
from sim.workload.sessions import (
    Conversations,
    conversations,
    shared_prefixes,
    turns_of_sessions,
)


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


def talk(**given: object) -> Conversations:
    """Two conversations of three and two turns."""
    columns = {
        "session_arrival_s": np.array([0.0, 1.0]),
        "turns": np.array([3, 2]),
        "gaps_s": np.array([9.0, 10.0, 10.0, 9.0, 4.0]),
        "user_tokens": np.array([20, 30, 10, 50, 7]),
        "reply_tokens": np.array([5, 6, 7, 8, 9]),
    }
    return conversations(**(columns | given))  # type: ignore[arg-type]


def test_a_turn_begins_with_all_that_was_said_before():
    said = talk()
    assert said.arrival_s.tolist() == [0.0, 1.0, 5.0, 10.0, 20.0]
    assert said.prompt_tokens.tolist() == [20, 50, 58 + 7, 25 + 30, 61 + 10]
    assert said.output_tokens.tolist() == [5, 8, 9, 6, 7]
    chains = [
        said.content.block_hashes(turn, 4, int(said.prompt_tokens[turn] + said.output_tokens[turn]))
        for turn in range(5)
    ]
    first, second = [0, 3, 4], [1, 2]
    for turns in (first, second):
        for earlier, later in pairwise(turns):
            known = chains[earlier]
            assert chains[later][: len(known)] == known, "prompt and answer are found again"
    assert not set(chains[4]) & set(chains[2]), "another conversation is another"
    assert len(chains[0]) == 25 // 4


def test_a_conversation_that_grows_too_long_begins_anew():
    said = talk(max_context_tokens=60)
    # The second turn of the first: 25 + 30 + 6 are too many; of the second: 58 + 7 + 9.
    assert said.prompt_tokens.tolist() == [20, 50, 7, 30, 36 + 10]
    hashes = [said.content.block_hashes(turn, 4, 8) for turn in range(5)]
    assert len({tuple(chain) for chain in hashes}) == 4, "two topics each"
    assert hashes[3] == hashes[4]


def test_conversations_of_one_application_share_its_system_prompt():
    said = talk(prefixes=np.array([1, 1]), prefix_tokens=16)
    chains = [said.content.block_hashes(turn, 4, int(said.prompt_tokens[turn])) for turn in (0, 1)]
    assert chains[0][:4] == chains[1][:4]
    assert chains[0][4:] and chains[0][4] != chains[1][4]


def test_turns_add_up_and_have_their_mean():
    rng = np.random.default_rng(0)
    fixed = turns_of_sessions(rng, 20, mean=6, geometric=False)
    assert fixed.tolist() == [6, 6, 6, 2]
    drawn = turns_of_sessions(rng, 60_000, mean=6, geometric=True)
    assert drawn.sum() == 60_000 and drawn.min() == 1
    assert drawn.mean() == pytest.approx(6, rel=0.05)
    assert turns_of_sessions(rng, 1, mean=6, geometric=True).tolist() == [1]
