"""A transformer block in two operators, for a backend that has them, where composing it takes about ten."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mistral.model.block import TransformerBlock
from mistral.model.layers import FeedForward, Wanted
from mistral.model.moe import MoeLayer
from mistral.ops.interface import AttentionView, FusedOps, Rotation, Weight

if TYPE_CHECKING:
    from mindspore import Tensor


class FusedBlock:
    """Called like the block it is made of, with the same result."""

    def __init__(self, block: TransformerBlock, fused: FusedOps) -> None:
        """The block is kept: it holds the weights that the operators use."""
        self.block = block
        attention, layer = block.attention, block.feed_forward
        projections = (attention.wq, attention.wk, attention.wv, attention.wo)
        first, second = ((norm.weight, norm.eps) for norm in (block.attention_norm, block.ffn_norm))
        self.attention = fused.attention_block(*first, projections)
        if isinstance(layer, MoeLayer):
            experts = [_matrices(expert) for expert in layer.experts]
            self.feed_forward = fused.mixture_block(*second, layer.gate, experts, layer.args.num_experts_per_tok)
        else:
            self.feed_forward = fused.feed_forward_block(*second, _matrices(layer))

    def __call__(self, x: Tensor, rotation: Rotation, view: AttentionView, wanted: Wanted = None) -> Tensor | None:
        """x (T, D), all rows end to end -> (n, D): of the tokens at the n places `wanted`; of no place, None."""
        if wanted is None or np.array_equal(wanted, np.arange(x.shape[0])):
            return self.feed_forward(self.attention(x, rotation, view))
        block, ops = self.block, self.block.ops
        attended = block.attention(block.attention_norm(x), rotation, view, wanted)
        return None if attended is None else self.feed_forward(ops.add(ops.take(x, wanted), attended))


def _matrices(layer: FeedForward) -> tuple[Weight, Weight, Weight]:
    return layer.w1, layer.w2, layer.w3
