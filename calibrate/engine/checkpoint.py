"""A Hugging Face checkpoint folder: config.json, safetensors files, tokenizer.json.

Tensors are read one at a time, when they are asked for, so that no second copy of a model is ever
in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from calibrate.device.environment import require_device
from kernels.checks import LinearBackend
from kernels.model_config import ModelConfig
from kernels.transformer import Transformer

CPU_THREADS = 1
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Checkpoint(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint by their Hugging Face names; a context manager.

    Raises: ValueError, naming the file, for a folder without safetensors or with a broken one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise ValueError(f"{folder}: no *.safetensors file in it")
        try:
            from safetensors import SafetensorError, safe_open
        except ModuleNotFoundError:
            raise ValueError(
                f"{folder}: reading a checkpoint needs the package safetensors: "
                "pip install 'orcast[gpu]'"
            ) from None
        for path in paths:
            try:
                file = self._stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                self.close()
                raise ValueError(f"{path}: not a safetensors file: {error}") from None
            self._files |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        self._stack.close()


def has_weights(folder: Path) -> bool:
    """Whether a model's folder holds weights besides its config."""
    return folder.is_dir() and any(folder.glob("*.safetensors"))


def eos_token(folder: Path) -> int | None:
    """The end-of-sequence token of generation_config.json or config.json; None where there is none.

    Of several the first is taken.
    """
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            if found is not None:
                return int(found[0] if isinstance(found, list) else found)
    return None


def decode(folder: Path, tokens: list[int]) -> str | None:
    """Tokens as text; None where the folder has no tokenizer.json."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    text: str = Tokenizer.from_file(str(path)).decode(tokens)
    return text


def load_model(
    config: Mapping[str, Any],
    *,
    folder: Path | None = None,
    device: str,
    dtype: str | None = None,
    linear_backend: LinearBackend | None = None,
    seed: int = 0,
) -> Transformer:
    """A model ready to serve, on ``cuda`` with our kernels or on ``cpu`` with plain PyTorch.

    On the CPU one thread computes from now on, as when latency tables are measured there.

    Args:
        config: its Hugging Face config.
        folder: a checkpoint; random weights without one, which timing cannot tell from real ones.
        dtype: of weights and cache; by default the config's.
        linear_backend: of the dense products; a table's own where one forecasts this model.
        seed: of random weights.

    Raises: ValueError for what the kernels do not cover or a broken checkpoint, CalibrationError
    for a missing GPU, MemoryError when the weights do not fit.
    """
    require_device(device)
    if device == "cpu":
        torch.set_num_threads(CPU_THREADS)
    wanted = dtype or str(config.get("torch_dtype") or config.get("dtype") or "bfloat16")
    if wanted not in DTYPES:
        raise ValueError(f"dtype: must be one of {', '.join(DTYPES)}, got {wanted!r}")
    settings: dict[str, Any] = {
        "dtype": DTYPES[wanted],
        "device": device,
        "backend": "triton" if device == "cuda" else "torch",
        "linear_backend": linear_backend or ("fastest" if device == "cuda" else "torch"),
    }
    architecture = ModelConfig.from_hugging_face(config)
    try:
        if folder is not None:
            with Checkpoint(folder) as tensors:
                return Transformer.from_tensors(architecture, tensors, **settings)
        generator = torch.Generator(device=device).manual_seed(seed)
        return Transformer.random(architecture, generator=generator, **settings)
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"the model's weights do not fit on {device}: {str(error).splitlines()[0]}"
        ) from None
