"""A transformer block in two operators of the native backend, where composing it would take about ten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mistral.ops.native import cache_arguments

if TYPE_CHECKING:
    from mindspore import Tensor

    from mistral.model.kv_cache import CacheView
    from mistral.model.layers import FeedForward, RMSNorm, TransformerBlock


class FusedBlock:
    """Called like the block it is made of, with the same result."""

    def __init__(self, block: TransformerBlock, library: Any) -> None:
        """`library`: the kernels as operators."""
        attention = block.attention
        self.block, self.library = block, library
        self.projections = handles(attention.wq, attention.wk, attention.wv, attention.wo)
        layer: Any = block.feed_forward
        self.mixture, self.feed_forward = None, list[Any]()
        if hasattr(layer, "experts"):
            experts = [expert_handles(expert) for expert in layer.experts]
            self.mixture = layer.gate.data.handle, experts, layer.args.num_experts_per_tok
        else:
            self.feed_forward = expert_handles(layer)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, view: CacheView) -> Tensor:
        """x (T, D) -> (T, D)."""
        first, second = norm_arguments(self.block.attention_norm), norm_arguments(self.block.ffn_norm)
        x = self.library.attention_block(x, *first, self.projections, cos, sin, *cache_arguments(view))
        if self.mixture:
            return self.library.mixture_block(x, *second, *self.mixture)
        return self.library.feed_forward_block(x, *second, self.feed_forward)


def handles(*weights: Any) -> list[Any]:
    """The kernels' handles of weights."""
    return [weight.data.handle for weight in weights]


def expert_handles(layer: FeedForward) -> list[Any]:
    """Of the weights of a feed-forward."""
    return handles(layer.w1, layer.w2, layer.w3)


def norm_arguments(norm: RMSNorm) -> tuple[Any, float]:
    """A normalisation as an operator takes it."""
    return norm.weight.data.handle, norm.eps
