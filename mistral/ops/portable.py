"""The readable definition of every function of a backend, in MindSpore operators that exist on CPU and on Ascend.

Everything is float32: on a CPU it is the only dtype for which MindSpore's own operators are both complete and fast.
Elementwise operators get operands of equal shape: on a CPU, broadcasting takes eight times as long as `tile` and the
operator on its result.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from mistral.ops.blocks.block_quantized import BlockQuantized
from mistral.ops.float8 import Float8
from mistral.ops.interface import AttentionView, FusedOps, Rotation, Weight

name = "portable"
SLOT_BYTES = 4  # bytes of each element in a cache
fused: FusedOps | None = None  # a block is composed of the functions below
# A weight is stored (out, in). The functional `dense` copies its transpose at every call; this operator does not.
_matmul_transposed = ops.MatMul(transpose_b=True)
_batch_matmul = ops.BatchMatMul()
_batch_matmul_transposed = ops.BatchMatMul(transpose_b=True)


def weight(array: NDArray[Any] | Float8 | BlockQuantized) -> Weight:
    """A float32 weight. float32 input is used in place (a memory map stays one); other types are widened."""
    if isinstance(array, Float8 | BlockQuantized):
        array = array.dense()
    if array.dtype.name == "bfloat16":  # bfloat16 is the upper half of a float32
        wide = np.ascontiguousarray(array).view(np.uint16).astype(np.uint32)
        array = np.left_shift(wide, 16, out=wide).view(np.float32)
    return Weight(Tensor.from_numpy(np.ascontiguousarray(array, np.float32)))


def tensor(array: NDArray[Any]) -> Tensor:
    """A host array on the device."""
    return Tensor.from_numpy(np.ascontiguousarray(array))


def embed(table: Weight, ids: NDArray[np.int64]) -> Tensor:
    """Rows `ids` (T,) of a (V, D) table -> (T, D)."""
    return ops.gather(table.data, tensor(ids.astype(np.int32)), 0)


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x (T, in) times the transpose of weight (out, in) -> (T, out)."""
    return _matmul_transposed(x, weight.data)


def rms_norm(x: Tensor, weight: Weight, eps: float) -> Tensor:
    """x (T, D) over its root mean square, times weight (D,) (arXiv:1910.07467)."""
    tokens, dim = x.shape
    scale = ops.rsqrt(ops.mean(ops.square(x), -1, True) + eps)  # (T, 1)
    return x * ops.tile(scale, (1, dim)) * ops.tile(weight.data.reshape(1, dim), (tokens, 1))


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each interleaved pair of x (T, heads, d) by its angle (RoFormer, arXiv:2104.09864) -> (T, heads, d).

    cos and sin are (T, d), each value twice, for the two elements of a pair: (a, b) becomes
    (a cos - b sin, b cos + a sin). (a, b) -> (-b, a) is a product with a matrix of 0, 1 and -1, which is exact.
    """
    tokens, heads, head_dim = x.shape
    quarter = ops.matmul(x.reshape(tokens * heads, head_dim), tensor(_quarter_turn(head_dim))).reshape(tokens, -1)
    rotated = x.reshape(tokens, -1) * ops.tile(cos, (1, heads)) + quarter * ops.tile(sin, (1, heads))
    return rotated.reshape(tokens, heads, head_dim)


@functools.cache
def _quarter_turn(head_dim: int) -> NDArray[np.float32]:
    """The (d, d) matrix that takes each pair (a, b) of a row to (-b, a)."""
    return np.kron(np.eye(head_dim // 2), np.array([[0, 1], [-1, 0]])).astype(np.float32)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Grouped-query attention of one sequence (arXiv:2305.13245).

    q (T, H, d); k and v (KV, S, d); mask (T, S) is added to the scores, None adds nothing. Returns (T, H, d).
    Query head h uses key head h // (H / KV): the queries of a group are stacked, so keys are never copied.
    """
    tokens, heads, head_dim = q.shape
    kv_heads, keys = k.shape[0], k.shape[1]
    group = heads // kv_heads
    grouped = q.reshape(tokens, kv_heads, group, head_dim).transpose(1, 2, 0, 3)  # (KV, H / KV, T, d)
    grouped = grouped.reshape(kv_heads, group * tokens, head_dim) * (1 / math.sqrt(head_dim))
    scores = _batch_matmul_transposed(grouped, k)  # (KV, H / KV * T, S)
    if mask is not None:
        scores = (scores.reshape(heads, tokens, keys) + ops.tile(mask, (heads, 1, 1))).reshape(
            kv_heads, group * tokens, keys
        )
    out = _batch_matmul(ops.softmax(scores, -1), v).reshape(kv_heads, group, tokens, head_dim)
    return out.transpose(2, 0, 1, 3).reshape(tokens, heads, head_dim)


def attention(q: Tensor, k: Tensor, v: Tensor, rotation: Rotation, view: AttentionView) -> Tensor:
    """Attention of a step: each row's queries over its own past and new keys, which `view` stores and returns.

    q (T, H * d), k and v (T, KV * d), before the rotary embedding. Returns (T, H * d).
    """
    cos, sin = rotation.cos, rotation.sin
    tokens, head_dim = cos.shape
    q = rope(q.reshape(tokens, -1, head_dim), cos, sin)
    if rotation.query_factors is not None:
        q = q * ops.tile(rotation.query_factors.reshape(tokens, 1, 1), (1, *q.shape[1:]))
    k = rope(k.reshape(tokens, -1, head_dim), cos, sin).transpose(1, 0, 2)  # (KV, T, d)
    v = v.reshape(tokens, -1, head_dim).transpose(1, 0, 2)
    parts = []
    per_row = zip(split(q, view.seqlens, 0), split(k, view.seqlens, 1), split(v, view.seqlens, 1), strict=True)
    for index, (queries, new_keys, new_values) in enumerate(per_row):
        keys, values = view.extend(index, new_keys, new_values)  # (KV, S, d)
        for tokens_of_block, keys_of_block, mask in view.blocks(index):
            seen = _part(keys, 1, keys_of_block), _part(values, 1, keys_of_block)
            parts.append(attend(_part(queries, 0, tokens_of_block), *seen, mask))
    return concat(parts, 0).reshape(tokens, -1)


def _part(x: Tensor, axis: int, span: slice) -> Tensor:
    """A slice of x along axis 0 or 1; x itself, without running an operator, if that is all of it."""
    if span == slice(0, x.shape[axis]):
        return x
    return x[span] if axis == 0 else x[:, span]


def new_slots(shape: tuple[int, ...]) -> Tensor:
    """Empty slots (KV, slots, d) of a cache, with `SLOT_BYTES` bytes for each element."""
    return tensor(np.zeros(shape, np.float32))


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, of one shape."""
    return x + y


def feed_forward(x: Tensor, w1: Weight, w2: Weight, w3: Weight) -> Tensor:
    """The gated feed-forward w2(silu(w1 x) * w3 x) (arXiv:2002.05202), x (T, D)."""
    return linear(ops.silu(linear(x, w1)) * linear(x, w3), w2)


def score(x: Tensor, gate: Weight) -> Tensor:
    """x (T, D) times the transpose of a router (E, D) -> (T, E)."""
    return linear(x, gate)


def route(logits: Tensor, experts_per_token: int) -> tuple[Tensor, NDArray[np.int64]]:
    """Softmax over the K largest of logits (T, E), arXiv:2401.04088 -> weights (T, K); indices (T, K) on the host."""
    largest, chosen = ops.topk(logits, experts_per_token)
    return ops.softmax(largest, -1), chosen.asnumpy().astype(np.int64)


def take(x: Tensor, indices: NDArray[np.int64]) -> Tensor:
    """Rows `indices` (n,) of x (T, D) -> (n, D)."""
    return ops.gather(x, tensor(indices.astype(np.int32)), 0)


def weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """Sum over K of x (T, K, D) times weights (T, K) -> (T, D)."""
    return _batch_matmul(weights.reshape(x.shape[0], 1, x.shape[1]), x).reshape(x.shape[0], -1)


def split(x: Tensor, sizes: Sequence[int], axis: int) -> Sequence[Tensor]:
    """x cut along an axis into parts of these sizes."""
    return (x,) if len(sizes) == 1 else ops.split(x, list(sizes), axis)


def concat(tensors: Sequence[Tensor], axis: int) -> Tensor:
    """Tensors joined along an axis."""
    return tensors[0] if len(tensors) == 1 else ops.cat(tuple(tensors), axis)
