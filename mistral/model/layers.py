"""The layers of a transformer block. They hold weights and order the arithmetic; a backend does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mistral.model.kv_cache import CacheView
from mistral.model.moe import MoeLayer
from mistral.ops.interface import Ops

if TYPE_CHECKING:
    from mindspore import Tensor

    from mistral.ops.interface import Weight


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

    def __init__(self, wq: Weight, wk: Weight, wv: Weight, wo: Weight, ops: Ops) -> None:
        self.wq, self.wk, self.wv, self.wo, self.ops = wq, wk, wv, wo, ops

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, view: CacheView) -> Tensor:
        """x (T, D), all rows end to end -> (T, D). Each row attends to its own past only; `view` keeps that past."""
        q, k, v = (self.ops.linear(x, weight) for weight in (self.wq, self.wk, self.wv))
        return self.ops.linear(self.ops.attention(q, k, v, cos, sin, view), self.wo)


class TransformerBlock:
    """Attention, then feed-forward, each on the normalised input and added to it."""

    def __init__(
        self,
        attention: Attention,
        feed_forward: FeedForward | MoeLayer,
        attention_norm: RMSNorm,
        ffn_norm: RMSNorm,
        ops: Ops,
    ) -> None:
        self.attention, self.feed_forward, self.ops = attention, feed_forward, ops
        self.attention_norm, self.ffn_norm = attention_norm, ffn_norm

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, view: CacheView) -> Tensor:
        """x (T, D) -> (T, D)."""
        x = self.ops.add(x, self.attention(self.attention_norm(x), cos, sin, view))
        return self.ops.add(x, self.feed_forward(self.ffn_norm(x)))
