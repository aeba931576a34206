"""Models and settings that this program does not support, and the error for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mistral.errors import InputError
from mistral.text import shown

LATENT = "multi-head latent attention (as in Mistral Small 4, Large 3 and Leanstral)"
SHARED = "experts that all tokens share (as in Mistral Small 4, Large 3 and Leanstral)"
STATES = "a state space model (as Codestral Mamba), which has no attention"
STEERED = "a decoder that is steered by the time of its audio (as in Voxtral Realtime)"
# Keys that change the arithmetic in unsupported ways, with their meaning: refused unless absent, null or false.
UNSUPPORTED = {
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), LATENT),
    **dict.fromkeys(("num_shared_experts", "n_shared_experts"), SHARED),
    **dict.fromkeys(("mamba", "ssm"), STATES),
    **dict.fromkeys(("ada_rms_norm_t_cond", "ada_rms_norm_t_cond_dim"), STEERED),
    **dict.fromkeys(("qk_norm", "use_qk_norm"), "queries and keys that are normalised"),
    "logit_soft_cap": "logits that are capped",
    **dict.fromkeys(("use_bias", "attention_bias"), "biases"),
}
# Kinds of models by their model_type, or by their class in `architectures`
OTHER_KINDS = {
    **dict.fromkeys(
        ("mistral4", "Mistral4ForCausalLM"),
        "is Mistral Small 4 or Leanstral, which have multi-head latent attention and experts that all tokens share",
    ),
    **dict.fromkeys(
        ("mistral_large3", "MistralLarge3ForCausalLM", "deepseek_v3", "DeepseekV3ForCausalLM"),
        "is of the kind of Mistral Large 3, which has multi-head latent attention and experts that all tokens share",
    ),
    **dict.fromkeys(
        ("mistral_large4", "mistral_large4_text", "MistralLarge4ForCausalLM", "MistralLarge4ForConditionalGeneration"),
        "is Mistral Large 4, which has latent attention over chosen tokens and experts that all tokens share",
    ),
    **dict.fromkeys(
        ("mamba", "mamba2", "MambaForCausalLM", "Mamba2ForCausalLM"), "is a state space model, as Codestral Mamba"
    ),
    **dict.fromkeys(
        ("voxtral_realtime", "voxtral_realtime_text", "VoxtralRealtimeForConditionalGeneration"),
        "is Voxtral Realtime, whose decoder reads audio as it comes and is steered by its time",
    ),
    **dict.fromkeys(
        ("voxtral_tts", "VoxtralTTSForConditionalGeneration", "VoxtralTTSAudioGenerationForConditionalGeneration"),
        "is Voxtral TTS, which writes sound and not text",
    ),
}
FLOAT8_FORMAT = "fp8_e4m3"  # as official files call 8-bit floats
METHODS = {
    "compressed-tensors": "compressed-tensors", "awq": "AWQ", "gptq": "GPTQ", "bitsandbytes": "bitsandbytes",
    "nvfp4": "NVFP4", "modelopt": "ModelOpt (NVFP4 or FP8)", "fbgemm_fp8": "FBGEMM FP8", "mxfp4": "MXFP4",
}  # fmt: skip


def refuse_kind(name: str, value: object, source: str) -> None:
    """Raise InputError for a kind of model, the value of the key `name`, that is known to be unsupported."""
    if isinstance(value, str) and value in OTHER_KINDS:
        raise InputError(f"{source}: {name} {shown(value)} {OTHER_KINDS[value]}; that is not supported")


def refuse_sound(table: Mapping[str, Any], source: str) -> None:
    """Raise InputError if `multimodal` is that of a model that generates audio, or reads it in real time."""
    if {"audio_model_args", "audio_tokenizer_args"} & table.keys():
        raise InputError(f"{source}: multimodal {OTHER_KINDS['voxtral_tts']}; that is not supported")
    whisper = table.get("whisper_model_args")
    encoder = whisper.get("encoder_args") if isinstance(whisper, Mapping) else None
    if isinstance(encoder, Mapping) and encoder.get("causal"):
        raise InputError(f"{source}: multimodal {OTHER_KINDS['voxtral_realtime']}; that is not supported")


def check_official_quantization(table: Mapping[str, Any], source: str) -> None:
    """Raise InputError unless `quantization` of an official file is FP8 with one scale for each tensor."""
    format, scheme = table.get("qformat_weight"), table.get("qscheme_act", "TENSOR")
    if format != FLOAT8_FORMAT:
        raise refusal(f"{source}: quantization", f"weights of the format {shown(format)}")
    if scheme not in ("TENSOR", None):
        raise refusal(f"{source}: quantization", f"FP8 with scales by {shown(scheme)}")


def check_quantization_config(table: object, source: str) -> None:
    """Raise InputError unless `quantization_config` is absent or FP8 with one scale for each tensor."""
    if table in (None, False):
        return
    name = f"{source}: quantization_config"
    if not isinstance(table, Mapping):
        raise InputError(f"{name} must be a table, not {shown(table)}")
    method = table.get("quant_method")
    if method != "fp8":
        named = METHODS.get(method.lower()) if isinstance(method, str) else None
        of = "an unknown method" if method is None else named or shown(method)
        raise refusal(name, f"weights of {of}{packed(table)}")
    if table.get("weight_block_size") is not None:
        raise refusal(name, "FP8 with a scale for each block (weight_block_size)")


def packed(table: Mapping[str, Any]) -> str:
    """The end of a format's name: details of its numbers, if its table has them."""
    format = table.get("format")
    words = str(format).lower() if isinstance(format, str) else ""
    groups = table.get("config_groups")
    block = isinstance(groups, Mapping) and any("block" in str(name).lower() for name in groups)
    return " (NVFP4)" if "nvfp4" in words else " (FP8 in blocks)" if block else ""


def refusal(name: str, what: str) -> InputError:
    """The error for weights in an unsupported quantization format."""
    return InputError(
        f"{name}: {what} are not read; download the original weights, in a -BF16 repository where the model has one"
        if what.startswith("weights")
        else f"{name}: {what} is not read; download the original weights, in a -BF16 repository where the model has one"
    )
