"""The tensors of a model: names, shapes, and which stage needs them."""

from __future__ import annotations

from mistral.model.args import ModelArgs


def needs(name: str, args: ModelArgs, layers: range) -> bool:
    """Whether the stage that holds `layers` uses the tensor of this checkpoint name."""
    first, last = layers.start == 0, layers.stop == args.n_layers
    if name.startswith("layers."):
        return int(name.split(".")[1]) in layers
    if name.startswith("tok_embeddings."):
        return first or (last and args.tied_embeddings)
    return last


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


def rotary_heads(name: str, args: ModelArgs) -> int | None:
    """How many heads' rows the rotary embedding turns in this tensor; None if it is not wq or wk."""
    if name.endswith(".attention.wq.weight"):
        return args.n_heads
    return args.n_kv_heads if name.endswith(".attention.wk.weight") else None
