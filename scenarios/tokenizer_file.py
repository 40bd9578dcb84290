"""The tokenizer.json of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_tokenizer(path: Path) -> tuple[Any, Path]:
    """Hugging Face's tokenizer of a ``tokenizer.json``, or of a folder that has one; and the file.

    Raises ValueError naming the file where it is none, ModuleNotFoundError where the package
    tokenizers is missing.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file}: no such file, expected a tokenizer.json")
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{file}: needs the package tokenizers (pip install tokenizers)"
        ) from None
    try:
        return Tokenizer.from_file(str(file)), file
    except Exception as error:  # the package raises bare ones
        raise ValueError(f"{file}: no tokenizer of Hugging Face's: {error!s:.120}") from None
