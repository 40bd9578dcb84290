"""Which models profiles can be composed for: those whose kernels are all of measured kinds."""

import pytest

from calibrate.profiles.composable import why_not_composed
from scenarios import library


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v3", "opt-13b"])
def test_models_of_one_kind_of_attention_are_composed(name: str) -> None:
    assert why_not_composed(library.model(name)) is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gpt-oss-20b", "attention of kind sliding 128"),
        ("gemma-3-27b", "attention of kind sliding 1,024"),
        ("qwen3.5-35b-a3b", "attention of kind linear"),
        ("deepseek-v3.2", "attention of kind sparse, top 2,048"),
    ],
)
def test_what_no_profile_has_measured_is_named(name: str, why: str) -> None:
    assert why in (why_not_composed(library.model(name)) or "")
