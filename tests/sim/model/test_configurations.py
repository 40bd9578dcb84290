"""Configurations of models that people serve: counted as transformers counts them, or refused."""

import csv
import json
from functools import cache
from typing import Any

import pytest

from scenarios import library
from sim.model.config import read_config
from sim.model.spec import ModelSpec
from tests import needs

MODELS = needs.SHARED / "models"
recorded = needs.shared("models/parameters.csv")
REFUSED = {
    "bert-base": "BertForMaskedLM fills in masked tokens: not a decoder",
    "no-model-type": "model_type is missing",
    "whisper-large-v3": "'whisper' is a model of speech, not a decoder",
}


@cache
def model(name: str) -> ModelSpec:
    return library.model(str(MODELS / f"{name}.json"))


def listed() -> list[dict[str, str]]:
    with (MODELS / "parameters.csv").open() as file:
        return list(csv.DictReader(file))


@recorded
def test_every_configuration_is_read_or_refused_with_its_reason() -> None:
    for row in listed():
        name = row["model"]
        if name in REFUSED:
            with pytest.raises(ValueError, match=REFUSED[name]) as error:
                model(name)
            assert "\n" not in str(error.value)
        else:
            assert model(name).num_parameters > 0


@recorded
def test_parameters_are_those_that_transformers_builds() -> None:
    counted = [row for row in listed() if row["text_parameters"] and row["model"] not in REFUSED]
    assert len(counted) > 85
    for row in counted:
        found = model(row["model"]).num_parameters
        assert found == pytest.approx(int(row["text_parameters"]), rel=1e-4), row["model"]


@recorded
@pytest.mark.parametrize("name", ["gemma-3-27b", "gemma-4-26b-a4b", "kimi-k2.5", "qwen2.5-vl-7b"])
def test_an_image_tower_is_counted_within_a_tenth(name: str) -> None:
    row = next(row for row in listed() if row["model"] == name)
    assert model(name).vision_parameters == pytest.approx(int(row["vision_parameters"]), rel=0.1)


@recorded
@pytest.mark.parametrize(
    ("name", "gb"),
    [
        ("llama-3.1-70b-instruct-fp8-modelopt", 72.7),  # its folder's hf_quant_config.json says so
        ("gpt-oss-120b.json", 65.2),
        ("llama-3.1-8b-awq.json", 5.7),
    ],
)
def test_weights_take_what_they_take_on_disk(name: str, gb: float) -> None:
    weights = library.model(str(MODELS / name)).weight_bytes()
    assert weights / 1e9 == pytest.approx(gb, rel=0.01)


def test_nvfp4_takes_four_and_a_half_bits() -> None:
    config = json.loads((library.ROOT / "models" / "qwen3-30b-a3b.json").read_text())
    beside = {"quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}
    served = read_config(config, name="nvfp4", quantised=beside)
    tables = 2 * 151936 * 2048
    matrices = served.num_parameters - tables
    assert served.weight_bytes() == pytest.approx(matrices * 4.5 / 8 + 2 * tables, rel=0.002)
    assert served.weight_dtype == "nvfp4"


@recorded
@pytest.mark.parametrize(
    ("name", "a_token", "window", "windows_mib"),
    [
        ("gpt-oss-120b", 36_864, 128, 4.5),
        ("gemma-3-27b", 81_920, 1024, 416),
        ("llama-4-scout", 49_152, 8192, 1152),
    ],
)
def test_windows_are_kept_apart_from_what_grows(
    name: str, a_token: int, window: int, windows_mib: float
) -> None:
    spec = model(name)
    assert spec.kv_bytes_per_token() == a_token
    bounded = [group for group in spec.kv_groups() if group.window is not None]
    assert {group.window for group in bounded} == {window}
    assert sum(group.bytes_at(10**6) for group in bounded) == windows_mib * 2**20
    longer = spec.kv_bytes(window + 1000) - spec.kv_bytes(window)
    assert longer == 1000 * a_token


@recorded
def test_a_state_is_as_large_for_one_token_as_for_many() -> None:
    spec = model("qwen3.5-35b-a3b")
    assert spec.kv_bytes_per_token() == 20_480
    # 32 value heads of 128 x 128 in float32, and three tokens of 8,192 channels, in 30 layers
    assert spec.state_bytes() == 30 * (32 * 128 * 128 * 4 + 8192 * 3 * 2)
    assert spec.kv_bytes(1) == spec.state_bytes() + 20_480


@recorded
def test_a_latent_is_all_that_deepseek_v2_lite_keeps() -> None:
    assert model("deepseek-v2-lite").kv_bytes_per_token() == 31_104


@recorded
def test_layers_are_told_apart_however_a_configuration_says_so() -> None:
    def counts(name: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for layer, number in model(name).kinds.items():
            kind = " + ".join(mixer.kind for mixer in layer.mixers) or "mlp"
            found[kind] = found.get(kind, 0) + number
        return found

    assert counts("gemma-3-27b") == {"sliding": 52, "full": 10}  # a pattern of its class
    assert counts("gpt-oss-120b") == {"sliding": 18, "full": 18}  # layer_types
    assert counts("llama-4-scout") == {"chunked": 36, "full": 12}  # every fourth without rope
    assert counts("nemotron-3-nano") == {"state": 23, "mlp": 23, "full": 6}  # letters
    assert counts("granite-4-h-small") == {"state": 36, "full": 4}
    assert counts("qwen3.5-35b-a3b") == {"linear": 30, "full": 10}
    assert counts("deepseek-v3.2") == {"sparse": 61}
    assert counts("qwen2-7b") == {"full": 28}  # a window that is switched off


@recorded
def test_rope_scaling_sets_the_longest_context() -> None:
    assert model("qwen2.5-7b-yarn").max_position_embeddings == 131_072
    assert model("deepseek-v3").max_position_embeddings == 163_840
    assert model("llama-3.1-8b").max_position_embeddings == 131_072


@recorded
def test_a_checkpoint_says_the_type_of_its_cache() -> None:
    served = library.model(str(MODELS / "llama-3.1-70b-instruct-fp8-modelopt"))
    assert served.kv_bytes_per_token() == 163_840
    assert served.kv_bytes_per_token("bfloat16") == 2 * 163_840


def test_blocks_of_a_quantisation_that_a_degree_cuts_are_refused_with_the_way_out() -> None:
    config = json.loads((library.ROOT / "models" / "qwen3-30b-a3b.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    served = read_config(config, name="fp8")
    served.check_tensor_parallel(2)
    with pytest.raises(ValueError, match=r"blocks of 128 do not divide.*expert_parallel"):
        served.check_tensor_parallel(4)


def test_what_a_window_holds_while_a_prompt_is_computed_is_what_vllm_counts() -> None:
    config = json.loads((library.ROOT / "models" / "llama-3.1-8b.json").read_text())
    config |= {"model_type": "mistral", "sliding_window": 4096, "max_position_embeddings": 32768}
    (group,) = read_config(config, name="mistral").kv_groups()
    assert group.window == 4096
    assert group.most_blocks(24_000, chunk_tokens=8192, block_size=16) == 769


@pytest.mark.parametrize(
    ("architecture", "says"),
    [
        ("LlamaForSequenceClassification", "scores a text"),
        ("Qwen2ForRewardModel", "is a reward model"),
    ],
)
def test_what_does_not_write_text_is_refused_as_such(architecture: str, says: str) -> None:
    config = json.loads((library.ROOT / "models" / "llama-3.1-8b.json").read_text())
    with pytest.raises(ValueError, match=f"{architecture} {says}: not a decoder"):
        read_config({**config, "architectures": [architecture]}, name="judge")


# Parameters that transformers 5.19 builds of each type's default configuration.
BUILT = {
    "apertus": 6_979_596_352,
    "arcee": 4_022_766_080,
    "axk1": 518_983_052_288,
    "bamba": 9_992_765_440,
    "bloom": 16_156_544,
    "cohere": 34_980_831_232,
    "cohere2": 34_980_831_232,
    "cohere2_moe": 190_004_928_512,
    "deepseek_v3": 671_026_404_352,
    "deepseek_v32": 671_877_929_216,
    "ernie4_5": 360_748_032,
    "ernie4_5_moe": 21_825_437_888,
    "exaone4": 9_429_069_824,
    "exaone_moe": 28_550_639_616,
    "falcon": 6_921_720_704,
    "falcon_h1": 8_514_961_408,
    "falcon_mamba": 159_308_544,
    "flex_olmo": 33_270_665_216,
    "gemma": 8_537_680_896,
    "gemma2": 2_614_341_888,
    "gemma3_text": 2_628_658_432,
    "gemma3n_text": 6_835_235_568,
    "gemma4_text": 5_077_177_856,
    "glm": 9_399_951_360,
    "glm4": 9_400_279_040,
    "glm4_moe_lite": 29_943_390_976,
    "glm_moe_dsa": 743_911_199_232,
    "gpt2": 124_439_808,
    "gpt_bigcode": 111_446_784,
    "gpt_neo": 1_315_575_808,
    "gpt_neox": 20_554_567_680,
    "gpt_oss": 116_829_156_672,
    "gptj": 6_050_882_784,
    "granite": 6_738_415_616,
    "granitemoe": 37_039_116_288,
    "granitemoehybrid": 38_601_064_448,
    "granitemoeshared": 37_039_116_288,
    "helium": 2_172_643_840,
    "hy_v3": 295_033_528_320,
    "jamba": 51_570_323_328,
    "lfm2": 2_705_497_600,
    "llama": 6_738_415_616,
    "llama4_text": 107_769_861_120,
    "mamba": 159_308_544,
    "mamba2": 7_285_403_648,
    "minimax": 47_373_946_880,
    "minimax_m2": 228_689_748_992,
    "ministral3": 8_489_553_920,
    "mistral": 7_241_732_096,
    "mixtral": 46_702_792_704,
    "mpt": 1_311_213_568,
    "nanochat": 256_573_440,
    "olmo": 6_888_095_744,
    "olmo2": 6_888_624_128,
    "olmo3": 6_888_624_128,
    "olmoe": 13_361_612_800,
    "opt": 125_239_296,
    "persimmon": 9_397_175_296,
    "phi": 1_418_270_720,
    "phi3": 3_821_079_552,
    "phimoe": 41_872_793_600,
    "qwen2": 12_049_846_272,
    "qwen2_moe": 14_315_784_192,
    "qwen3": 12_049_461_248,
    "qwen3_5_moe_text": 34_660_610_688,
    "qwen3_5_text": 8_953_803_264,
    "qwen3_moe": 15_350_731_776,
    "qwen3_next": 79_674_391_296,
    "recurrent_gemma": 2_010_263_040,
    "seed_oss": 28_921_040_896,
    "smollm3": 3_075_098_624,
    "solar_open": 102_651_793_408,
    "stablelm": 2_795_443_200,
    "starcoder2": 3_030_371_328,
    "vaultgemma": 2_614_222_080,
    "xglm": 564_463_616,
    "youtu": 1_961_560_064,
    "bitnet": 2_741_155_840,
    "jais2": 8_090_401_280,
    "minimax_m3_vl_text": 447_186_441_216,
    "codegen": 6_050_882_784,
    "gemma4_unified_text": 3_010_758_400,
    "cwm": 32_581_097_472,
    "afmoe": 19_232_600_000,
    "aria_text": 18_517_069_824,
    "emu3_text_model": 8_492_011_520,
    "glm_ocr_text": 373_359_616,
    "granite_swa": 2_144_463_840,
    "granitemoe_swa": 37_039_117_312,
    "laguna": 33_189_975_808,
    "mellum": 12_149_923_072,
    "mistral4": 118_972_826_624,
    "mllama_text_model": 9_775_192_080,
    "muse_glimmer_text": 27_854_780_928,
    "olmo_hybrid": 7_430_870_688,
    "paddleocr_vl_text": 360_748_032,
}


@pytest.mark.parametrize(("kind", "parameters"), BUILT.items())
def test_a_nested_configuration_takes_what_it_leaves_out_from_its_class(
    kind: str, parameters: int
) -> None:
    nested: dict[str, Any] = {"model_type": "wrapper", "text_config": {"model_type": kind}}
    assert read_config(nested, name=kind).num_parameters == pytest.approx(parameters, rel=1e-5)


NEMOTRON: dict[str, Any] = {
    "model_type": "nemotron-nas", "architectures": ["DeciLMForCausalLM"], "hidden_size": 8192,
    "num_hidden_layers": 4, "num_attention_heads": 64, "num_key_value_heads": None,
    "intermediate_size": None, "vocab_size": 128256, "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    "block_configs": [
        {"attention": {"n_heads_in_group": 8, "no_op": False}, "ffn": {"ffn_mult": 5.25}},
        {"attention": {"n_heads_in_group": 16, "no_op": False}, "ffn": {"ffn_mult": 1.3125}},
        {"attention": {"n_heads_in_group": None, "no_op": True}, "ffn": {"ffn_mult": 0.5}},
        {"attention": {"n_heads_in_group": 8, "no_op": False}, "ffn": {"no_op": True}},
    ],
}  # fmt: skip


def test_blocks_that_a_search_chose_have_heads_and_widths_of_their_own() -> None:
    spec = read_config(NEMOTRON, name="nas")
    # keys and values of 8, 4 and 8 heads of 128; the third layer has no attention
    assert spec.kv_bytes_per_token() == (8 + 4 + 8) * 128 * 2 * 2
    widths = [layer.dense_width for layer, _ in spec.runs]
    assert widths == [28_672, 7_168, 2_816, 0]  # rounded up to 256s
    hidden, attention = 8192, [2 * 8192**2 + 2 * 8192 * kv * 128 for kv in (8, 4, 8)]
    matrices = sum(attention) + 3 * hidden * sum(widths)
    norms = 2 * 4 * hidden + hidden
    assert spec.num_parameters == pytest.approx(matrices + norms + 2 * 128256 * hidden, rel=1e-5)


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"attention": {"n_heads_in_group": 8}}, "block_configs must each have attention and ffn"),
        (
            {"attention": {"replace_with_linear": True}, "ffn": {"ffn_mult": 1}},
            "block_configs with replace_with_linear are not modelled",
        ),
        ({"attention": {"n_heads_in_group": 7}, "ffn": {}}, "n_heads_in_group 7 does not divide"),
        (
            {"attention": {"n_heads_in_group": 8}, "ffn": {"ffn_mult": -1}},
            "a multiple of the width must be positive, not -1",
        ),
    ],
)
def test_a_block_that_is_not_understood_is_refused(block: dict[str, Any], says: str) -> None:
    blocks = [block, *NEMOTRON["block_configs"][1:]]
    with pytest.raises(ValueError, match=says):
        read_config({**NEMOTRON, "block_configs": blocks}, name="nas")


def test_heads_listed_by_layer_are_those_of_each() -> None:
    listed = [48, 64] * 20
    wide = {"model_type": "laguna", "num_attention_heads_per_layer": listed}
    nested = {"model_type": "wrapper", "text_config": wide}
    plain = {"model_type": "wrapper", "text_config": {"model_type": "laguna"}}
    more = read_config(nested, name="wide").num_parameters
    # queries, outputs and a gate a head
    each = 16 * (2 * 2048 * 128 + 2048)
    assert more - read_config(plain, name="plain").num_parameters == 20 * each


def test_longcat_has_two_attentions_a_layer_and_experts_that_do_nothing() -> None:
    nested = {"model_type": "wrapper", "text_config": {"model_type": "longcat_flash"}}
    spec = read_config(nested, name="longcat")
    assert spec.num_parameters == pytest.approx(560e9, rel=0.005)  # published, as the next
    assert spec.num_activated_parameters == pytest.approx(27e9, rel=0.05)
    assert spec.kv_bytes_per_token() == 56 * (512 + 64) * 2
    moe = next(layer.moe for layer in spec.kinds if layer.moe is not None)
    assert (moe.num_experts, moe.experts_per_token) == (512, 8)  # of 12 choices from 768


def test_layers_that_see_images_alone_keep_nothing_of_a_text() -> None:
    nested = {"model_type": "mllama", "text_config": {"model_type": "mllama_text_model"}}
    spec = read_config(nested, name="vision")
    assert spec.kv_bytes_per_token() == 32 * 2 * 8 * 128 * 2  # of 40 layers


def test_grok_2_goes_by_its_class_for_its_type_is_anothers() -> None:
    grok: dict[str, Any] = {
        "model_type": "git", "architectures": ["Grok1ForCausalLM"], "hidden_size": 8192,
        "intermediate_size": 32768, "moe_intermediate_size": 16384, "num_hidden_layers": 64,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
        "num_local_experts": 8, "num_experts_per_tok": 2, "residual_moe": True,
        "vocab_size": 131072, "max_position_embeddings": 131072, "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }  # fmt: skip
    spec = read_config(grok, name="grok-2")
    assert spec.num_parameters == pytest.approx(270e9, rel=0.01)  # published
    assert spec.num_activated_parameters == pytest.approx(115e9, rel=0.02)


@pytest.mark.parametrize("kind", ["zamba2", "jetmoe", "rwkv", "hy_v4", "step3_text"])
def test_a_decoder_that_is_not_modelled_is_refused_with_what_is_not(kind: str) -> None:
    with pytest.raises(ValueError, match=f"model_type '{kind}' has .*: not modelled") as error:
        read_config({"model_type": kind, "hidden_size": 8}, name="odd")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("version", "kind"), [(2.6, "qwen2"), ("4.5", "qwen3")])
def test_a_wrapper_without_a_section_goes_by_its_version(version: Any, kind: str) -> None:
    config = json.loads(
        (library.ROOT / "models" / f"{kind}-{'7b' if kind == 'qwen2' else '8b'}.json").read_text()
    )
    wrapped = read_config({**config, "model_type": "minicpmv", "version": version}, name="v")
    assert wrapped.model_type == kind
    assert wrapped.num_parameters == read_config(config, name="v").num_parameters
    with pytest.raises(ValueError, match="unknown model_type 'minicpmv'"):
        read_config({**config, "model_type": "minicpmv", "version": 9}, name="v")


def test_towers_of_sound_and_adapters_are_told_to_be_missing_in_the_weights() -> None:
    config = json.loads((library.ROOT / "models" / "llama-3.2-3b.json").read_text())
    heard = {"model_type": "voxtral", "text_config": config, "audio_config": {"hidden_size": 1280}}
    assert "audio towers are not counted" in read_config(heard, name="v").notes[0]
    tuned = {**config, "vision_lora": {"r": 256}, "audio_processor": {}}
    assert "audio towers and adapters are not" in read_config(tuned, name="v").notes[0]
    assert read_config(config, name="v").notes == ()


def test_a_list_that_is_none_is_refused_in_one_line() -> None:
    bad = {
        "model_type": "kimi_linear",
        "linear_attn_config": {"kda_layers": "x"},
        "hidden_size": 64,
    }
    with pytest.raises(ValueError, match="kda_layers must be a list, not 'x'"):
        read_config({**bad, "num_hidden_layers": 2}, name="bad")
