"""All transformer blocks of a step in one operator, if the backend has one; composed, each block takes about ten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mistral.model.block import TransformerBlock
from mistral.model.layers import FeedForward, Wanted
from mistral.model.moe import MoeLayer
from mistral.ops.interface import AttentionView, FusedOps, Norm, Rotation, Weight

if TYPE_CHECKING:
    from mindspore import Tensor


class FusedBlock:
    """A transformer block as one operator, with the interface and the result of `TransformerBlock`."""

    def __init__(self, block: TransformerBlock, fused: FusedOps, window: int | None) -> None:
        """`block` is kept, since it owns the weights that the operator reads; `window` is that of its layer."""
        self.block, self.fused = block, fused
        attention, layer = block.attention, block.feed_forward
        if isinstance(layer, MoeLayer):
            gate, experts, chosen = layer.gate, layer.experts, layer.args.num_experts_per_tok
        else:
            gate, experts, chosen = None, [layer], 1
        first, second = (Norm(norm.weight, norm.eps) for norm in (block.attention_norm, block.ffn_norm))
        projections = (attention.wq, attention.wk, attention.wv, attention.wo)
        weights = [_matrices(expert) for expert in experts]
        self.handle = fused.block(first, projections, window, second, gate, weights, chosen)

    def __call__(self, x: Tensor, rotation: Rotation, view: AttentionView, wanted: Wanted = None) -> Tensor | None:
        """x (T, D), the tokens of all rows -> (n, D) for the tokens at the n indices `wanted`; None if n is 0."""
        if wanted is None or wants_all(wanted, x):
            return run_fused([self], x, rotation, [view])
        block, ops = self.block, self.block.ops
        attended = block.attention(block.attention_norm(x), rotation, view, wanted)
        if attended is None:
            return None
        return self.fused.feed_forward_half(self.handle, ops.add(ops.take(x, wanted), attended))


def wants_all(wanted: Wanted, x: Tensor) -> bool:
    """Whether `wanted` is all tokens of x (T, D), in order."""
    return wanted is None or np.array_equal(wanted, np.arange(x.shape[0]))


def run_fused(blocks: Sequence[FusedBlock], x: Tensor, rotation: Rotation, views: Sequence[AttentionView]) -> Tensor:
    """The blocks one after the other in one operator, each with its own view: x (T, D) -> (T, D)."""
    return blocks[0].fused.run([block.handle for block in blocks], x, rotation, views)


def _matrices(layer: FeedForward) -> tuple[Weight, Weight, Weight]:
    return layer.w1, layer.w2, layer.w3
