"""The names of a model's parameters in other file formats than Mistral's own, and the order of their rows.

Hugging Face names are those of transformers' Mistral and Mixtral classes; in a multimodal model the decoder's names
have a prefix, in one of two spellings, and its encoders have names of their own. transformers' rotary embedding pairs
the two halves of a head, Mistral's pairs neighbouring elements, so the rows of the q and k projections are in another
order. The first Mixtral release stacked a layer's experts in one tensor.
"""

from __future__ import annotations

import numpy as np

from mistral.checkpoint.formats.stored_tensor import Array
from mistral.model.parameters import Parameter

_OUTSIDE_LAYERS = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
_IN_A_LAYER = {
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
    "gate": "block_sparse_moe.gate",
}
_TOWERS = {
    "vision_encoder.": "images", "vision_language_adapter.": "images", "patch_merger.": "images",
    "pre_mm_projector_norm.": "images", "vision_tower.": "images", "multi_modal_projector.": "images",
    "mm_whisper_embeddings.": "audio", "audio_tower.": "audio",
}  # fmt: skip
_ROTARY_TABLES = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")


def hugging_face_name(parameter: Parameter) -> str:
    """The parameter's name in transformers."""
    if parameter.layer is None:
        return f"{_OUTSIDE_LAYERS[parameter.weight]}.weight"
    layer = f"model.layers.{parameter.layer}"
    if parameter.expert is None:
        return f"{layer}.{_IN_A_LAYER[parameter.weight]}.weight"
    return f"{layer}.block_sparse_moe.experts.{parameter.expert}.{parameter.weight}.weight"


def wrapped_names(name: str) -> tuple[str, ...]:
    """The possible names in a file of the parameter that is `name` in a decoder alone.

    In a multimodal model the decoder is `language_model` or `model.language_model`.
    """
    return name, f"language_model.{name}", f"model.language_model.{name.removeprefix('model.')}"


def tower_of(name: str) -> str | None:
    """What the encoder of a tensor with this name reads, "images" or "audio"; None for a tensor of the decoder."""
    name = name.removeprefix("model.")
    return next((reads for prefix, reads in _TOWERS.items() if name.startswith(prefix)), None)


def first_mixtral_name(parameter: Parameter) -> str:
    """The name in the first Mixtral release of the parameter, or of the stack of experts that holds it.

    A stack has shape (E*F, D) and no `.weight` to its name: expert e owns rows F*e to F*(e+1). Its w2 is stored
    transposed.
    """
    if parameter.expert is not None:
        return f"layers.{parameter.layer}.block_sparse_moe.{parameter.weight}"
    if parameter.part == "router":
        return f"layers.{parameter.layer}.block_sparse_moe.gate.weight"
    return parameter.name


def is_in_a_layer(name: str) -> bool:
    """Whether a tensor of the first Mixtral release, by its name in the file, belongs to a layer."""
    return name.startswith("layers.")


def neighbouring_pairs(rows: Array, n_heads: int) -> Array:
    """Hugging Face's q or k rows (H*d, D) in Mistral's order: row i + d/2 of each head moves beside row i. A copy."""
    halves = rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def is_ignored(name: str) -> bool:
    """Whether a file's tensor is a table of rotary angles, which some files contain and no model needs."""
    return name.endswith(_ROTARY_TABLES) or name in ("rope.freqs", "freqs_cis")
