"""What some commands need that the core does not install."""

from __future__ import annotations

from importlib.util import find_spec

from scenarios.errors import InputError


def require_torch(doing: str) -> None:
    """Raise InputError where PyTorch is missing, in a line that says what needs it."""
    if find_spec("torch") is None:
        raise InputError(f"{doing} needs PyTorch: pip install 'orcast[gpu]'")
