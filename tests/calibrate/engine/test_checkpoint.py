"""Serving a checkpoint as it lies on disk: weights, end-of-sequence token, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import needs

torch = pytest.importorskip("torch", reason=needs.KERNELS)
pytest.importorskip("triton", reason=needs.KERNELS)
safetensors = pytest.importorskip("safetensors.torch", reason=needs.KERNELS)

from calibrate.device.environment import CalibrationError  # noqa: E402
from calibrate.engine.checkpoint import Checkpoint, decode, eos_token, has_weights, load_model  # noqa: E402
from tests.calibrate.engine.tiny_model import greedy_reference  # noqa: E402

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 96,
    "vocab_size": 50,
    "max_position_embeddings": 256,
    "torch_dtype": "float32",
    "tie_word_embeddings": True,
    "eos_token_id": [7, 9],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint in two files with random weights, as Hugging Face lays it out."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    heads, kv_heads, head_dim, hidden, width = 4, 2, 64, 128, 96
    shards = []
    for index in range(2):
        prefix = f"model.layers.{index}."
        shards.append(
            {
                f"{prefix}input_layernorm.weight": torch.ones(hidden),
                f"{prefix}post_attention_layernorm.weight": torch.ones(hidden),
                f"{prefix}self_attn.q_proj.weight": draw(heads * head_dim, hidden),
                f"{prefix}self_attn.k_proj.weight": draw(kv_heads * head_dim, hidden),
                f"{prefix}self_attn.v_proj.weight": draw(kv_heads * head_dim, hidden),
                f"{prefix}self_attn.o_proj.weight": draw(hidden, heads * head_dim),
                f"{prefix}self_attn.q_norm.weight": torch.ones(head_dim),
                f"{prefix}self_attn.k_norm.weight": torch.ones(head_dim),
                f"{prefix}mlp.gate_proj.weight": draw(width, hidden),
                f"{prefix}mlp.up_proj.weight": draw(width, hidden),
                f"{prefix}mlp.down_proj.weight": draw(hidden, width),
            }
        )
    shards[0]["model.embed_tokens.weight"] = draw(50, hidden)
    shards[1]["model.norm.weight"] = torch.ones(hidden)
    for number, shard in enumerate(shards):
        safetensors.save_file(shard, tmp_path / f"model-0000{number}.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_a_checkpoint_serves_its_own_weights(folder: Path) -> None:
    assert has_weights(folder)
    model = load_model(CONFIG, folder=folder, device="cpu")
    with Checkpoint(folder) as tensors:
        assert len(tensors) == 24
        rows = tensors["model.layers.1.self_attn.k_proj.weight"]
        assert torch.equal(model.layers[1].qkv[256:384], rows)
        embeddings = tensors["model.embed_tokens.weight"]
    assert torch.equal(model.head, embeddings)
    assert len(greedy_reference(model, [1, 2, 3], 4)) == 4


def test_the_first_of_several_end_of_sequence_tokens_counts(folder: Path) -> None:
    assert eos_token(folder) == 7
    (folder / "generation_config.json").write_text('{"eos_token_id": 11}')
    assert eos_token(folder) == 11


def test_a_missing_tensor_is_named(folder: Path) -> None:
    (folder / "model-00001.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.layers\.1\.\S+ is missing"):
        load_model(CONFIG, folder=folder, device="cpu")


def test_a_broken_file_is_named(folder: Path) -> None:
    (folder / "model-00001.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=r"model-00001\.safetensors: not a safetensors file"):
        load_model(CONFIG, folder=folder, device="cpu")


@needs.no_cuda
def test_a_gpu_that_is_not_there_is_said_so() -> None:
    with pytest.raises(CalibrationError, match=r"no CUDA GPU .* --device cpu"):
        load_model(CONFIG, device="cuda")


def test_outputs_are_text_where_there_is_a_tokenizer(folder: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason=needs.KERNELS)
    assert decode(folder, [1, 2]) is None
    words = tokenizers.models.WordLevel({"a": 1, "b": 2, "?": 0}, unk_token="?")
    tokenizers.Tokenizer(words).save(str(folder / "tokenizer.json"))
    assert decode(folder, [1, 2]) == "a b"
