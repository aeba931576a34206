"""The architecture in a Hugging Face `config.json`: the meaning of keys, and the defaults of each class.

The classes are those of transformers that compute this decoder: Mistral, Mixtral, Ministral, Ministral 3, and Llama
with neither biases nor a window. A model that reads images or audio too has its decoder's config inside, as
`text_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mistral.checkpoint.keys import MAX_LAYERS, Keys
from mistral.checkpoint.rotary_keys import rotary
from mistral.checkpoint.unsupported import UNSUPPORTED, check_quantization_config, refuse_kind
from mistral.errors import InputError
from mistral.model.args import ModelArgs, MoeArgs
from mistral.text import shown

# Keys that do not change the arithmetic are accepted silently. Other unknown keys are accepted with one warning.
HARMLESS_CONFIG = frozenset(
    {
        "_name_or_path", "architectures", "attention_dropout", "attn_implementation", "bos_token_id", "dtype",
        "eos_token_id", "hidden_act", "initializer_range", "is_composition",
        "is_llama_config", "model_type", "output_router_logits",
        "pad_token_id", "pretraining_tp", "router_aux_loss_coef", "router_jitter_noise", "torch_dtype",
        "transformers.js_config", "transformers_version", "unsloth_version", "unsloth_fixed", "use_cache",
    }
)  # fmt: skip
# Keys of a multimodal model besides its decoder's config. Its tie_word_embeddings is not the decoder's.
HARMLESS_OUTSIDE = HARMLESS_CONFIG | {
    "audio_config", "audio_token_id", "hidden_size", "ignore_index", "image_seq_length", "image_token_id",
    "image_token_index", "multimodal_projector_bias", "projector_hidden_act", "quantization_config",
    "spatial_merge_size", "text_config", "tie_word_embeddings", "vision_config", "vision_feature_layer",
    "vision_feature_select_strategy", "vocab_size",
}  # fmt: skip
# Keys of such a file that are refused unless absent, null or false, like those of UNSUPPORTED.
UNSUPPORTED_CONFIG = UNSUPPORTED | dict.fromkeys(
    ("mlp_bias", "multimodal", "n_routed_experts", "quantization", "rope_interleaved", "text_config", "vision_config",
     "vision_encoder", "yarn"), ""
)  # fmt: skip
ACTIVATIONS = ("silu", "swish")  # two names of one function


@dataclass(frozen=True)
class ConfigClass:
    """The defaults of a class of transformers for absent keys.

    `n_kv_heads` None means as many as heads, `window` None no window, `head_dim` None dim / n_heads; None for another
    number means that the key is required. `windowed`: the class uses sliding_window. `rope`: its rope_parameters.
    """

    dim: int | None = 4096
    n_layers: int | None = 32
    n_heads: int | None = 32
    hidden_dim: int | None = 14336
    vocab_size: int | None = 32000
    n_kv_heads: int | None = 8
    max_seq_len: int = 131072
    norm_eps: float = 1e-6
    rope_theta: float = 1e4
    window: int | None = 4096
    windowed: bool = True
    experts: int = 0
    head_dim: int | None = None
    rope: Mapping[str, Any] | None = field(default=None, hash=False)


ENCODERS = (
    "albert", "bert", "camembert", "deberta", "distilbert", "electra", "modernbert", "mpnet", "nomic_bert", "nomicbert",
    "roberta", "xlm-roberta", "xlmroberta",
)  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16384, "beta_fast": 32.0, "beta_slow": 1.0,
    "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
CLASSES = {
    "mistral": ConfigClass(),
    "mixtral": ConfigClass(norm_eps=1e-5, rope_theta=1e6, window=None, experts=8),
    "ministral": ConfigClass(),
    "ministral3": ConfigClass(
        n_layers=34,
        vocab_size=131072,
        max_seq_len=262144,
        norm_eps=1e-5,
        rope_theta=1e6,
        window=None,
        head_dim=128,
        rope=YARN,
    ),
    "llama": ConfigClass(hidden_dim=11008, n_kv_heads=None, max_seq_len=2048, window=None, windowed=False),
}


@dataclass(frozen=True)
class Wrapper:
    """A multimodal class: what its encoder reads, and the default config of its decoder.

    `architecture` is the name of the class in `architectures`.
    """

    architecture: str
    tower: str
    text: Mapping[str, Any]


VOXTRAL_TEXT = {
    "model_type": "llama", "vocab_size": 131072, "hidden_size": 3072, "intermediate_size": 8192,
    "num_hidden_layers": 30, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "rope_theta": 1e8, "head_dim": 128,
}  # fmt: skip
WRAPPERS = {
    "mistral3": Wrapper("Mistral3ForConditionalGeneration", "images", {"model_type": "mistral"}),
    "llava": Wrapper("LlavaForConditionalGeneration", "images", {"model_type": "llama"}),
    "voxtral": Wrapper("VoxtralForConditionalGeneration", "audio", VOXTRAL_TEXT),
}
UNNAMED = ConfigClass(None, None, None, None, None)  # Mistral, with all sizes required


def args_from_config(config: Mapping[str, Any], source: str = "config.json") -> ModelArgs:
    """The architecture in a Hugging Face config of one of CLASSES, or of one of WRAPPERS around it.

    Raises InputError naming `source` and the key.
    """
    wrapper = wrapper_of(config)
    if wrapper is None:
        return decoder_args(config, source)
    outside = Keys(config, source)
    outside.refuse(UNSUPPORTED)
    check_quantization_config(config.get("quantization_config"), source)
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        raise InputError(f"{source}: text_config, which describes the decoder, is missing or no table")
    args = decoder_args({**wrapper.text, **text}, f"{source}: text_config")
    ignored = {str(key)[:40] for key in config.keys() - HARMLESS_OUTSIDE} | {*args.ignored_keys}
    return replace(args, towers=(wrapper.tower,), ignored_keys=tuple(sorted(ignored)))


def wrapper_of(config: Mapping[str, Any]) -> Wrapper | None:
    """The class of a multimodal model, by model_type or architectures; None for any other."""
    kind, listed = config.get("model_type"), config.get("architectures")
    if "model_type" in config:
        return WRAPPERS.get(kind) if isinstance(kind, str) else None
    first = listed[0] if isinstance(listed, list) and listed else None
    return next((wrapper for wrapper in WRAPPERS.values() if wrapper.architecture == first), None)


def decoder_args(config: Mapping[str, Any], source: str) -> ModelArgs:
    """The architecture in the config of a decoder alone. Raises InputError naming `source` and the key."""
    default, keys = class_of(config, source), Keys(config, source)
    keys.refuse(UNSUPPORTED_CONFIG)
    check_quantization_config(keys.take("quantization_config"), source)
    if config.get("hidden_act", "silu") not in ACTIVATIONS:
        raise InputError(f"{source}: hidden_act {shown(config['hidden_act'])} is not supported (silu is)")
    n_layers = keys.integer("num_hidden_layers", default=default.n_layers, limit=MAX_LAYERS)
    n_heads = keys.integer("num_attention_heads", default=default.n_heads)
    dim = keys.integer("hidden_size", default=default.dim)
    experts = keys.integer("num_local_experts", default=default.experts)
    per_token = keys.integer("num_experts_per_tok", default=2 if experts else 0)
    kv_heads = n_heads if default.n_kv_heads is None or "num_key_value_heads" in config else default.n_kv_heads
    max_seq_len = 0 if "max_position_embeddings" in config else default.max_seq_len
    limit = keys.integer("max_position_embeddings", default=max_seq_len) or None
    rope_theta, rope_scaling, llama_4_scaling = rotary(keys, default.rope_theta, limit, default.rope)
    head_dim = default.head_dim if default.head_dim and "head_dim" not in config else max(1, dim // max(1, n_heads))
    return keys.build(
        dim=dim,
        n_layers=n_layers,
        head_dim=keys.integer("head_dim", default=head_dim),
        hidden_dim=keys.integer("intermediate_size", default=default.hidden_dim),
        n_heads=n_heads,
        n_kv_heads=keys.integer("num_key_value_heads", default=kv_heads),
        vocab_size=keys.integer("vocab_size", default=default.vocab_size),
        norm_eps=keys.number("rms_norm_eps", default=default.norm_eps),
        rope_theta=rope_theta,
        sliding_windows=windows(keys, default, n_layers),
        moe=MoeArgs(experts, per_token) if experts else None,
        tied_embeddings=keys.boolean("tie_word_embeddings"),
        max_seq_len=limit,
        rope_scaling=rope_scaling,
        llama_4_scaling=llama_4_scaling,
        harmless=HARMLESS_CONFIG,
    )


def class_of(config: Mapping[str, Any], source: str) -> ConfigClass:
    """The class of a config, by model_type, otherwise by architectures; UNNAMED without both.

    Raises InputError for a class that is not among CLASSES.
    """
    listed = config.get("architectures")
    if "model_type" in config:
        name, value, known = "model_type", config["model_type"], dict(CLASSES)
    elif isinstance(listed, list) and listed:
        name, value = "architectures", listed[0]
        known = {f"{kind.capitalize()}ForCausalLM": each for kind, each in CLASSES.items()}
    else:
        return UNNAMED
    if isinstance(value, str) and value.lower().startswith(ENCODERS):
        raise InputError(
            f"{source}: {name} {shown(value)} is an encoder, which cannot generate text; name another model"
        )
    refuse_kind(name, value, source)
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{source}: {name} {shown(value)} is not supported ({', '.join(known)} are)")
    return known[value]


def windows(keys: Keys, default: ConfigClass, n_layers: int) -> tuple[int | None, ...]:
    """The window of each layer: `sliding_window` for all layers, or for those of sliding type in `layer_types`."""
    window = default.window
    if default.windowed and "sliding_window" in keys.table:
        window = keys.window(keys.take("sliding_window"), "sliding_window")
    if keys.take("use_sliding_window") is not None and not keys.boolean("use_sliding_window"):
        window = None
    types = keys.take("layer_types")
    if types is None:
        return (window,) * n_layers
    known = {"full_attention": None, "sliding_attention": window}
    if not isinstance(types, list) or any(not isinstance(t, str) or t not in known for t in types):
        raise InputError(f"{keys.source}: layer_types must list full_attention and sliding_attention only")
    if len(types) != n_layers:
        raise InputError(f"{keys.source}: layer_types has {len(types)} entries for {n_layers} layers")
    if "sliding_attention" in types and window is None:
        raise InputError(f"{keys.source}: layer_types has sliding_attention but sliding_window is not set")
    return tuple(known[t] for t in types)
