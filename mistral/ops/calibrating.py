"""A backend for calibration: it records the sums of squares of the inputs of each matrix.

It passes every call on to another backend; products with matrices are recorded, and the gated feed-forward is split
into its products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mistral.ops.blocks.block_quantized import BlockQuantized
from mistral.ops.float8 import Float8
from mistral.ops.interface import AttentionView, FusedOps, Ops, Rotation, Weight

if TYPE_CHECKING:
    from mindspore import Tensor


class Calibrating:
    """The functions of `inner`; `squares` (in,) and `tokens` are the sums for the inputs of each named weight."""

    name = "calibrating"
    fused: FusedOps | None = None

    def __init__(self, inner: Ops) -> None:
        self.inner, self.SLOT_BYTES = inner, inner.SLOT_BYTES
        self.names = dict[int, str]()
        self.squares, self.tokens = dict[str, NDArray[np.float64]](), dict[str, int]()
        self._last: tuple[Tensor, NDArray[np.float64]] | None = None

    def named(self, name: str, weight: Weight) -> None:
        """Record the inputs of a weight, which must stay alive, under a name."""
        self.names[id(weight)] = name

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """x (T, in) times the transpose of weight (out, in) -> (T, out)."""
        name = self.names.get(id(weight))
        if name is not None:
            self.squares[name] = self.squares.get(name, 0.0) + self._squares_of(x)
            self.tokens[name] = self.tokens.get(name, 0) + x.shape[0]
        # a copy: what follows may ask for the shape of a result that the kernels have not finished
        return self.inner.tensor(self.inner.linear(x, weight).asnumpy())

    def _squares_of(self, x: Tensor) -> NDArray[np.float64]:
        """The sums of squares (in,) of x (T, in), computed once for successive matrices with the same input."""
        if self._last is None or self._last[0] is not x:
            self._last = x, np.square(x.asnumpy()).sum(0, dtype=np.float64)
        return self._last[1]

    def feed_forward(self, x: Tensor, w1: Weight, w2: Weight, w3: Weight) -> Tensor:
        """w2(silu(w1 x) * w3 x), x (T, D)."""
        gate = self.linear(x, w1).asnumpy()
        with np.errstate(over="ignore"):  # exp of a large number: the quotient is then 0, which is correct
            hidden = gate / (1 + np.exp(-gate)) * self.linear(x, w3).asnumpy()
        return self.linear(self.inner.tensor(hidden), w2)

    def weight(self, array: NDArray[Any] | Float8 | BlockQuantized) -> Weight:
        """A weight in the form of the inner backend."""
        return self.inner.weight(array)

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """A host array on the device."""
        return self.inner.tensor(array)

    def embed(self, table: Weight, ids: NDArray[np.int64]) -> Tensor:
        """Rows `ids` (T,) of a (V, D) table -> (T, D)."""
        return self.inner.embed(table, ids)

    def rms_norm(self, x: Tensor, weight: Weight, eps: float) -> Tensor:
        """x (T, D) over its root mean square, times weight (D,)."""
        return self.inner.rms_norm(x, weight, eps)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation, view: AttentionView) -> Tensor:
        """Attention of a step: q (T, H * d), k and v (T, KV * d), before rotation -> (T, H * d)."""
        return self.inner.attention(q, k, v, rotation, view)

    def new_slots(self, shape: tuple[int, ...]) -> Tensor:
        """Empty slots (KV, slots, d) of a cache."""
        return self.inner.new_slots(shape)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, of one shape."""
        return self.inner.add(x, y)

    def score(self, x: Tensor, gate: Weight) -> Tensor:
        """x (T, D) times the transpose of a router (E, D) -> (T, E)."""
        return self.inner.score(x, gate)

    def route(self, logits: Tensor, experts_per_token: int) -> tuple[Tensor, NDArray[np.int64]]:
        """Softmax over the K largest of logits (T, E) -> weights (T, K) and, on the host, their indices (T, K)."""
        return self.inner.route(logits, experts_per_token)

    def take(self, x: Tensor, indices: NDArray[np.int64]) -> Tensor:
        """Rows `indices` (n,) of x (T, D) -> (n, D)."""
        return self.inner.take(x, indices)

    def weighted_sum(self, x: Tensor, weights: Tensor) -> Tensor:
        """Sum over K of x (T, K, D) times weights (T, K) -> (T, D)."""
        return self.inner.weighted_sum(x, weights)

    def split(self, x: Tensor, sizes: Sequence[int], axis: int) -> Sequence[Tensor]:
        """x cut along an axis into parts of these sizes."""
        return self.inner.split(x, sizes, axis)

    def concat(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        """Tensors joined along an axis."""
        return self.inner.concat(tensors, axis)
