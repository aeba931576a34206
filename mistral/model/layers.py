"""The layers of a transformer block. They hold weights and call the arithmetic of a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mistral.ops.interface import AttentionView, Ops, Rotation, Weight

if TYPE_CHECKING:
    from mindspore import Tensor

Wanted = NDArray[np.int64] | None  # (n,) indices, among the T tokens of a step, of those to compute; None: all


class RMSNorm:
    """Root mean square normalisation (arXiv:1910.07467)."""

    def __init__(self, weight: Weight, eps: float, ops: Ops) -> None:
        self.weight, self.eps, self.ops = weight, eps, ops

    def __call__(self, x: Tensor) -> Tensor:
        """x (T, D) -> (T, D)."""
        return self.ops.rms_norm(x, self.weight, self.eps)


class FeedForward:
    """The gated feed-forward (SwiGLU, arXiv:2002.05202) of a layer, or one expert: w1, w3 (F, D), w2 (D, F)."""

    def __init__(self, w1: Weight, w2: Weight, w3: Weight, ops: Ops) -> None:
        self.w1, self.w2, self.w3, self.ops = w1, w2, w3, ops

    def __call__(self, x: Tensor) -> Tensor:
        """x (T, D) -> (T, D)."""
        return self.ops.feed_forward(x, self.w1, self.w2, self.w3)


class Attention:
    """Grouped-query attention with a sliding window (arXiv:2310.06825).

    wq (H * d, D), wk and wv (KV * d, D), wo (D, H * d).
    """

    def __init__(self, wq: Weight, wk: Weight, wv: Weight, wo: Weight, ops: Ops) -> None:
        self.wq, self.wk, self.wv, self.wo, self.ops = wq, wk, wv, wo, ops

    def __call__(self, x: Tensor, rotation: Rotation, view: AttentionView, wanted: Wanted = None) -> Tensor | None:
        """x (T, D), the tokens of all rows -> (n, D) for the tokens at the n indices `wanted`; None if n is 0.

        Each row attends only to its own past, which `view` holds; the step's keys and values are added to it.
        """
        q, k, v = (self.ops.linear(x, weight) for weight in (self.wq, self.wk, self.wv))
        heads = self.ops.attention(q, k, v, rotation, view)
        if wanted is not None:
            if not len(wanted):
                return None
            heads = self.ops.take(heads, wanted)
        return self.ops.linear(heads, self.wo)
