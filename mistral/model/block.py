"""A transformer block, and its construction from the weights of a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mistral.model.args import ModelArgs
from mistral.model.layers import Attention, FeedForward, RMSNorm, Wanted
from mistral.model.moe import MoeLayer
from mistral.ops.interface import AttentionView, Ops, Rotation, Weight

if TYPE_CHECKING:
    from mindspore import Tensor

GetWeight = Callable[[str], Weight]  # a weight by its name in Mistral's files


class TransformerBlock:
    """Attention, then feed-forward, each on the normalised input, with residual connections."""

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

    def __call__(self, x: Tensor, rotation: Rotation, view: AttentionView, wanted: Wanted = None) -> Tensor | None:
        """x (T, D), the tokens of all rows -> (n, D) for the tokens at the n indices `wanted`; None if n is 0."""
        attended = self.attention(self.attention_norm(x), rotation, view, wanted)
        if attended is None:
            return None
        x = self.ops.add(x if wanted is None else self.ops.take(x, wanted), attended)
        return self.ops.add(x, self.feed_forward(self.ffn_norm(x)))


def build_block(args: ModelArgs, layer: int, get: GetWeight, ops: Ops) -> TransformerBlock:
    """The block of the global layer number `layer`; `get` is called with the checkpoint names of its weights."""

    def feed_forward(prefix: str) -> FeedForward:
        w1, w2, w3 = (get(f"{prefix}.{name}.weight") for name in ("w1", "w2", "w3"))
        return FeedForward(w1, w2, w3, ops)

    prefix = f"layers.{layer}"
    wq, wk, wv, wo = (get(f"{prefix}.attention.{name}.weight") for name in ("wq", "wk", "wv", "wo"))
    attention = Attention(wq, wk, wv, wo, ops)
    ffn: FeedForward | MoeLayer
    if args.moe:
        experts = [feed_forward(f"{prefix}.feed_forward.experts.{e}") for e in range(args.moe.num_experts)]
        ffn = MoeLayer(experts, get(f"{prefix}.feed_forward.gate.weight"), args.moe, ops)
    else:
        ffn = feed_forward(f"{prefix}.feed_forward")
    norms = (RMSNorm(get(f"{prefix}.{name}.weight"), args.norm_eps, ops) for name in ("attention_norm", "ffn_norm"))
    attention_norm, ffn_norm = norms
    return TransformerBlock(attention, ffn, attention_norm, ffn_norm, ops)
