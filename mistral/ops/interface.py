"""The arithmetic of the model: one set of functions, which each backend implements.

A model gets its backend when it is built; there is no process-wide choice. Nothing here depends on the model: attention
sees its cache through the `AttentionView` below.
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
    """A matrix (out, in) or vector. `data` is a float32 tensor, or on the native backend a handle of mapped memory."""

    data: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as in the checkpoint."""
        return tuple(self.data.shape)

    @property
    def dtype(self) -> str:
        """The type that the backend holds, such as "float32", "bfloat16", "float8" or "Q4_K"."""
        found = self.data.dtype
        return found if isinstance(found, str) else str(found).lower()


@dataclass(frozen=True)
class Norm:
    """A root mean square normalisation: its weight (D,), and the eps that is added to the mean square."""

    weight: Weight
    eps: float


@dataclass(frozen=True)
class Rotation:
    """The rotary embedding of a step's T tokens, by which their queries and keys are rotated.

    cos, sin (T, d): each value twice, for the two elements of a pair. query_factors (T,): factors of the rotated
    queries; None: 1.
    """

    cos: Tensor
    sin: Tensor
    query_factors: Tensor | None = None


class AttentionView(Protocol):
    """The cache of one layer during one step of B rows, as attention sees it.

    `index` is the number of a row in the step, from 0 to B - 1. A backend either computes row by row, with `extend` and
    `blocks`, or all rows at once, with the other fields; then it writes new keys and values into `stored` itself.
    """

    seqlens: Sequence[int]  # (B,) new tokens of each row; their sum is T
    before: Sequence[int]  # (B,) tokens that each row has seen before this step
    stored: Sequence[tuple[Tensor, Tensor] | None]  # (B,) keys and values (KV, slots, d) of each row; None: no cache
    window: int | None  # positions that a query sees, itself included; None: all

    def extend(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the t new keys and values (KV, t, d) of row `index` -> the S keys and values (KV, S, d) to score."""

    def blocks(self, index: int) -> Iterable[tuple[slice, slice, Tensor | None]]:
        """For each block of queries of row `index` that is scored at once: the slice of its t new tokens, the slice of
        the S keys, and the mask to add to the scores, float32 (queries, keys); None adds nothing.
        """


class FusedOps(Protocol):
    """Whole transformer blocks in one operator. The weights of a block are passed once, when its handle is made."""

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
        """A handle of a block: n = rms_norm(x), h = x + wo(attention(wq n, wk n, wv n)), h + feed_forward(rms_norm(h)).

        projections: wq, wk, wv, wo. experts: w1, w2, w3 of each; without a gate there is one, which all tokens use.
        """

    def run(self, blocks: Sequence[Any], x: Tensor, rotation: Rotation, views: Sequence[AttentionView]) -> Tensor:
        """The blocks of these handles one after the other, each with its own view: x (T, D) -> (T, D)."""

    def feed_forward_half(self, block: Any, x: Tensor) -> Tensor:
        """The part of a block after attention: h (T, D) -> h + feed_forward(rms_norm(h))."""


class Ops(Protocol):
    """What a backend provides; `mistral/ops/portable.py` is the definition of each function.

    Shape letters: T tokens of all rows, row after row, D dim, F hidden_dim, H heads, KV key and value heads,
    d head_dim, V vocabulary, E experts, K experts per token.
    """

    name: str  # the name in `--backend`, such as "native"
    SLOT_BYTES: int  # bytes of each element in a cache
    fused: FusedOps | None  # whole blocks in one operator; None for a backend without them

    def weight(self, array: NDArray[Any] | Float8 | BlockQuantized) -> Weight:
        """An array in this backend's own form, from float32, float16, bfloat16, 8-bit floats, or blocks."""

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """A host array on the device."""

    def embed(self, table: Weight, ids: NDArray[np.int64]) -> Tensor:
        """Rows `ids` (T,) of a (V, D) table -> (T, D)."""

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """x (T, in) times the transpose of weight (out, in) -> (T, out)."""

    def rms_norm(self, x: Tensor, weight: Weight, eps: float) -> Tensor:
        """x (T, D) over its root mean square, times weight (D,)."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation, view: AttentionView) -> Tensor:
        """Attention of a step: q (T, H * d), k and v (T, KV * d), before rotation -> (T, H * d).

        The new keys and values are stored in the cache of `view`.
        """

    def new_slots(self, shape: tuple[int, ...]) -> Tensor:
        """Empty slots (KV, slots, d) of a cache, with `SLOT_BYTES` bytes for each element."""

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, of one shape."""

    def feed_forward(self, x: Tensor, w1: Weight, w2: Weight, w3: Weight) -> Tensor:
        """w2(silu(w1 x) * w3 x), x (T, D)."""

    def score(self, x: Tensor, gate: Weight) -> Tensor:
        """x (T, D) times the transpose of a router (E, D) -> (T, E); x is not rounded."""

    def route(self, logits: Tensor, experts_per_token: int) -> tuple[Tensor, NDArray[np.int64]]:
        """Softmax over the K largest of logits (T, E) -> weights (T, K) and, on the host, their indices (T, K)."""

    def take(self, x: Tensor, indices: NDArray[np.int64]) -> Tensor:
        """Rows `indices` (n,) of x (T, D) -> (n, D)."""

    def weighted_sum(self, x: Tensor, weights: Tensor) -> Tensor:
        """Sum over K of x (T, K, D) times weights (T, K) -> (T, D)."""

    def split(self, x: Tensor, sizes: Sequence[int], axis: int) -> Sequence[Tensor]:
        """x cut along an axis into parts of these sizes."""

    def concat(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        """Tensors joined along an axis."""
