"""What the documentation says is refused together is refused, in the words that it gives."""

from __future__ import annotations

import pytest

from scenarios.errors import InputError
from scenarios.forecast.deployment import deploy
from scenarios.schema.load import load_scenario
from tests.scenarios.forecast.refused import Refusal, is_listed, listed


def refusal(*settings: str) -> str:
    with pytest.raises(InputError) as refused:
        scenario, origin = load_scenario(
            "quickstart", ["workload.num_requests=4", "engine={}", *settings]
        )
        deploy(scenario, origin=origin)
    return str(refused.value)


@pytest.mark.parametrize("one", listed(), ids=lambda one: one.what)
def test_what_is_listed_is_refused(one: Refusal) -> None:
    said = refusal(*one.settings)
    assert one.words in said
    assert "\n" not in said


def test_the_page_has_rows_and_knows_its_own_words() -> None:
    assert len(listed()) >= 20
    assert is_listed(refusal(*listed()[0].settings))
    assert not is_listed(refusal("engine.max_num_seqs=0"))
