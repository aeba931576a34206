"""The architecture in `params.json` or a Hugging Face `config.json`, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistral.checkpoint.config_file import args_from_config
from mistral.checkpoint.keys import MAX_LAYERS, Keys
from mistral.checkpoint.rotary_keys import official_rotary, table_at
from mistral.checkpoint.unsupported import (
    UNSUPPORTED,
    check_official_quantization,
    check_quantization_config,
    refuse_kind,
    refuse_sound,
)
from mistral.errors import InputError
from mistral.model.args import ModelArgs, MoeArgs
from mistral.model.rope import FactorScaling, LinearScaling, RopeScaling, YarnScaling
from mistral.text import read_json

# Keys that do not change the arithmetic are accepted silently. Other unknown keys are accepted with one warning.
# `lora` says how the weights were trained: those of an adapter have names of their own, and are refused by these.
HARMLESS_PARAMS = frozenset({"model_type", "max_batch_size", "max_seq_len", "use_biases", "causal", "lora"})
# Keys that describe what reads images or audio beside the decoder, which is not loaded
TOWERS = {"vision_encoder": "images", "audio": "audio", "audio_encoder": "audio", "multimodal": "images"}
FORMER_FORM = "mistral-mindspore"  # the format of quantized folders that early releases wrote


def args_from_params(params: Mapping[str, Any], source: str = "params.json") -> ModelArgs:
    """The architecture in a table with the keys of params.json. Raises InputError naming `source` and the key."""
    keys = Keys(params, source)
    refuse_kind("model_type", keys.take("model_type"), source)
    keys.refuse(UNSUPPORTED)
    towers = towers_of(keys)
    check_quantization_config(keys.take("quantization_config"), source)
    check_quantization(keys)
    rope_scaling, llama_4_scaling = official_rotary(keys)
    n_layers = keys.integer("n_layers", limit=MAX_LAYERS)
    n_heads = keys.integer("n_heads")
    dim = keys.integer("dim")
    window = keys.window_list()
    windowed = any(w is not None for w in window)
    moe = None
    if (table := keys.take("moe")) is not None:
        if not isinstance(table, Mapping):
            raise InputError(f"{source}: moe must be a table with num_experts and num_experts_per_tok")
        inner = Keys(table, f"{source}: moe")
        inner.refuse(UNSUPPORTED)
        moe = MoeArgs(inner.integer("num_experts"), inner.integer("num_experts_per_tok"))
        inner.refuse_unknown()
    if keys.take("use_biases"):
        raise InputError(f"{source}: use_biases is set, and biases are not supported")
    if keys.take("causal") is False:
        raise InputError(f"{source}: causal is false, and only causal models are supported")
    return keys.build(
        dim=dim,
        n_layers=n_layers,
        head_dim=keys.integer("head_dim", default=max(1, dim // max(1, n_heads))),
        hidden_dim=keys.integer("hidden_dim"),
        n_heads=n_heads,
        n_kv_heads=keys.integer("n_kv_heads", default=n_heads),
        vocab_size=keys.integer("vocab_size"),
        norm_eps=keys.number("norm_eps", default=1e-5),
        # The first 7B and Mixtral files leave rope_theta out; they were trained with these.
        rope_theta=keys.number("rope_theta", default=1e4 if windowed else 1e6),
        sliding_windows=tuple(window[i % len(window)] for i in range(n_layers)),
        moe=moe,
        tied_embeddings=keys.boolean("tied_embeddings"),
        max_seq_len=keys.integer("max_position_embeddings", default=keys.integer("max_seq_len", default=0)) or None,
        rope_scaling=rope_scaling,
        llama_4_scaling=llama_4_scaling,
        towers=towers,
        harmless=HARMLESS_PARAMS,
    )


def read_args(path: Path) -> ModelArgs:
    """The architecture in `params.json` or `config.json`. Raises InputError naming the file."""
    table = read_json(path)
    return args_from_config(table, str(path)) if path.name == "config.json" else args_from_params(table, str(path))


def params_of(args: ModelArgs) -> dict[str, Any]:
    """The table of `params.json` for these args, the inverse of `args_from_params`."""
    windows = args.sliding_windows
    table: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "vocab_size", "norm_eps",
                     "rope_theta", "tied_embeddings", "max_seq_len")
    }  # fmt: skip
    table["sliding_window"] = windows[0] if len(set(windows)) == 1 else list(windows)
    if args.moe:
        table["moe"] = vars(args.moe)
    if args.rope_scaling:  # no official file has this key
        table["rope_scaling"] = {"rope_type": kind_of(args.rope_scaling), **vars(args.rope_scaling)}
    if args.llama_4_scaling:
        table["llama_4_scaling"] = vars(args.llama_4_scaling)
    return {key: value for key, value in table.items() if value is not None}


def kind_of(scaling: RopeScaling) -> str:
    """The `rope_type` of a scaling."""
    kinds = {LinearScaling: "linear", YarnScaling: "yarn", FactorScaling: "factors"}  # the last in GGUF alone
    return kinds.get(type(scaling), "llama3")


def towers_of(keys: Keys) -> tuple[str, ...]:
    """What the model reads besides text ("images", "audio"), from the tables of its encoders in params.json."""
    found = dict[str, None]()
    for key, tower in TOWERS.items():
        inner = table_at(keys, key)
        if inner is None:
            continue
        if key == "multimodal":
            refuse_sound(inner.table, keys.source)
            tower = "audio" if "whisper_model_args" in inner.table else tower
        found[tower] = None
    return tuple(found)


def check_quantization(keys: Keys) -> None:
    """Raise InputError for a table `quantization`, unless it is that of official FP8 weights.

    Which tensors are FP8 follows from their dtypes. Early releases of this program wrote folders in formats of their
    own.
    """
    table = keys.take("quantization")
    if table is None:
        return
    if isinstance(table, Mapping) and table.get("format") == FORMER_FORM:
        raise InputError(
            f"{keys.source}: quantized by an earlier release, in a format that is not read any more; quantize the"
            " original checkpoint again, to a GGUF file"
        )
    check_official_quantization(table if isinstance(table, Mapping) else {}, keys.source)
