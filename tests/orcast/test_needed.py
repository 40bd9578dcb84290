"""Commands that need more than the core say so."""

from __future__ import annotations

import pytest

from orcast import needed
from tests.orcast.command_line import refusal


@pytest.mark.parametrize(
    ("command", "doing"),
    [
        (("calibrate", "run", "--model", "tiny", "--out", "table"), "calibrating"),
        (("validate", "validation/tiny-cpu"), "the engine"),
    ],
)
def test_without_torch_a_line_says_what_to_install(
    command: tuple[str, ...], doing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needed, "find_spec", lambda name: None)
    assert refusal(*command) == f"{doing} needs PyTorch: pip install 'orcast[gpu]'"
