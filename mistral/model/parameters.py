"""The parameters of a model: its tensors, and which stage of a pipeline owns which."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal, get_args

from mistral.model.args import ModelArgs

Part = Literal["embedding", "attention", "feed-forward", "experts", "norms", "router", "head"]
PARTS: tuple[Part, ...] = get_args(Part)
EMBEDDING, HEAD = "tok_embeddings.weight", "output.weight"  # names; a model with tied embeddings has no HEAD
FIRST_MATRIX = "layers.0.attention.wq.weight"
_CACHED = 8  # models whose parameters are kept


@dataclass(frozen=True)
class Parameter:
    """One tensor of a model.

    `name` is its name in Mistral's own files. `shape` is (out, in) for a matrix. `weight` is the short name within a
    layer or an expert, such as "wq", "w1", "gate" or "attention_norm". `layer` is None outside the layers, `expert`
    outside the experts of a mixture. `heads` is set in wq and wk: the number of heads, whose rows are in rotary order.
    """

    name: str
    shape: tuple[int, ...]
    part: Part
    weight: str
    layer: int | None = None
    expert: int | None = None
    heads: int | None = None

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether it has two axes; norms have one."""
        return len(self.shape) == 2


@lru_cache(_CACHED)
def parameters(args: ModelArgs) -> Mapping[str, Parameter]:
    """Every parameter of the model by name, in the order of a checkpoint. The mapping is read-only and shared."""
    return MappingProxyType({parameter.name: parameter for parameter in _in_order(args)})


def owns(layers: range, parameter: Parameter, args: ModelArgs) -> bool:
    """Whether the stage that holds `layers` owns a parameter of the model.

    The first stage has the embeddings, the last one the final norm and the output matrix. Tied embeddings are also the
    output matrix, so both of these stages have them.
    """
    if parameter.layer is not None:
        return parameter.layer in layers
    is_first, is_last = layers.start == 0, layers.stop == args.n_layers
    if parameter.part == "embedding":
        return is_first or (is_last and args.tied_embeddings)
    return is_last


def _in_order(args: ModelArgs) -> Iterator[Parameter]:
    embedding = (args.vocab_size, args.dim)
    yield Parameter(EMBEDDING, embedding, "embedding", "tok_embeddings")
    for layer in range(args.n_layers):
        yield from _layer(args, layer)
    yield Parameter("norm.weight", (args.dim,), "norms", "norm")
    if not args.tied_embeddings:
        yield Parameter(HEAD, embedding, "head", "output")


def _layer(args: ModelArgs, layer: int) -> Iterator[Parameter]:
    dim, queries, keys = args.dim, args.n_heads * args.head_dim, args.n_kv_heads * args.head_dim
    heads = {"wq": args.n_heads, "wk": args.n_kv_heads}
    for weight, shape in {"wq": (queries, dim), "wk": (keys, dim), "wv": (keys, dim), "wo": (dim, queries)}.items():
        name = f"layers.{layer}.attention.{weight}.weight"
        yield Parameter(name, shape, "attention", weight, layer, heads=heads.get(weight))
    for weight in ("attention_norm", "ffn_norm"):
        yield Parameter(f"layers.{layer}.{weight}.weight", (dim,), "norms", weight, layer)
    feed_forward = f"layers.{layer}.feed_forward"
    if args.moe is None:
        yield from _feed_forward(args, feed_forward, "feed-forward", layer, None)
        return
    yield Parameter(f"{feed_forward}.gate.weight", (args.moe.num_experts, dim), "router", "gate", layer)
    for expert in range(args.moe.num_experts):
        yield from _feed_forward(args, f"{feed_forward}.experts.{expert}", "experts", layer, expert)


def _feed_forward(args: ModelArgs, prefix: str, part: Part, layer: int, expert: int | None) -> Iterator[Parameter]:
    dim, hidden = args.dim, args.hidden_dim
    for weight, shape in {"w1": (hidden, dim), "w2": (dim, hidden), "w3": (hidden, dim)}.items():
        yield Parameter(f"{prefix}.{weight}.weight", shape, part, weight, layer, expert)
