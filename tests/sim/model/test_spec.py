"""Parameter counts, KV bytes and tensor-parallel shares against published figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from scenarios import library
from sim.model.config import MODEL_TYPES, read_config
from sim.model.spec import ModelSpec

MODELS = Path(__file__).parents[3] / "scenarios" / "models"


def config(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MODELS / f"{name}.json").read_text())
    return loaded


def load(name: str, **changes: Any) -> ModelSpec:
    return read_config({**config(name), **changes}, name=name)


# Exact where the checkpoint's tensors have been counted in public, else the published rounding.
EXACT = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-68m": 68_030_208,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "opt-13b": 12_853_473_280,
    "tiny": 3410176,
    "deepseek-v3": 671_026_419_200,
    # 12 l h^2 + 13 l h + (vocabulary + positions) h + 2 h with l = 96, h = 12,288
    "gpt-3-175b": 12 * 96 * 12288**2 + 13 * 96 * 12288 + (50257 + 2048 + 2) * 12288,
    # as transformers builds them, or the tensors that the checkpoint's card counts
    "codellama-34b": 33_743_970_304,
    "codestral-mamba-7b": 7_285_403_648,
    "command-r": 34_980_831_232,
    "command-r-plus": 103_810_674_688,
    "dbrx": 131_596_523_520,
    "deepseek-v2-lite": 15_748_993_024,
    "deepseek-v3.2": 671_877_944_064,
    "deepseek-v4-flash": 284_332_241_239,
    "ernie-4.5-21b-a3b": 21_825_437_888,
    "falcon-7b": 6_921_720_704,
    "gemma-2-27b": 27_227_128_320,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2b": 2_506_172_416,
    "gemma-3-12b": 11_766_034_176,
    "gemma-3-27b": 27_009_346_304,
    "gemma-3-4b": 3_880_263_168,
    "gemma-4-26b-a4b": 25_233_141_760,
    "glm-4.5": 352_797_829_024,
    "glm-4.5-air": 106_852_251_264,
    "glm-4.6": 352_797_829_024,
    "glm-5": 743_911_218_432,
    "gpt-oss-120b": 116_829_156_672,
    "gpt-oss-20b": 20_914_757_184,
    "gpt2": 124_439_808,
    "granite-4-h-small": 32_207_337_984,
    "internlm2-7b": 7_737_708_544,
    "kimi-k2": 1_026_408_232_448,
    "kimi-k2.5": 1_026_408_232_448,
    "llama-3-70b": 70_553_706_496,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-405b-fp8": 405_853_388_800,
    "llama-3.1-70b-fp8": 70_553_706_496,
    "llama-4-maverick": 400_711_848_960,
    "llama-4-scout": 107_769_861_120,
    "minimax-m2.5": 228_689_764_864,
    "ministral-3-3b": 3_429_006_336,
    "ministral-8b": 8_019_808_256,
    "mistral-7b": 7_248_023_552,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-large-2407": 122_610_069_504,
    "mistral-nemo": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
    "mixtral-8x22b": 140_630_071_296,
    "moonlight-16b-a3b": 16_002_619_008,
    "nemotron-3-nano": 31_577_940_288,
    "olmo-2-7b": 7_298_617_344,
    "phi-2": 2_779_683_840,
    "phi-3.5-mini": 3_821_079_552,
    "phi-3.5-moe": 41_873_153_344,
    "phi-4": 14_659_507_200,
    "qwen2-7b": 7_615_616_512,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-72b": 72_706_203_648,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-vl-7b": 7_615_616_512,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-14b": 14_768_307_200,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-235b-a22b-2507": 235_093_634_560,
    "qwen3-235b-a22b-fp8": 235_093_634_560,
    "qwen3-235b-a22b-nvfp4": 235_093_634_560,
    "qwen3-30b-a3b-2507": 30_532_122_624,
    "qwen3-30b-a3b-fp8": 30_532_122_624,
    "qwen3-32b-fp8": 32_762_123_264,
    "qwen3-4b": 4_022_468_096,
    "qwen3-coder-480b-a35b": 480_154_875_392,
    "qwen3-next-80b-a3b": 79_674_391_296,
    "qwen3.5-35b-a3b": 34_660_610_688,
    "qwq-32b": 32_763_876_352,
    "smollm2-360m": 361_821_120,
    "starcoder2-7b": 7_173_923_840,
    "tinyllama-1.1b": 1_100_048_384,
    "yi-34b": 34_388_917_248,
}


@pytest.mark.parametrize(("name", "parameters"), EXACT.items())
def test_parameter_count_is_the_published_one(name: str, parameters: int) -> None:
    assert load(name).num_parameters == parameters


def test_every_library_model_is_counted() -> None:
    assert {path.stem for path in MODELS.glob("*.json")} == set(EXACT)


@pytest.mark.parametrize(
    ("name", "published"),
    [("qwen3-30b-a3b", 3.3e9), ("mixtral-8x7b", 12.9e9), ("deepseek-v3", 37e9)],
)
def test_activated_parameters_are_the_published_ones(name: str, published: float) -> None:
    assert load(name).num_activated_parameters == pytest.approx(published, rel=0.02)


def test_dense_model_activates_everything() -> None:
    model = load("llama-3.1-8b")
    assert model.num_activated_parameters == model.num_parameters


def test_half_precision_weights_take_two_bytes_a_parameter() -> None:
    model = load("llama-3.1-8b")
    assert model.weight_bytes() == 2 * model.num_parameters


def test_float8_weights_take_one_byte_but_embeddings_norms_and_routers_two() -> None:
    model = load("deepseek-v3")
    high_precision = 2 * 129280 * 7168  # embedding and head
    assert (
        model.num_parameters
        < model.weight_bytes()
        < 1.001 * (model.num_parameters + high_precision)
    )
    assert load("deepseek-v3", quantization_config=None).weight_bytes() == 2 * model.num_parameters


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        ("llama-3.1-8b", 131_072),
        ("opt-13b", 819_200),  # "about 0.8 MB a token" (PagedAttention paper)
        ("llama-2-70b", 327_680),
        ("gpt-3-175b", 4_718_592),
        ("deepseek-v3", 61 * 576 * 2),
    ],
)
def test_kv_bytes_per_token(name: str, bytes_per_token: int) -> None:
    model = load(name)
    assert model.kv_bytes_per_token() == bytes_per_token
    assert model.kv_bytes_per_token("fp8") == bytes_per_token // 2


def test_kv_heads_are_split_then_replicated() -> None:
    model = load("llama-3.1-8b")  # 8 key/value heads
    assert model.kv_bytes_per_token(tensor_parallel=8) == 131_072 // 8
    assert model.kv_bytes_per_token(tensor_parallel=16) == 131_072 // 8


def test_the_latent_cache_is_whole_on_every_gpu() -> None:
    model = load("deepseek-v3")
    assert model.kv_bytes_per_token(tensor_parallel=8) == model.kv_bytes_per_token()


def test_unknown_kv_cache_dtype_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match=r"'int3'; allowed: auto, bfloat16"):
        load("llama-3.1-8b").kv_bytes_per_token("int3")


@pytest.mark.parametrize("tensor_parallel", [2, 8])
def test_shares_exceed_the_whole_only_by_what_is_replicated(tensor_parallel: int) -> None:
    model = load("llama-3.1-8b")
    norms = 2 * (2 * 32 + 1) * 4096
    split = model.weight_bytes() - norms
    assert model.weight_bytes(tensor_parallel) == split // tensor_parallel + norms


def test_key_and_value_projections_are_replicated_beyond_their_heads() -> None:
    model = load("llama-3.1-8b")
    qkv8, qkv16 = (model.linear_operations(tp)[0].out_features for tp in (8, 16))
    assert qkv8 == (4 + 2) * 128
    assert qkv16 == (2 + 2) * 128


@pytest.mark.parametrize(
    ("name", "tensor_parallel", "says"),
    [
        ("llama-3.1-8b", 3, "does not divide its 32 attention heads"),
        ("gpt-3-175b", 10, "does not divide its 96 attention heads"),
        ("llama-3.1-8b", 0, "at least 1"),
        ("qwen3-30b-a3b", 3, "attention heads"),
    ],
)
def test_impossible_split_is_refused(name: str, tensor_parallel: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load(name).check_tensor_parallel(tensor_parallel)


def test_kv_heads_that_neither_divide_nor_multiply_are_refused() -> None:
    model = load("llama-3.1-8b", num_attention_heads=24, num_key_value_heads=6, head_dim=128)
    with pytest.raises(ValueError, match="6 key/value heads"):
        model.check_tensor_parallel(4)


def test_mlp_width_that_does_not_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"intermediate_size of 4099"):
        load("llama-3.1-8b", intermediate_size=4099).check_tensor_parallel(2)


def test_linear_operations_of_a_gated_model() -> None:
    operations = {op.name: op for op in load("llama-3.1-8b").linear_operations(2)}
    shapes = {name: (op.in_features, op.out_features, op.count) for name, op in operations.items()}
    assert shapes == {
        "qkv_proj": (4096, 3072, 32),
        "o_proj": (2048, 4096, 32),
        "gate_up_proj": (4096, 14336, 32),
        "down_proj": (7168, 4096, 32),
    }
    op = operations["qkv_proj"]
    assert op.flops(7) == 2 * 7 * 4096 * 3072 * 32
    assert op.bytes_moved(7) == 32 * 2 * (4096 * 3072 + 7 * (4096 + 3072))


def test_first_layers_of_deepseek_are_dense_and_the_rest_have_a_shared_expert() -> None:
    model = load("deepseek-v3")
    counts = {op.name: op.count for op in model.linear_operations()}
    assert counts["gate_up_proj"] == 3
    assert counts["shared_gate_up"] == counts["router"] == 58
    assert model.expert_operations()[0].count == 58 * 256


def test_qwen3_moe_sparse_step_and_dense_layers_are_heeded() -> None:
    model = load("qwen3-30b-a3b", decoder_sparse_step=2, mlp_only_layers=[1, 2])
    assert model.moe is not None
    assert model.moe.num_layers == 23  # the 24 odd ones but layer 1
    assert model.num_dense_layers == 25


def test_qwen2_has_biases_on_its_query_key_and_value_only() -> None:
    model = load("llama-3.1-8b", model_type="qwen2")
    assert model.num_parameters == 8_030_261_248 + 32 * (32 + 8 + 8) * 128


def test_mistral_without_head_dim_derives_it() -> None:
    assert load("llama-3.1-8b", model_type="mistral", head_dim=None).head_dim == 128


def test_float32_checkpoint_is_served_in_sixteen_bits() -> None:
    assert load("opt-13b", torch_dtype=None).weight_bytes() == load("opt-13b").weight_bytes()


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("llama-3.1-8b", {"model_type": "lama"}, "unknown model_type 'lama'; understood: "),
        ("llama-3.1-8b", {"model_type": None}, "model_type is missing; understood"),
        ("llama-3.1-8b", {"hidden_size": None}, "config key hidden_size is missing"),
        ("llama-3.1-8b", {"hidden_size": "4096"}, "hidden_size must be an integer >= 1"),
        ("llama-3.1-8b", {"vocab_size": -1}, "vocab_size must be an integer"),
        ("llama-3.1-8b", {"num_hidden_layers": True}, "num_hidden_layers must be an integer"),
        ("llama-3.1-8b", {"num_key_value_heads": 5}, "num_key_value_heads 5 does not divide"),
        ("llama-3.1-8b", {"hidden_size": 4097}, "does not divide hidden_size 4097"),
        ("llama-3.1-8b", {"tie_word_embeddings": "no"}, "must be true or false"),
        ("llama-3.1-8b", {"torch_dtype": "int7"}, "torch_dtype 'int7' is not understood"),
        ("llama-3.1-8b", {"model_type": "bert"}, "'bert' is an encoder, not a decoder"),
        ("llama-3.1-8b", {"quantization_config": {"quant_method": "aqlm"}}, "'aqlm' is not unde"),
        ("mixtral-8x7b", {"num_experts_per_tok": 9}, "exceeds 8 experts"),
        ("qwen3-30b-a3b", {"mlp_only_layers": 3}, "must be a list"),
        ("opt-13b", {"word_embed_proj_dim": 512}, "must equal hidden_size 5120"),
    ],
)
def test_bad_config_is_refused_in_one_clear_line(
    name: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says) as error:
        load(name, **changes)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(name)


def test_error_lists_every_model_type() -> None:
    with pytest.raises(ValueError, match="unknown model_type") as error:
        load("llama-3.1-8b", model_type="lama")
    assert all(model_type in str(error.value) for model_type in MODEL_TYPES)


# -- quantised weights ----------------------------------------------------------------------------


def test_int4_weights_take_four_bits_and_a_scale_a_group() -> None:
    operation = load("llama-3.1-8b").quantised("int4").linear_operations()[0]
    weights = 4096 * 6144
    assert operation.weight_bytes == 32 * (weights // 2 + weights // 128 * 2)
    assert operation.weight_bytes / 32 / weights == 4.125 / 8


def test_embeddings_head_and_routers_keep_sixteen_bits() -> None:
    model = load("qwen3-30b-a3b").quantised("int4")
    kinds = {op.name: op.weight_dtype for op in model.linear_operations()}
    assert kinds["router"] == model.logits_operation().weight_dtype == "bfloat16"
    assert kinds["qkv_proj"] == model.expert_operations()[0].weight_dtype == "int4"


def test_an_eight_bit_checkpoint_can_be_served_in_sixteen() -> None:
    model = load("deepseek-v3").quantised("bf16")
    assert model.weight_bytes() == 2 * model.num_parameters


def test_an_unknown_weight_type_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match=r"'int3'; allowed: bf16, fp16, fp8, int4"):
        load("llama-3.1-8b").quantised("int3")


@pytest.mark.parametrize(
    ("name", "normed"),
    [
        ("qwen3-32b", True),
        ("llama-3.1-70b", False),
        ("gpt-oss-120b", False),
        ("deepseek-v3", False),
    ],
)
def test_models_that_normalise_queries_and_keys_are_known(name: str, normed: bool) -> None:
    assert library.model(name).norms_heads is normed
