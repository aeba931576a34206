"""The arithmetic of the model: one set of functions, so that a faster implementation slots in behind the same names.

A model is given its backend when it is built; there is no process-wide choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mistral.ops.quantized import Quantized

if TYPE_CHECKING:
    from mindspore import Tensor

    from mistral.model.kv_cache import CacheView
    from mistral.model.layers import TransformerBlock


@dataclass(frozen=True)
class Weight:
    """A matrix (out, in) or vector: a float32 tensor, or on the native backend a note of where it lies."""

    data: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as in the checkpoint."""
        return tuple(self.data.shape)


class Ops(Protocol):
    """What a backend provides; `mistral/ops/portable.py` is the definition of each function.

    Shape letters: T tokens of all rows laid end to end, D dim, F hidden_dim, H heads, KV key and value heads,
    d head_dim, V vocabulary, E experts, K experts per token.
    """

    SLOT_BYTES: int

    def weight(self, array: NDArray[Any] | Quantized) -> Weight:
        """A weight as this backend wants it, from an array of float32, float16 or bfloat16, or of 8 or 4 bits."""

    def embed(self, table: Weight, ids: NDArray[np.int64]) -> Tensor:
        """Rows `ids` (T,) of a (V, D) table -> (T, D)."""

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """x (T, in) times the transpose of weight (out, in) -> (T, out)."""

    def rms_norm(self, x: Tensor, weight: Weight, eps: float) -> Tensor:
        """x (T, D) over its root mean square, times weight (D,)."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, view: CacheView) -> Tensor:
        """Attention of a step: q (T, H * d), k and v (T, KV * d), angles (T, d) -> (T, H * d); `view` is written."""

    def fuse(self, block: TransformerBlock) -> Callable[[Tensor, Tensor, Tensor, CacheView], Tensor]:
        """A faster form of a block, called like it and with the same result, or the block itself."""

    def new_slots(self, shape: tuple[int, ...]) -> Tensor:
        """Empty slots (KV, slots, d) of a cache, `SLOT_BYTES` for each element."""

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, of one shape."""

    def feed_forward(self, x: Tensor, w1: Weight, w2: Weight, w3: Weight) -> Tensor:
        """w2(silu(w1 x) * w3 x), x (T, D)."""

    def score(self, x: Tensor, gate: Weight) -> Tensor:
        """x (T, D) times the transpose of a router (E, D) -> (T, E), in full precision."""

    def route(self, logits: Tensor, experts_per_token: int) -> tuple[Tensor, NDArray[np.int64]]:
        """Softmax over the K largest of logits (T, E): their weights (T, K) and, on the host, their indices (T, K)."""

    def take(self, x: Tensor, indices: NDArray[np.int64]) -> Tensor:
        """Rows `indices` of x."""

    def weighted_sum(self, x: Tensor, weights: Tensor) -> Tensor:
        """Sum over K of x (T, K, D) times weights (T, K) -> (T, D)."""

    def split(self, x: Tensor, sizes: Sequence[int], axis: int) -> Sequence[Tensor]:
        """x cut along an axis into parts of these sizes."""

    def concat(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        """Tensors joined along an axis."""

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """A host array on the device."""
