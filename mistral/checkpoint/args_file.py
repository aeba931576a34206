"""The architecture in `params.json` or a Hugging Face `config.json`, read and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistral.errors import InputError
from mistral.model.args import ModelArgs, MoeArgs, Quantization
from mistral.text import read_json

# Keys that change nothing in the arithmetic: accepted in silence. Any other unknown key is accepted with one warning.
# `lora` says how the weights were trained: those of an adapter have names of their own, and are refused by these.
HARMLESS_PARAMS = frozenset({"model_type", "max_batch_size", "max_seq_len", "use_biases", "causal", "lora"})
HARMLESS_CONFIG = frozenset(
    {
        "_name_or_path", "architectures", "attention_dropout", "attn_implementation", "bos_token_id", "dtype",
        "eos_token_id", "hidden_act", "initializer_range", "model_type", "output_router_logits", "pad_token_id",
        "pretraining_tp", "router_aux_loss_coef", "router_jitter_noise", "torch_dtype", "transformers_version",
        "unsloth_version", "unsloth_fixed", "use_cache",
    }
)  # fmt: skip
# Keys that change the arithmetic in ways this project does not implement: refused unless absent, null or false.
UNSUPPORTED_PARAMS = frozenset(
    {
        "vision_encoder", "multimodal", "yarn", "llama_4_scaling", "q_lora_rank", "kv_lora_rank",
        "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "qk_norm", "use_qk_norm", "logit_soft_cap", "mamba",
        "ssm", "ada_rms_norm_t_cond", "use_bias", "attention_bias",
    }
)  # fmt: skip
QUANTIZATION_FORM = ("mistral-mindspore", 1)  # what this program writes, and its version
SMALL = 1 << 24  # no dimension of a model is larger: bounds what a hostile file can make us compute
MAX_LAYERS = 4096


def args_from_params(params: Mapping[str, Any], source: str = "params.json") -> ModelArgs:
    """The architecture in a table of the official form. Raises InputError naming `source` and the key."""
    keys = _Keys(params, source)
    keys.refuse(UNSUPPORTED_PARAMS)
    n_layers = keys.integer("n_layers", limit=MAX_LAYERS)
    n_heads = keys.integer("n_heads")
    dim = keys.integer("dim")
    window = keys.window_list()
    windowed = any(w is not None for w in window)
    moe = None
    if (table := keys.take("moe")) is not None:
        if not isinstance(table, Mapping):
            raise InputError(f"{source}: moe must be a table with num_experts and num_experts_per_tok")
        inner = _Keys(table, f"{source}: moe")
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
        max_seq_len=keys.integer("max_seq_len", default=0) or None,
        quantization=keys.quantization(),
        harmless=HARMLESS_PARAMS,
    )


def args_from_config(config: Mapping[str, Any], source: str = "config.json") -> ModelArgs:
    """The architecture in a Hugging Face config of the Mistral, Mixtral or Ministral family.

    Raises InputError naming `source` and the key.
    """
    kind = config.get("model_type", "mistral")
    if kind not in ("mistral", "mixtral", "ministral"):
        found = str(kind)[:40]
        raise InputError(f"{source}: model_type {found!r} is not supported (mistral, mixtral and ministral are)")
    keys = _Keys(config, source)
    keys.refuse(UNSUPPORTED_PARAMS | {"quantization", "quantization_config", "vision_config", "text_config"})
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(f"{source}: hidden_act {str(config['hidden_act'])[:40]!r} is not supported (silu is)")
    n_layers = keys.integer("num_hidden_layers", limit=MAX_LAYERS)
    n_heads = keys.integer("num_attention_heads")
    dim = keys.integer("hidden_size")
    experts = keys.integer("num_local_experts", default=8 if kind == "mixtral" else 0)
    per_token = keys.integer("num_experts_per_tok", default=2 if experts else 0)
    return keys.build(
        dim=dim,
        n_layers=n_layers,
        head_dim=keys.integer("head_dim", default=max(1, dim // max(1, n_heads))),
        hidden_dim=keys.integer("intermediate_size"),
        n_heads=n_heads,
        n_kv_heads=keys.integer("num_key_value_heads", default=n_heads),
        vocab_size=keys.integer("vocab_size"),
        norm_eps=keys.number("rms_norm_eps", default=1e-5 if kind == "mixtral" else 1e-6),
        rope_theta=keys.hf_rope_theta(default=1e6 if kind == "mixtral" else 1e4),
        sliding_windows=keys.hf_windows(n_layers),
        moe=MoeArgs(experts, per_token) if experts else None,
        tied_embeddings=keys.boolean("tie_word_embeddings"),
        max_seq_len=keys.integer("max_position_embeddings", default=0) or None,
        harmless=HARMLESS_CONFIG,
    )


def read_args(path: Path) -> ModelArgs:
    """The architecture in `params.json` or `config.json`, by the name. Raises InputError naming the file."""
    table = read_json(path)
    return args_from_config(table, str(path)) if path.name == "config.json" else args_from_params(table, str(path))


def params_of(args: ModelArgs) -> dict[str, Any]:
    """The table that `params.json` has for these args: `args_from_params` of it gives them back."""
    windows = args.sliding_windows
    table: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "vocab_size", "norm_eps",
                     "rope_theta", "tied_embeddings", "max_seq_len")
    }  # fmt: skip
    table["sliding_window"] = windows[0] if len(set(windows)) == 1 else list(windows)
    if args.moe:
        table["moe"] = vars(args.moe)
    if args.quantization:
        form, version = QUANTIZATION_FORM
        table["quantization"] = {"format": form, "version": version, **vars(args.quantization)}
    return {key: value for key, value in table.items() if value is not None}


class _Keys:
    """A JSON object being read: remembers what was asked for, so that the rest can be reported."""

    def __init__(self, table: Mapping[str, Any], source: str) -> None:
        self.table, self.source, self.taken = table, source, set[str]()

    def take(self, key: str) -> Any:
        self.taken.add(key)
        return self.table.get(key)

    def number(self, key: str, default: float | None = None) -> float:
        value = self.take(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise InputError(f"{self.source}: {key} is missing")
        try:
            number = math.nan if isinstance(value, bool) else float(value)  # decimal strings count as numbers
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not (math.isfinite(number) and number > 0):
            raise InputError(f"{self.source}: {key} must be a positive number, not {str(value)[:40]!r}")
        return number

    def integer(self, key: str, default: int | None = None, limit: int = SMALL) -> int:
        if default is not None and self.table.get(key) is None:
            self.taken.add(key)
            return default
        number = self.number(key)
        if number != int(number) or number > limit:
            raise InputError(f"{self.source}: {key} must be a whole number of at most {limit}, not {str(number)[:40]}")
        return int(number)

    def boolean(self, key: str) -> bool:
        value = self.take(key)
        if value not in (None, True, False):
            raise InputError(f"{self.source}: {key} must be true or false, not {str(value)[:40]!r}")
        return bool(value)

    def window(self, value: Any, key: str) -> int | None:
        return None if value is None else _Keys({key: value}, self.source).integer(key)

    def window_list(self) -> list[int | None]:
        """The windows to repeat over the layers, of `sliding_window` or `_sliding_window`.

        Either key may be absent, null, a number, a digit string, or a list of these.
        """
        given = [key for key in ("sliding_window", "_sliding_window") if self.take(key) is not None]
        if len(given) > 1:
            raise InputError(f"{self.source}: sliding_window and _sliding_window are both set; keep the one that holds")
        value = self.table[given[0]] if given else None
        values = value if isinstance(value, list) else [value]
        if not values:
            raise InputError(f"{self.source}: {given[0]} is an empty list")
        return [self.window(v, given[0] if given else "sliding_window") for v in values]

    def hf_rope_theta(self, default: float) -> float:
        """The value of `rope_theta` at the top level, or inside `rope_parameters` as newer files have it."""
        rope = self.take("rope_parameters") or {}
        scaling = self.take("rope_scaling") or {}
        for name, table in (("rope_parameters", rope), ("rope_scaling", scaling)):
            if not isinstance(table, Mapping):
                raise InputError(f"{self.source}: {name} must be a table")
            if any(isinstance(value, Mapping) for value in table.values()):
                raise InputError(f"{self.source}: {name} differs by layer type, which is not supported")
            kind = table.get("rope_type", table.get("type", "default"))
            if kind not in (None, "default"):
                raise InputError(f"{self.source}: {name} of type {str(kind)[:40]!r} is not supported (default is)")
        for keys in (self, _Keys(rope, f"{self.source}: rope_parameters")):
            if keys.number("partial_rotary_factor", default=1.0) != 1:
                raise InputError(f"{keys.source}: partial_rotary_factor is not supported")
        top = self.number("rope_theta", default=default)
        return _Keys(rope, f"{self.source}: rope_parameters").number("rope_theta", default=top)

    def hf_windows(self, n_layers: int) -> tuple[int | None, ...]:
        """The window of each layer: `sliding_window` for all, or only for those that `layer_types` calls sliding."""
        window = self.window(self.take("sliding_window"), "sliding_window")
        if self.take("use_sliding_window") is not None and not self.boolean("use_sliding_window"):
            window = None
        types = self.take("layer_types")
        if types is None:
            return (window,) * n_layers
        known = {"full_attention": None, "sliding_attention": window}
        if not isinstance(types, list) or any(not isinstance(t, str) or t not in known for t in types):
            raise InputError(f"{self.source}: layer_types must list full_attention and sliding_attention only")
        if len(types) != n_layers:
            raise InputError(f"{self.source}: layer_types has {len(types)} entries for {n_layers} layers")
        if "sliding_attention" in types and window is None:
            raise InputError(f"{self.source}: layer_types has sliding_attention but sliding_window is not set")
        return tuple(known[t] for t in types)

    def quantization(self) -> Quantization | None:
        """The table `quantization` as this program writes it; None where it is absent."""
        table = self.take("quantization")
        if table is None:
            return None
        if not isinstance(table, Mapping) or (table.get("format"), table.get("version")) != QUANTIZATION_FORM:
            form = f"{QUANTIZATION_FORM[0]}, version {QUANTIZATION_FORM[1]}"
            raise InputError(
                f"{self.source}: quantization is not of the form {form}; use the original weights, or quantize again"
            )
        inner = _Keys(table, f"{self.source}: quantization")
        inner.taken |= {"format", "version"}
        bits, output_bits = inner.integer("bits"), inner.integer("output_bits")
        inner.refuse_unknown()
        if {bits, output_bits} - {8, 4}:
            raise InputError(f"{inner.source}: bits and output_bits must be 8 or 4; quantize the model again")
        return Quantization(bits, output_bits)

    def refuse(self, unsupported: frozenset[str]) -> None:
        for key in sorted(unsupported & self.table.keys()):
            if self.take(key) not in (None, False):
                raise InputError(f"{self.source}: {key} is set, and this program does not support it")

    def refuse_unknown(self) -> None:
        for key in sorted(self.table.keys() - self.taken):
            raise InputError(f"{self.source}: {key[:40]!r} is set, and this program does not support it")

    def build(self, harmless: frozenset[str], **fields: Any) -> ModelArgs:
        ignored = tuple(sorted(str(key)[:40] for key in self.table.keys() - self.taken - harmless))
        try:
            return ModelArgs(**fields, ignored_keys=ignored)
        except InputError as error:
            raise error.within(self.source) from None
