"""The architecture in the metadata of a GGUF file, read and checked."""

from __future__ import annotations

import math
from typing import Any

from mistral.checkpoint.gguf.rotary import growing_queries, rope_scaling
from mistral.checkpoint.keys import MAX_LAYERS, Keys
from mistral.checkpoint.rotary_keys import LONGEST
from mistral.errors import InputError
from mistral.gguf.model_files import GgufModel
from mistral.gguf.value import NUMBERS, STRING, Metadata
from mistral.mapped_file import quoted
from mistral.model.args import ModelArgs, MoeArgs
from mistral.text import shown

ARCHITECTURES = ("llama", "mistral3")
ARCHITECTURE, KIND = "general.architecture", "general.type"
TOKENS = "tokenizer.ggml.tokens"
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
# Keys that change the arithmetic in ways that are not implemented: refused unless they have the value that changes
# nothing. Any other unknown key of the architecture is accepted with one warning.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.clamp_kqv": (0,), "attention.max_alibi_bias": (0,), "attention.causal": (True,),
    "attention.q_lora_rank": (0,), "attention.kv_lora_rank": (0,), "attention.output_scale": (0, 1),
    "attention.shared_kv_layers": (0,), "attn_logit_softcapping": (0,),
    "router_logit_softcapping": (0,), "final_logit_softcapping": (0,), "logit_scale": (0, 1), "residual_scale": (0, 1),
    "embedding_scale": (0, 1), "expert_shared_count": (0,), "expert_weights_scale": (0, 1),
    "expert_weights_norm": (True,), "expert_gating_func": (0, 1), "expert_group_count": (0, 1),
    "leading_dense_block_count": (0,), "interleave_moe_layer_step": (0, 1), "use_parallel_residual": (False,),
    "nextn_predict_layers": (0,), "pooling_type": (0,), "decoder_block_count": (0,),
}  # fmt: skip
HARMLESS = frozenset({"tensor_data_layout", "attention.layer_norm_epsilon"})


def require_architecture(metadata: Metadata) -> str:
    """The name of the architecture. Raises InputError for one that is not supported."""
    kind = metadata.text(KIND)
    if kind not in (None, "model"):
        raise InputError(f"{metadata.path}: holds no model but {shown(kind)}; name the model's own file")
    name = metadata.text(ARCHITECTURE)
    if name is None:
        raise InputError(f"{metadata.path}: has no {ARCHITECTURE}; download it again")
    if name not in ARCHITECTURES:
        known = " and ".join(ARCHITECTURES)
        raise InputError(f"{metadata.path}: is of the architecture {shown(name)}, which is not supported ({known} are)")
    return name


def read_gguf_args(model: GgufModel) -> ModelArgs:
    """The architecture of a model. Raises InputError naming the file and the key."""
    metadata = model.metadata
    name = require_architecture(metadata)
    prefix, source = f"{name}.", str(metadata.path)
    keys = Keys(table_of(metadata, prefix), source)
    require_neutral(keys, prefix)
    dim = keys.integer(f"{prefix}embedding_length")
    n_layers = keys.integer(f"{prefix}block_count", limit=MAX_LAYERS)
    n_heads = same_for_all(keys, f"{prefix}attention.head_count", n_layers)
    head_dim = keys.integer(f"{prefix}attention.key_length", default=max(1, dim // n_heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if (other := keys.integer(prefix + key, default=head_dim)) != head_dim:
            raise InputError(f"{source}: {prefix}{key} is {other} and a head has {head_dim}, which is not supported")
    scale = keys.number(f"{prefix}attention.scale", default=1.0) if keys.table.get(f"{prefix}attention.scale") else None
    if scale is not None and not math.isclose(scale, head_dim**-0.5, rel_tol=1e-5):
        raise InputError(f"{source}: {prefix}attention.scale is not supported")
    limit = keys.integer(f"{prefix}context_length", default=0, limit=LONGEST) or None
    args = keys.build(
        dim=dim,
        n_layers=n_layers,
        head_dim=head_dim,
        hidden_dim=same_for_all(keys, f"{prefix}feed_forward_length", n_layers),
        n_heads=n_heads,
        n_kv_heads=same_for_all(keys, f"{prefix}attention.head_count_kv", n_layers, n_heads),
        vocab_size=vocabulary_size(model, keys, prefix),
        norm_eps=keys.number(f"{prefix}attention.layer_norm_rms_epsilon"),
        rope_theta=keys.number(f"{prefix}rope.freq_base", default=1e4),
        sliding_windows=windows(keys, prefix, n_layers),
        moe=experts(keys, prefix),
        tied_embeddings=HEAD not in model.tensors,
        max_seq_len=limit,
        rope_scaling=rope_scaling(keys, prefix, model, head_dim),
        llama_4_scaling=growing_queries(keys, prefix),
        harmless=frozenset(prefix + key for key in (*HARMLESS, *NEUTRAL)),
    )
    return args


def table_of(metadata: Metadata, prefix: str) -> dict[str, Any]:
    """The values of an architecture's keys: numbers, texts, and lists of both, of at most MAX_LAYERS + 1 items."""
    table: dict[str, Any] = {}
    for key, value in metadata.values.items():
        if key.startswith(prefix):
            if value.kind == STRING:
                table[key] = metadata.text(key) if value.count is None else metadata.texts(key)
            elif value.kind in NUMBERS:
                found = metadata.numbers(key) if value.count is not None else None
                table[key] = metadata.number(key) if found is None else found[: MAX_LAYERS + 1].tolist()
    return table


def require_neutral(keys: Keys, prefix: str) -> None:
    """Raise InputError for a key that changes the arithmetic in a way that is not implemented."""
    for key, neutral in NEUTRAL.items():
        value = keys.take(prefix + key)
        if value is not None and not any(isinstance(value, int | float) and value == each for each in neutral):
            raise InputError(f"{keys.source}: {prefix}{key} is {shown(value)}, and this program does not support it")


def same_for_all(keys: Keys, key: str, n_layers: int, default: int | None = None) -> int:
    """An integer that a file may give as a list by layer; all must be the same."""
    value = keys.take(key)
    if not isinstance(value, list):
        return keys.integer(key, default=default)
    if len(value) != n_layers:
        raise InputError(f"{keys.source}: {key} has {len(value)} entries for {n_layers} layers")
    if any(each != value[0] for each in value):
        raise InputError(f"{keys.source}: {key} differs by layer, which is not supported")
    return Keys({key: value[0]}, keys.source).integer(key)


def windows(keys: Keys, prefix: str, n_layers: int) -> tuple[int | None, ...]:
    """The window of each layer: one for all layers, or for those in a pattern.

    A pattern n means that every n-th layer has no window; a list has a flag for each layer.
    """
    key, pattern_key = f"{prefix}attention.sliding_window", f"{prefix}attention.sliding_window_pattern"
    pattern = keys.take(pattern_key)
    window = keys.integer(key) if keys.table.get(key) else None
    keys.take(key)
    if window is None or pattern is None:
        return (window,) * n_layers
    if isinstance(pattern, list):
        if len(pattern) != n_layers:
            raise InputError(f"{keys.source}: {pattern_key} has {len(pattern)} entries for {n_layers} layers")
        return tuple(window if has else None for has in pattern)
    period = keys.integer(pattern_key)
    return tuple(window if layer % period < period - 1 else None for layer in range(n_layers))


def experts(keys: Keys, prefix: str) -> MoeArgs | None:
    """The mixture of experts; None for a dense model."""
    count, used = (keys.take(prefix + key) for key in ("expert_count", "expert_used_count"))
    if not count and not used:
        return None
    return MoeArgs(keys.integer(f"{prefix}expert_count"), keys.integer(f"{prefix}expert_used_count"))


def vocabulary_size(model: GgufModel, keys: Keys, prefix: str) -> int:
    """The rows of the embedding. Raises InputError if the tokenizer has another number of tokens."""
    if EMBEDDING not in model.tensors:
        raise InputError(f"{model.path}: tensor {quoted(EMBEDDING)} is missing; download the file again")
    rows = model.tensors[EMBEDDING][1].shape[0]
    counts = {}
    if (tokens := model.metadata.values.get(TOKENS)) is not None:
        counts[TOKENS] = tokens.count or 0
    if keys.take(f"{prefix}vocab_size") is not None:
        counts[f"{prefix}vocab_size"] = keys.integer(f"{prefix}vocab_size")
    for key, count in counts.items():
        if count != rows:
            raise InputError(
                f"{model.path}: {key} has {count} tokens and the embedding {rows}; download the file again"
                if key == TOKENS
                else f"{model.path}: {key} is {count} and the embedding has {rows} rows; download the file again"
            )
    return Keys({EMBEDDING: rows}, f"{model.path}: rows of").integer(EMBEDDING)
