"""A short attack of every kind; `make attack` goes on for as long as it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.attack.judged import all_kinds, attacked
from tests.attack.kinds import KINDS, Attack

NUMBER = 6  # of each kind
Kinds = dict[str, Callable[[Path, Random], Attack]]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    return all_kinds(tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize("kind", [*KINDS, "results"])
def test_hostile_input_ends_in_a_result_or_in_one_clear_line(kind: str, kinds: Kinds) -> None:
    names = [f"{kind}:test:{number}" for number in range(NUMBER)]
    met = {name: attacked(kinds[kind], name) for name in names}
    assert {name: fault for name, fault in met.items() if fault} == {}
