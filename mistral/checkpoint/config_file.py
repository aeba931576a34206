"""The architecture in a Hugging Face `config.json`: what a key means, and what its class has where the key is absent.

The classes are those of transformers that compute this decoder: Mistral, Mixtral, Ministral, and Llama with neither
biases nor a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mistral.checkpoint.keys import MAX_LAYERS, UNSUPPORTED, Keys
from mistral.errors import InputError
from mistral.model.args import ModelArgs, MoeArgs
from mistral.model.rope import RopeScaling
from mistral.text import shown

# Keys that change nothing in the arithmetic: accepted in silence. Any other unknown key is accepted with one warning.
HARMLESS_CONFIG = frozenset(
    {
        "_name_or_path", "architectures", "attention_dropout", "attn_implementation", "bos_token_id", "dtype",
        "eos_token_id", "hidden_act", "initializer_range", "is_llama_config", "model_type", "output_router_logits",
        "pad_token_id", "pretraining_tp", "router_aux_loss_coef", "router_jitter_noise", "torch_dtype",
        "transformers.js_config", "transformers_version", "unsloth_version", "unsloth_fixed", "use_cache",
    }
)  # fmt: skip
# Keys of such a file that are refused unless absent, null or false, like those of UNSUPPORTED.
UNSUPPORTED_CONFIG = frozenset(
    {"mlp_bias", "quantization", "quantization_config", "rope_interleaved", "text_config", "vision_config"}
)
ACTIVATIONS = ("silu", "swish")  # two names of one function


@dataclass(frozen=True)
class ConfigClass:
    """What a class of transformers has where a file leaves a key out.

    `n_kv_heads` None stands for as many as there are heads, `window` None for none, and None in place of another number
    for a key that must be there. `windowed`: the class looks at sliding_window at all.
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


ENCODERS = (
    "albert", "bert", "camembert", "deberta", "distilbert", "electra", "modernbert", "mpnet", "nomic_bert", "nomicbert",
    "roberta", "xlm-roberta", "xlmroberta",
)  # fmt: skip
CLASSES = {
    "mistral": ConfigClass(),
    "mixtral": ConfigClass(norm_eps=1e-5, rope_theta=1e6, window=None, experts=8),
    "ministral": ConfigClass(),
    "llama": ConfigClass(hidden_dim=11008, n_kv_heads=None, max_seq_len=2048, window=None, windowed=False),
}
UNNAMED = ConfigClass(None, None, None, None, None)  # Mistral, of a file that says so little that it must say the sizes


def args_from_config(config: Mapping[str, Any], source: str = "config.json") -> ModelArgs:
    """The architecture in a Hugging Face config of one of CLASSES. Raises InputError naming `source` and the key."""
    default, keys = class_of(config, source), Keys(config, source)
    keys.refuse(UNSUPPORTED | UNSUPPORTED_CONFIG)
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
    rope_theta, rope_scaling = rotary(keys, default.rope_theta, limit)
    return keys.build(
        dim=dim,
        n_layers=n_layers,
        head_dim=keys.integer("head_dim", default=max(1, dim // max(1, n_heads))),
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
        harmless=HARMLESS_CONFIG,
    )


def class_of(config: Mapping[str, Any], source: str) -> ConfigClass:
    """The class of a config, by model_type or, where that is absent, by architectures; without both, UNNAMED.

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
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{source}: {name} {shown(value)} is not supported ({', '.join(known)} are)")
    return known[value]


def rotary(keys: Keys, default: float, limit: int | None) -> tuple[float, RopeScaling | None]:
    """The base of the rotary angles and their scaling.

    The base is `rope_theta` at the top level, or inside `rope_parameters` (or `rope_scaling`) as newer files have it;
    `default` where it is nowhere. `limit` is the context by the file. Raises InputError for two tables that differ.
    """
    longest = keys.integer("original_max_position_embeddings", default=0) or limit
    top = keys.number("rope_theta", default=default)
    if keys.number("partial_rotary_factor", default=1.0) != 1:
        raise InputError(f"{keys.source}: partial_rotary_factor is not supported")
    found: list[tuple[float, RopeScaling | None]] = []
    for name in ("rope_scaling", "rope_parameters"):
        scaling = keys.rope_scaling(name, longest)
        if table := keys.table.get(name):
            inner = Keys(table, f"{keys.source}: {name}")
            if inner.number("partial_rotary_factor", default=1.0) != 1:
                raise InputError(f"{inner.source}: partial_rotary_factor is not supported")
            found.append((inner.number("rope_theta", default=top), scaling))
    if len(set(found)) > 1:
        raise InputError(f"{keys.source}: rope_scaling and rope_parameters differ; keep the one that holds")
    return found[0] if found else (top, None)


def windows(keys: Keys, default: ConfigClass, n_layers: int) -> tuple[int | None, ...]:
    """The window of each layer: `sliding_window` for all, or only for those that `layer_types` calls sliding."""
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
