"""What a configuration does not say because its code does: biases, norms, gates, windows.

One entry a ``model_type``; what most have in common (Llama's) is the default. Checked against the
parameters that transformers builds of each type's default configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Family:
    """``qkv_bias``, ``o_bias``, ``mlp_bias``: whether, or the key that says so.

    ``norm`` rms (weights), layer (weights and biases) or none, ``norms`` so many a layer;
    ``qk_norm`` none, head (one head's width), full (all heads') or a bias beside either;
    ``qk_norm_key`` the flag it depends on. ``window``: how ``sliding_window`` is meant where no
    list says it: none, all, switched (Qwen: use_sliding_window, from max_window_layers on), or
    alternating, one full layer in ``pattern``. ``shared``: where a shared expert's width is said
    (width, count, or the experts' own). ``parallel``: attention and MLP are added up together.
    """

    qkv_bias: bool | str = "attention_bias"
    o_bias: bool | str = "attention_bias"
    mlp_bias: bool | str = "mlp_bias"
    gated: bool = True
    norm: str = "rms"
    norms: int = 2
    qk_norm: str = ""
    qk_norm_key: str = ""
    window: str = "none"
    pattern: int = 0
    parallel: bool = False
    head_bias: bool | str = False
    router_bias: bool | str = False
    expert_bias: bool = False
    shared_gate: bool = False
    shared: str = "said"
    sinks: bool = False
    output_gate: str = ""  # element or head: what of the attention's output has a gate of its own
    latent: bool = False
    positions: int | None = None  # learned positions: rows beyond max_position_embeddings
    blocks: int = 1  # of attention and MLP in what the configuration counts as a layer
    beside: str = ""  # a dense MLP beside the experts: its width's key, or the flag that says so
    tied: bool = False  # where the configuration does not say


LLAMA = Family()
_PLAIN = Family(qkv_bias=False, o_bias=False, mlp_bias=False)
_MISTRAL = replace(_PLAIN, window="all")
_QWEN2 = replace(_PLAIN, qkv_bias=True, window="switched")
_QWEN3 = Family(mlp_bias=False, qk_norm="head", window="switched")
_GEMMA = Family(mlp_bias=False, tied=True)
_GEMMA3 = replace(_GEMMA, norms=4, qk_norm="head", window="alternating", pattern=6)
_GPT = Family(
    qkv_bias=True, o_bias=True, mlp_bias=True, gated=False, norm="layer", positions=0, tied=True
)
_DEEPSEEK = Family(mlp_bias=False, latent=True, router_bias="noaux_tc")
_GLM = Family(o_bias=False, mlp_bias=False)
_GRANITE_MOE = Family(mlp_bias=False)
_PHI = Family(
    qkv_bias=True, o_bias=True, mlp_bias=True, gated=False, norm="layer", norms=1, parallel=True,
    head_bias=True,
)  # fmt: skip
_QWEN_NEXT = replace(_QWEN3, window="none", output_gate="element", shared_gate=True)
_SINKS = Family(mlp_bias=False, sinks=True)

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": _MISTRAL,
    "mixtral": _MISTRAL,
    "ministral": _MISTRAL,
    "ministral3": _MISTRAL,
    "qwen2": _QWEN2,
    "llava_llama": LLAMA,
    "llava_mistral": _MISTRAL,
    "llava_qwen": _QWEN2,
    "emu3_text_model": LLAMA,
    "mllama_text_model": _PLAIN,
    "nemotron-nas": LLAMA,
    "cosmos3_edge_text": Family(gated=False),
    "aria_text": LLAMA,
    "qwen2_moe": replace(_QWEN2, shared_gate=True),
    "qwen2_vl_text": _QWEN2,
    "qwen2_5_vl_text": _QWEN2,
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3,
    "qwen2_5_omni_text": _QWEN2,
    "qwen3_omni_moe_text": _QWEN3,
    "qwen3_vl_text": _QWEN3,
    "qwen3_vl_moe_text": _QWEN3,
    "qwen3_next": _QWEN_NEXT,
    "qwen3_5_text": _QWEN_NEXT,
    "qwen3_5_moe_text": _QWEN_NEXT,
    "deepseek": Family(mlp_bias=False),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": _DEEPSEEK,
    "deepseek_v4": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "glm_moe_dsa": _DEEPSEEK,
    "glm4_moe_lite": _DEEPSEEK,
    "axk1": _DEEPSEEK,
    "minicpm3": replace(_DEEPSEEK, mlp_bias=False),
    "mistral4": replace(_DEEPSEEK, router_bias=False),
    "longcat_flash": replace(_DEEPSEEK, router_bias=False, blocks=2, beside="ffn_hidden_size"),
    "youtu": _DEEPSEEK,
    "kimi_linear": replace(_DEEPSEEK, router_bias=False),
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA, norms=4, window="alternating", pattern=2),
    "gemma3_text": _GEMMA3,
    "gemma3n_text": replace(_GEMMA3, pattern=5),
    "gemma4_text": _GEMMA3,
    "gemma4_unified_text": _GEMMA3,
    "vaultgemma": replace(_GEMMA, window="alternating", pattern=2),
    "gpt_oss": Family(
        mlp_bias=False, window="alternating", pattern=2, sinks=True, router_bias=True,
        expert_bias=True,
    ),
    "llama4_text": Family(mlp_bias=False, shared="expert"),
    "glm": _GLM,
    "glm4": replace(_GLM, norms=4),
    "glm_ocr_text": replace(_GLM, norms=4),
    "glm4_moe": replace(_GLM, qk_norm="head", qk_norm_key="use_qk_norm", router_bias="noaux_tc"),
    "glm4v_text": replace(_GLM, qkv_bias=True, norms=4),
    "glm4v_moe_text": replace(_GLM, qk_norm="head", qk_norm_key="use_qk_norm"),
    "minimax_m2": replace(
        _PLAIN, qk_norm="full", qk_norm_key="use_qk_norm", router_bias="use_routing_bias"
    ),
    "minimax": _PLAIN,
    "minimax_m1": _PLAIN,
    "minimax_text_01": _PLAIN,
    "minimax_m3_vl_text": replace(_PLAIN, qk_norm="head", router_bias=False),
    "dots1": Family(mlp_bias=False, qk_norm="head", router_bias="noaux_tc"),
    "ernie4_5": Family(qkv_bias="use_bias", o_bias="use_bias", mlp_bias="use_bias", tied=True),
    "ernie4_5_moe": Family(
        qkv_bias="use_bias", o_bias="use_bias", mlp_bias="use_bias", router_bias=True, tied=True
    ),
    "ernie4_5_vl_moe_text": Family(
        qkv_bias="use_bias", o_bias="use_bias", mlp_bias="use_bias", router_bias=True, tied=True
    ),
    "paddleocr_vl_text": Family(
        qkv_bias="use_bias", o_bias="use_bias", mlp_bias="use_bias", tied=True
    ),
    "hunyuan_v1_dense": Family(
        mlp_bias="mlp_bias", qk_norm="head", qk_norm_key="use_qk_norm", tied=True
    ),
    "hunyuan_vl_text": Family(
        mlp_bias="mlp_bias", qk_norm="head", qk_norm_key="use_qk_norm", tied=True
    ),
    "hunyuan_v1_moe": Family(
        mlp_bias="mlp_bias", qk_norm="head", qk_norm_key="use_qk_norm", tied=True
    ),
    "hy_v3": Family(qk_norm="head"),
    "seed_oss": Family(o_bias="attention_out_bias"),
    "smollm3": Family(),
    "granite": LLAMA,
    "granitemoe": _GRANITE_MOE,
    "granitemoeshared": _GRANITE_MOE,
    "granitemoehybrid": _GRANITE_MOE,
    "granite_swa": replace(_SINKS, mlp_bias="mlp_bias"),
    "granitemoe_swa": _SINKS,
    "bamba": Family(),
    "jamba": _PLAIN,
    "falcon_h1": Family(mlp_bias="mlp_bias"),
    "nemotron_h": Family(norms=1, gated=False, router_bias=True),
    "nemotron": Family(gated=False, norm="layer"),
    "mamba": _PLAIN,
    "falcon_mamba": _PLAIN,
    "mamba2": _PLAIN,
    "lfm2": replace(_PLAIN, qk_norm="head", tied=True),
    "lfm2_moe": replace(_PLAIN, qk_norm="head", router_bias="use_expert_bias", tied=True),
    "recurrent_gemma": Family(
        qkv_bias=False, o_bias=True, mlp_bias=True, window="all", tied=True
    ),
    "qwen": Family(qkv_bias=True, o_bias=False, mlp_bias=False),
    "bailing_moe": Family(qkv_bias="use_qkv_bias", o_bias="use_bias", mlp_bias=False),
    "bailing_moe_v2": Family(
        qkv_bias="use_qkv_bias", o_bias="use_bias", mlp_bias=False, qk_norm="head",
        qk_norm_key="use_qk_norm", router_bias="moe_router_enable_expert_bias",
    ),
    "aquila": _PLAIN,
    "xverse": _PLAIN,
    "orion": replace(_PLAIN, norm="layer"),
    "cwm": _MISTRAL,
    "hyperclovax": Family(),
    "internlm": Family(qkv_bias="bias", o_bias="bias", mlp_bias=False),
    "internlm2": Family(qkv_bias="bias", o_bias="bias", mlp_bias=False),
    "internlm3": Family(qkv_bias="qkv_bias", o_bias="bias", mlp_bias="bias"),
    "baichuan": _PLAIN,
    "chatglm": Family(
        qkv_bias="add_qkv_bias", o_bias="add_bias_linear", mlp_bias="add_bias_linear"
    ),
    "minicpm": replace(_PLAIN, tied=True),
    "mimo": replace(_QWEN2, qkv_bias="attention_bias"),
    "mimo_v2_flash": Family(o_bias=False, mlp_bias=False, sinks=False),
    "step3p5": replace(_PLAIN, qk_norm="head"),
    "step3p7": replace(_PLAIN, qk_norm="head"),
    "exaone": _PLAIN,
    "exaone4": replace(_PLAIN, qk_norm="head", window="alternating", pattern=4),
    "exaone4_5_text": replace(_PLAIN, qk_norm="head", window="alternating", pattern=4),
    "exaone_moe": replace(_PLAIN, qk_norm="head", window="alternating", pattern=4),
    "olmo": Family(norm="none", mlp_bias=False),
    "olmo2": Family(qk_norm="full", mlp_bias=False),
    "olmo3": Family(qk_norm="full", mlp_bias=False, window="alternating", pattern=4),
    "olmo_hybrid": Family(qk_norm="full", mlp_bias=False),
    "olmoe": Family(qk_norm="full", mlp_bias=False),
    "flex_olmo": Family(qk_norm="full", mlp_bias=False),
    "cohere": Family(
        norms=1, qk_norm="full", qk_norm_key="use_qk_norm", mlp_bias=False, parallel=True, tied=True
    ),
    "cohere2": Family(
        norms=1, mlp_bias=False, window="alternating", pattern=4, parallel=True, tied=True
    ),
    "cohere2_moe": Family(
        norms=1, mlp_bias=False, window="alternating", pattern=4, parallel=True, tied=True
    ),
    "starcoder2": Family(
        qkv_bias="use_bias", o_bias="use_bias", mlp_bias="use_bias", gated=False, norm="layer",
        window="all", tied=True,
    ),
    "stablelm": Family(qkv_bias="use_qkv_bias", o_bias=False, mlp_bias=False, norm="layer"),
    "phi": _PHI,
    "phi-msft": _PHI,
    "phi3": _MISTRAL,
    "phi3_v": _MISTRAL,
    "phi4mm": replace(_MISTRAL, tied=True),
    "phi4_multimodal": _MISTRAL,
    "phi3small": Family(
        qkv_bias=True, o_bias=True, mlp_bias=True, norm="layer", tied=True
    ),
    "phimoe": Family(norm="layer", mlp_bias=False, window="all", head_bias="lm_head_bias"),
    "gpt2": _GPT,
    "gpt3": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": replace(_GPT, qkv_bias=False),
    "gpt_neox": Family(
        qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias=True, gated=False,
        norm="layer",
    ),
    "gptj": Family(
        qkv_bias=False, o_bias=False, mlp_bias=True, gated=False, norm="layer", norms=1,
        parallel=True, head_bias=True,
    ),
    "codegen": Family(
        qkv_bias=False, o_bias=False, mlp_bias=True, gated=False, norm="layer", norms=1,
        parallel=True, head_bias=True,
    ),
    "bloom": replace(_GPT, positions=None),
    "falcon": Family(
        qkv_bias="bias", o_bias="bias", mlp_bias="bias", gated=False, norm="layer", tied=True
    ),
    "mpt": replace(_PLAIN, gated=False, tied=True),
    "opt": replace(_GPT, qkv_bias="enable_bias", o_bias="enable_bias", mlp_bias="enable_bias",
                   positions=2),
    "xglm": replace(_GPT, positions=None),
    "persimmon": Family(
        qkv_bias=True, o_bias=True, mlp_bias=True, gated=False, norm="layer",
        qk_norm="head bias", qk_norm_key="qk_layernorm",
    ),
    "dbrx": _PLAIN,
    "grok-1": replace(_PLAIN, norms=4, beside="residual_moe", tied=True),
    "afmoe": Family(
        mlp_bias=False, norms=4, qk_norm="head", output_gate="element", router_bias=True
    ),
    "laguna": Family(mlp_bias=False, qk_norm="head", output_gate="head", router_bias=True),
    "mellum": Family(mlp_bias=False, qk_norm="head"),
    "muse_glimmer_text": Family(mlp_bias=False, norms=4, output_gate="element"),
    "arcee": Family(gated=False),
    "apertus": Family(gated=False, qk_norm="head"),
    "helium": Family(),
    "solar_open": Family(mlp_bias=False, router_bias=True),
    "jais2": Family(gated=False, norm="layer"),
    "nanochat": Family(gated=False, norm="none", mlp_bias=False),
    "bitnet": Family(mlp_bias=False),
}  # fmt: skip

# Configurations that wrap a decoder of another type: whose they are where they do not say.
WRAPPED: dict[str, str] = {
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "minimax_m3_vl": "minimax_m3_vl_text",
    "qwen2_5_omni": "qwen2_5_omni_text",
    "qwen2_5_omni_thinker": "qwen2_5_omni_text",
    "qwen3_omni_moe": "qwen3_omni_moe_text",
    "qwen3_omni_moe_thinker": "qwen3_omni_moe_text",
    "qwen2_audio": "qwen2",
    "exaone4_5": "exaone4_5_text",
    "llama4": "llama4_text",
    "mistral3": "mistral",
    "ministral3": "ministral3",
    "pixtral": "mistral",
    "llava": "llama",
    "llava_next": "llama",
    "llava_onevision": "qwen2",
    "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "kimi_k25": "deepseek_v3",
    "kimi_vl": "deepseek_v3",
    "glm4v": "glm4v_text",
    "glm4v_moe": "glm4v_moe_text",
    "internvl": "qwen2",
    "internvl_chat": "qwen2",
    "idefics3": "llama",
    "smolvlm": "llama",
    "paligemma": "gemma",
    "deepseek_vl_v2": "deepseek_v2",
    "cohere2_vision": "cohere2",
    "mllama": "mllama_text_model",
    "emu3": "emu3_text_model",
    "aria": "aria_text",
    "glm_ocr": "glm_ocr_text",
    "paddleocr_vl": "paddleocr_vl_text",
    "ernie4_5_vl_moe": "ernie4_5_vl_moe_text",
    "ernie4_5_moe_vl": "ernie4_5_vl_moe_text",
    "muse_glimmer": "muse_glimmer_text",
    "hunyuan_vl": "hunyuan_vl_text",
    "cosmos3_edge": "cosmos3_edge_text",
    "voxtral": "llama",
    "decilm": "nemotron-nas",
    "deci": "nemotron-nas",
    "gpt-sw3": "gpt2",
    "Yi": "llama",
    "RefinedWeb": "falcon",
    "RefinedWebModel": "falcon",
    "stablelm_epoch": "stablelm",
    "aya_vision": "cohere2",
}

# Wrappers whose versions have decoders of different types, by what `version` says.
VERSIONED: dict[str, dict[str, str]] = {
    "minicpmv": {"2.5": "llama", "2.6": "qwen2", "4.0": "llama", "4.5": "qwen3"},
    "minicpmo": {"2.6": "qwen2", "4.5": "qwen3"},
}

# Types by the class that engines load, where a configuration's own type is unknown or another's
# (Grok-2 calls itself "git").
ARCHITECTURES: dict[str, str] = {
    "DeciLMForCausalLM": "nemotron-nas",
    "Grok1ForCausalLM": "grok-1",
    "Grok1ModelForCausalLM": "grok-1",
}
# Decoders that are not modelled, by what of theirs is not.
NOT_MODELLED: dict[str, str] = {
    **dict.fromkeys(
        ("zamba", "zamba2"), "layers that share one block's weights, each with its own adapter"
    ),
    "jetmoe": "a mixture of attention heads",
    **dict.fromkeys(("rwkv", "rwkv5", "rwkv6", "rwkv7"), "RWKV's time and channel mixing"),
    **dict.fromkeys(("xlstm", "mlstm"), "xLSTM's cells"),
    "reformer": "attention by hashing",
    "axk2": "norms with gates of low rank",
    "hy_v4": "an indexer that layers share beside hyper-connections",
    **dict.fromkeys(("glm5_next", "glm5_next_text"), "an indexer over pooled keys"),
    **dict.fromkeys(
        ("inkling_text", "inkling_mm_model"),
        "convolutions over keys and values and relative logits",
    ),
    "blt": "patches of bytes instead of tokens",
    "moshi": "a decoder of codebooks beside that of text",
    **dict.fromkeys(("step3", "step3_text", "step3_vl"), "queries of low rank beside one key head"),
}
# Types that are no decoder of text, by what they are.
NOT_DECODERS: dict[str, str] = {
    **dict.fromkeys(
        (
            "bert", "roberta", "xlm-roberta", "xlm_roberta", "distilbert", "albert", "deberta",
            "deberta-v2", "electra", "modernbert", "nomic_bert", "new", "mpnet", "camembert",
            "eurobert", "esm", "big_bird", "longformer", "xlm-roberta-xl", "layoutlmv3", "ernie",
            "bert-generation", "megatron-bert", "rembert", "roformer", "xmod", "data2vec-text",
            "roberta-prelayernorm", "roc_bert", "xlm", "xlnet",
        ),
        "an encoder",
    ),
    **dict.fromkeys(
        (
            "t5", "mt5", "umt5", "bart", "mbart", "pegasus", "led", "marian", "m2m_100",
            "switch_transformers", "longt5", "t5gemma", "blenderbot", "fsmt", "nllb-moe", "byt5",
            "plbart", "prophetnet", "encoder-decoder", "florence2", "bigbird_pegasus",
        ),
        "an encoder with a decoder",
    ),
    **dict.fromkeys(
        (
            "whisper", "wav2vec2", "hubert", "seamless_m4t", "seamless_m4t_v2", "speech_to_text",
            "wavlm", "moonshine", "parakeet", "musicgen", "bark", "vits",
        ),
        "a model of speech",
    ),
    **dict.fromkeys(
        (
            "clip", "siglip", "siglip2", "vit", "dinov2", "dinov3_vit", "swin", "beit", "sam",
            "detr", "segformer", "convnext", "blip", "clip_vision_model", "siglip_vision_model",
        ),
        "a model of images",
    ),
}  # fmt: skip
