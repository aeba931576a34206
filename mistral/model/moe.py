"""Sparse mixture of experts (Mixtral, arXiv:2401.04088): a router sends each token to a few experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mistral.model.args import MoeArgs
from mistral.model.layers import FeedForward
from mistral.ops.interface import Ops, Weight

if TYPE_CHECKING:
    from mindspore import Tensor


@dataclass(frozen=True)
class Dispatch:
    """Which token goes to which expert: P = T * K pairs of a token and one of its experts, sorted by expert.

    tokens (P,): the token of each pair. bounds (E + 1,): pairs bounds[e] to bounds[e + 1] belong to expert e.
    inverse (P,): the index, in sorted order, of pair t * K + j (token t, its j-th expert).
    """

    tokens: NDArray[np.int64]
    bounds: NDArray[np.int64]
    inverse: NDArray[np.int64]

    @classmethod
    def from_chosen(cls, chosen: NDArray[np.int64], num_experts: int) -> Dispatch:
        """From the chosen experts (T, K) of each token. No token is dropped, however uneven the routing."""
        pairs = chosen.reshape(-1)
        order = np.argsort(pairs, kind="stable")
        bounds = np.searchsorted(pairs[order], np.arange(num_experts + 1))
        return cls(order // chosen.shape[1], bounds, np.argsort(order, kind="stable"))


class MoeLayer:
    """Router and experts of one layer."""

    def __init__(self, experts: Sequence[FeedForward], gate: Weight, args: MoeArgs, ops: Ops) -> None:
        self.experts, self.gate, self.args, self.ops = experts, gate, args, ops

    def __call__(self, x: Tensor) -> Tensor:
        """x (T, D) -> (T, D). The weights of an expert that no token chose are not read."""
        weights, chosen = self.ops.route(self.ops.score(x, self.gate), self.args.num_experts_per_tok)
        dispatch = Dispatch.from_chosen(chosen, self.args.num_experts)
        pairs = self.ops.take(x, dispatch.tokens)  # (P, D)
        counts = np.diff(dispatch.bounds)
        busy = [int(e) for e in np.flatnonzero(counts)]
        parts = self.ops.split(pairs, [int(counts[e]) for e in busy], 0)
        parts = [self.experts[e](part) for e, part in zip(busy, parts, strict=True)]
        served = self.ops.take(self.ops.concat(parts, 0), dispatch.inverse)  # (P, D), each token's K results in turn
        return self.ops.weighted_sum(served.reshape(*chosen.shape, -1), weights)
