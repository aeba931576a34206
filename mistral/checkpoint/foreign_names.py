"""Names and shapes of a model's tensors, and what they are called in the other file forms.

Hugging Face names are those of transformers' Mistral and Mixtral classes. Its rotary embedding turns the halves of a
head, Mistral's turns neighbours, so the rows of its q and k projections lie in another order. The first Mixtral release
stacked a layer's experts in one tensor.
"""

from __future__ import annotations

import re

import numpy as np

from mistral.checkpoint.formats.stored_tensor import Array

_HUGGING_FACE_TOP = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_HUGGING_FACE_LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.gate": "block_sparse_moe.gate",
}
_EXPERT = re.compile(r"(layers\.\d+)\.feed_forward\.experts\.(\d+)\.(w[123])\.weight")


def hugging_face_name(name: str) -> str:
    """What transformers calls the tensor that Mistral's files call `name`."""
    if name in _HUGGING_FACE_TOP:
        return _HUGGING_FACE_TOP[name]
    if expert := _EXPERT.fullmatch(name):
        return f"model.{expert[1]}.block_sparse_moe.experts.{expert[2]}.{expert[3]}.weight"
    _, layer, part = name.removesuffix(".weight").split(".", 2)
    return f"model.layers.{layer}.{_HUGGING_FACE_LAYER[part]}.weight"


def first_mixtral_name(name: str) -> tuple[str, int | None]:
    """The tensor of the first Mixtral release that holds `name`, and which of its stacked experts that is.

    A stack has shape (E*F, D) and no `.weight` to its name: expert e owns rows F*e to F*(e+1). Its w2 is stored
    transposed.
    """
    if expert := _EXPERT.fullmatch(name):
        return f"{expert[1]}.block_sparse_moe.{expert[3]}", int(expert[2])
    return name.replace("feed_forward.gate", "block_sparse_moe.gate"), None


def neighbouring_pairs(rows: Array, n_heads: int) -> Array:
    """Hugging Face's q or k rows (H*d, D) in Mistral's order: row i + d/2 of each head moves beside row i. A copy."""
    halves = rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def is_ignored(name: str) -> bool:
    """Tables of rotary frequencies, which some files carry and no model needs."""
    return name.endswith("rotary_emb.inv_freq") or name in ("rope.freqs", "freqs_cis")
