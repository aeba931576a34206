"""Names and shapes of a model's tensors, and what they are called in the other file forms.

Hugging Face names are those of transformers' Mistral and Mixtral classes. Its rotary embedding turns the halves of a
head, Mistral's turns neighbours, so the rows of its q and k projections lie in another order. The first Mixtral release
stacked a layer's experts in one tensor.
"""

from __future__ import annotations

import re

import numpy as np

from mistral.args import ModelArgs
from mistral.checkpoint.tensor_file import Array

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


def tensor_shapes(args: ModelArgs) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model: its name in Mistral's files and its shape, [out, in] for matrices."""
    dim, hidden = args.dim, args.hidden_dim
    queries, keys = args.n_heads * args.head_dim, args.n_kv_heads * args.head_dim
    feed_forward: dict[str, tuple[int, ...]] = {"w1": (hidden, dim), "w2": (dim, hidden), "w3": (hidden, dim)}
    if args.moe:
        feed_forward = {"gate": (args.moe.num_experts, dim)} | {
            f"experts.{expert}.{w}": shape
            for expert in range(args.moe.num_experts)
            for w, shape in feed_forward.items()
        }
    layer: dict[str, tuple[int, ...]] = {
        "attention.wq": (queries, dim),
        "attention.wk": (keys, dim),
        "attention.wv": (keys, dim),
        "attention.wo": (dim, queries),
        "attention_norm": (dim,),
        "ffn_norm": (dim,),
    } | {f"feed_forward.{name}": shape for name, shape in feed_forward.items()}
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (args.vocab_size, dim)}
    shapes |= {f"layers.{n}.{name}.weight": shape for n in range(args.n_layers) for name, shape in layer.items()}
    shapes["norm.weight"] = (dim,)
    if not args.tied_embeddings:
        shapes["output.weight"] = (args.vocab_size, dim)
    return shapes


def quantized_bits(name: str, args: ModelArgs) -> int | None:
    """The bits of a tensor in a quantized model; None for one that stays as it was.

    Embeddings (read one row a token) and norms are no cost; a router decides which experts a token sees at all.
    """
    if args.quantization is None or "norm" in name or name == "tok_embeddings.weight" or name.endswith(".gate.weight"):
        return None
    return args.quantization.output_bits if name == "output.weight" else args.quantization.bits


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


def rotary_heads(name: str, args: ModelArgs) -> int | None:
    """How many heads' rows the rotary embedding turns in this tensor; None if it is not wq or wk."""
    if name.endswith(".attention.wq.weight"):
        return args.n_heads
    return args.n_kv_heads if name.endswith(".attention.wk.weight") else None


def neighbouring_pairs(rows: Array, n_heads: int) -> Array:
    """Hugging Face's q or k rows (H*d, D) in Mistral's order: row i + d/2 of each head moves beside row i. A copy."""
    halves = rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def is_ignored(name: str) -> bool:
    """Tables of rotary frequencies, which some files carry and no model needs."""
    return name.endswith("rotary_emb.inv_freq") or name in ("rope.freqs", "freqs_cis")
