"""The layers of a transformer block. They hold weights and order the arithmetic; a backend does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mistral.args import ModelArgs
from mistral.cache import CacheView
from mistral.moe import MoeLayer
from mistral.ops import Ops

if TYPE_CHECKING:
    from mindspore import Tensor

    from mistral.ops.weight import Weight


def part(x: Tensor, axis: int, span: slice) -> Tensor:
    """A slice of x along axis 0 or 1; x itself, with no operator run, where that is all of it."""
    if span == slice(0, x.shape[axis]):
        return x
    return x[span] if axis == 0 else x[:, span]


class RMSNorm:
    """Root mean square normalisation (arXiv:1910.07467)."""

    def __init__(self, weight: Weight, eps: float, ops: Ops) -> None:
        self.weight, self.eps, self.ops = weight, eps, ops

    def __call__(self, x: Tensor) -> Tensor:
        """x (T, D) -> (T, D)."""
        return self.ops.rms_norm(x, self.weight, self.eps)


class FeedForward:
    """The gated feed-forward of one layer, or one expert of a mixture."""

    def __init__(self, w1: Weight, w2: Weight, w3: Weight, ops: Ops) -> None:
        self.w1, self.w2, self.w3, self.ops = w1, w2, w3, ops

    def __call__(self, x: Tensor) -> Tensor:
        """x (T, D) -> (T, D)."""
        return self.ops.feed_forward(x, self.w1, self.w2, self.w3)


class Attention:
    """Grouped-query attention with a sliding window (arXiv:2310.06825)."""

    def __init__(self, wq: Weight, wk: Weight, wv: Weight, wo: Weight, args: ModelArgs, ops: Ops) -> None:
        self.wq, self.wk, self.wv, self.wo, self.args, self.ops = wq, wk, wv, wo, args, ops

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, view: CacheView) -> Tensor:
        """x (T, D), all rows end to end -> (T, D). Each row attends to its own past only; `view` keeps that past."""
        ops, args = self.ops, self.args
        q = ops.rope(ops.linear(x, self.wq).reshape(-1, args.n_heads, args.head_dim), cos, sin)
        k = ops.rope(ops.linear(x, self.wk).reshape(-1, args.n_kv_heads, args.head_dim), cos, sin)
        v = ops.linear(x, self.wv).reshape(-1, args.n_kv_heads, args.head_dim)
        k, v = k.transpose(1, 0, 2), v.transpose(1, 0, 2)  # (KV, T, d)
        seqlens = view.metadata.seqlens
        per_row = zip(ops.split(q, seqlens, 0), ops.split(k, seqlens, 1), ops.split(v, seqlens, 1), strict=True)
        parts = []
        for index, (queries, new_keys, new_values) in enumerate(per_row):
            keys, values = view.extend(index, new_keys, new_values)
            for block in view.plans[index].blocks:
                seen = part(keys, 1, block.keys), part(values, 1, block.keys)
                parts.append(ops.attend(part(queries, 0, block.queries), *seen, view.mask(block)))
        return ops.linear(ops.concat(parts, 0).reshape(x.shape[0], -1), self.wo)


class TransformerBlock:
    """Attention, then feed-forward, each on the normalised input and added to it."""

    def __init__(
        self, attention: Attention, feed_forward: FeedForward | MoeLayer, attention_norm: RMSNorm, ffn_norm: RMSNorm
    ) -> None:
        self.attention, self.feed_forward = attention, feed_forward
        self.attention_norm, self.ffn_norm = attention_norm, ffn_norm

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, view: CacheView) -> Tensor:
        """x (T, D) -> (T, D)."""
        x = x + self.attention(self.attention_norm(x), cos, sin, view)
        return x + self.feed_forward(self.ffn_norm(x))
