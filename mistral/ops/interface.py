"""The arithmetic of the model: one set of functions, so that a faster implementation slots in behind the same names.

A model is given its backend when it is built; there is no process-wide choice. Nothing here knows of the model: what
attention asks of a cache is the `AttentionView` below.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mistral.ops.blocks.block_quantized import BlockQuantized
from mistral.ops.float8 import Float8

if TYPE_CHECKING:
    from mindspore import Tensor


@dataclass(frozen=True)
class Weight:
    """A matrix (out, in) or vector: a float32 tensor, or on the native backend a note of where it lies."""

    data: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as in the checkpoint."""
        return tuple(self.data.shape)

    @property
    def dtype(self) -> str:
        """As the backend holds it: such as "float32", "bfloat16", "float8" or "Q4_K"."""
        found = self.data.dtype
        return found if isinstance(found, str) else str(found).lower()


@dataclass(frozen=True)
class Norm:
    """A root mean square normalisation: its weight (D,), and what is added to the mean square."""

    weight: Weight
    eps: float


@dataclass(frozen=True)
class Rotation:
    """How the queries and keys of a step's T tokens are turned: by the rotary embedding at their positions.

    cos, sin (T, d): each value twice, for the two elements of a pair. query_factors (T,): what queries are multiplied
    by after that; None: nothing.
    """

    cos: Tensor
    sin: Tensor
    query_factors: Tensor | None = None


class AttentionView(Protocol):
    """One layer's past and plan during one step of B rows, as attention sees them.

    `index` counts the rows of the step, from 0 to B - 1. A backend either goes row by row, with `extend` and `blocks`,
    or takes all rows at once, with the other fields, and then writes new keys and values into `stored` itself.
    """

    seqlens: Sequence[int]  # (B,) new tokens of each row; their sum is T
    before: Sequence[int]  # (B,) tokens that each row has seen before this step
    stored: Sequence[tuple[Tensor, Tensor] | None]  # (B,) keys and values (KV, slots, d) of each row; None: no cache
    window: int | None  # positions that a query sees, itself included; None: all

    def extend(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the t new keys and values (KV, t, d) of row `index`; return the S to score its queries against."""

    def blocks(self, index: int) -> Iterable[tuple[slice, slice, Tensor | None]]:
        """For each block of queries of row `index` that is scored at once: which of its t new tokens they are, against
        which of the S keys, and the mask to add to the scores, float32 (queries, keys); None adds nothing.
        """


class FusedOps(Protocol):
    """Whole transformer blocks in one operator. Weights are looked up once, when the handle of a block is made."""

    def block(
        self,
        attention_norm: Norm,
        projections: Sequence[Weight],
        window: int | None,
        ffn_norm: Norm,
        gate: Weight | None,
        experts: Sequence[Sequence[Weight]],
        experts_per_token: int,
    ) -> Any:
        """A handle of x + wo(attention(wq n, wk n, wv n)) = h, then h + feed_forward(rms_norm(h)), n = rms_norm(x).

        projections: wq, wk, wv, wo. experts: w1, w2, w3 of each; without a gate there is one, which all tokens use.
        """

    def run(self, blocks: Sequence[Any], x: Tensor, rotation: Rotation, views: Sequence[AttentionView]) -> Tensor:
        """The blocks of these handles one after the other, each with its own view: x (T, D) -> (T, D)."""

    def feed_forward_half(self, block: Any, x: Tensor) -> Tensor:
        """What comes after attention: h (T, D) -> h + feed_forward(rms_norm(h))."""


class Ops(Protocol):
    """What a backend provides; `mistral/ops/portable.py` is the definition of each function.

    Shape letters: T tokens of all rows laid end to end, D dim, F hidden_dim, H heads, KV key and value heads,
    d head_dim, V vocabulary, E experts, K experts per token.
    """

    name: str  # as users choose it, such as "native"
    SLOT_BYTES: int  # of each element in a cache
    fused: FusedOps | None  # for a backend that has blocks as one operator

    def weight(self, array: NDArray[Any] | Float8 | BlockQuantized) -> Weight:
        """A weight as this backend wants it, of float32, float16, bfloat16, 8-bit floats, or blocks."""

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """A host array on the device."""

    def embed(self, table: Weight, ids: NDArray[np.int64]) -> Tensor:
        """Rows `ids` (T,) of a (V, D) table -> (T, D)."""

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """x (T, in) times the transpose of weight (out, in) -> (T, out)."""

    def rms_norm(self, x: Tensor, weight: Weight, eps: float) -> Tensor:
        """x (T, D) over its root mean square, times weight (D,)."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation, view: AttentionView) -> Tensor:
        """Attention of a step: q (T, H * d), k and v (T, KV * d), before they are turned -> (T, H * d).

        `view` is written.
        """

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
        """Rows `indices` (n,) of x (T, D) -> (n, D)."""

    def weighted_sum(self, x: Tensor, weights: Tensor) -> Tensor:
        """Sum over K of x (T, K, D) times weights (T, K) -> (T, D)."""

    def split(self, x: Tensor, sizes: Sequence[int], axis: int) -> Sequence[Tensor]:
        """x cut along an axis into parts of these sizes."""

    def concat(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        """Tensors joined along an axis."""
