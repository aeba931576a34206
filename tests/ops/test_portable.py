"""Each operator of the portable backend against a plain NumPy formula, at edge sizes."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from mistral.model.rope import rope_angles
from mistral.ops import portable
from mistral.ops.interface import Ops
from tests.support.oracle import rotated

Array = npt.NDArray[np.float32]
SIZES = [1, 2, 7]


def assert_close(found: npt.ArrayLike, expected: npt.ArrayLike) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=2e-5, atol=2e-5)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_a_float32_weight_is_used_in_place(ops: Ops) -> None:
    array = random(3, 5)
    weight = ops.weight(array)
    assert weight.shape == (3, 5)
    array[1, 2] = 42
    assert weight.data.asnumpy()[1, 2] == 42


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_trap_20_every_narrow_value_is_in_blocks_exactly(ops: Ops, dtype: npt.DTypeLike) -> None:
    """All 65,536 bit patterns, so also what is too large for the other narrow dtype, subnormals, infinities, NaN."""
    narrow = np.arange(1 << 16, dtype=np.uint16).view(dtype).reshape(256, 256)
    wide = ops.weight(narrow).data.asnumpy()
    assert wide.dtype == np.float32
    with np.errstate(invalid="ignore"):
        assert np.array_equal(wide, narrow.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("cut", [np.s_[:, :], np.s_[1:4, 2:5], np.s_[::2, ::3]])
def test_strided_and_read_only_weights(ops: Ops, dtype: npt.DTypeLike, cut: Any) -> None:
    array = random(5, 7).astype(dtype).T[cut]
    array.flags.writeable = False
    assert np.array_equal(ops.weight(array).data.asnumpy(), array.astype(np.float32))


def test_a_vector_weight(ops: Ops) -> None:
    assert ops.weight(random(1)).shape == (1,)


@pytest.mark.parametrize("tokens", SIZES)
def test_embed_gives_the_rows_of_the_ids(ops: Ops, tokens: int) -> None:
    table, ids = random(9, 3), np.array([8, 0, 0, 5, 3, 8, 1])[:tokens]
    assert np.array_equal(ops.embed(ops.weight(table), ids).asnumpy(), table[ids])


@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize(("inner", "outer"), [(1, 1), (3, 5), (33, 17)])
def test_linear_is_x_times_the_transposed_weight(ops: Ops, tokens: int, inner: int, outer: int) -> None:
    x, w = random(tokens, inner), random(outer, inner, seed=1)
    assert_close(ops.linear(ops.tensor(x), ops.weight(w)).asnumpy(), x @ w.T)


@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize("dim", [1, 5, 16])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_rms_norm(ops: Ops, tokens: int, dim: int, eps: float) -> None:
    x, w = random(tokens, dim), random(dim, seed=1)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + eps) * w
    assert_close(ops.rms_norm(ops.tensor(x), ops.weight(w), eps).asnumpy(), expected)


def test_rms_norm_of_zeros_is_zero(ops: Ops) -> None:
    assert not ops.rms_norm(ops.tensor(np.zeros((2, 4), np.float32)), ops.weight(random(4)), 1e-5).asnumpy().any()


@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (3, 6), (2, 16)])
def test_rope_turns_neighbouring_elements(ops: Ops, tokens: int, heads: int, head_dim: int) -> None:
    x, positions = random(tokens, heads, head_dim), np.array([0, 1, 5, 70, 3, 131_072, 2])[:tokens]
    cos, sin = map(ops.tensor, rope_angles(positions, head_dim, 1e4))
    turned = portable.rope(ops.tensor(x), cos, sin).asnumpy()
    pairs = zip(positions, x.astype(np.float64), strict=True)
    expected = [[rotated(head, int(position), 1e4) for head in heads_at] for position, heads_at in pairs]
    assert_close(turned, expected)


def attention(q: Array, k: Array, v: Array, mask: npt.NDArray[np.bool_]) -> Array:
    """Grouped-query attention as it is written down: head by head, query by query."""
    tokens, heads, head_dim = q.shape
    out = np.zeros_like(q)
    for head in range(heads):
        of = head // (heads // k.shape[0])
        for token in range(tokens):
            scores = np.where(mask[token], k[of] @ q[token, head] / math.sqrt(head_dim), -np.inf)
            probs = np.exp(scores - scores.max())
            out[token, head] = probs / probs.sum() @ v[of]
    return out


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (6, 2), (3, 1), (3, 3)])
@pytest.mark.parametrize(("tokens", "keys"), [(1, 1), (1, 6), (5, 5), (3, 8)])
def test_attend_with_and_without_a_mask(ops: Ops, heads: int, kv_heads: int, tokens: int, keys: int) -> None:
    q, k, v = random(tokens, heads, 4), random(kv_heads, keys, 4, seed=1), random(kv_heads, keys, 4, seed=2)
    mask = np.random.default_rng(3).random((tokens, keys)) < 0.5
    mask[:, keys // 2] = True
    addend = ops.tensor(np.where(mask, 0, -1e30).astype(np.float32))
    tensors = ops.tensor(q), ops.tensor(k), ops.tensor(v)
    assert_close(portable.attend(*tensors, addend).asnumpy(), attention(q, k, v, mask))
    everything = attention(q, k, v, np.ones_like(mask))
    assert_close(portable.attend(*tensors, None).asnumpy(), everything)


def test_a_masked_key_has_no_weight_at_all(ops: Ops) -> None:
    q, k, v = random(1, 2, 4), random(1, 3, 4, seed=1), random(1, 3, 4, seed=2)
    mask = ops.tensor(np.array([[0, 0, -1e30]], np.float32))
    changed = v.copy()
    changed[:, 2] = 1e20
    before = portable.attend(ops.tensor(q), ops.tensor(k), ops.tensor(v), mask).asnumpy()
    assert np.array_equal(before, portable.attend(ops.tensor(q), ops.tensor(k), ops.tensor(changed), mask).asnumpy())


@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize(("dim", "hidden"), [(1, 1), (3, 5), (8, 3)])
def test_feed_forward(ops: Ops, tokens: int, dim: int, hidden: int) -> None:
    x, w1 = random(tokens, dim), random(hidden, dim, seed=1)
    w2, w3 = random(dim, hidden, seed=2), random(hidden, dim, seed=3)
    gate = x @ w1.T
    expected = (gate / (1 + np.exp(-gate)) * (x @ w3.T)) @ w2.T
    result = ops.feed_forward(ops.tensor(x), *map(ops.weight, (w1, w2, w3)))
    assert_close(result.asnumpy(), expected)


@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize(("experts", "chosen"), [(1, 1), (4, 2), (5, 5), (7, 1)])
def test_route_is_a_softmax_over_the_largest(ops: Ops, tokens: int, experts: int, chosen: int) -> None:
    logits = random(tokens, experts)
    weights, indices = ops.route(ops.tensor(logits), chosen)
    expected = np.argsort(-logits, axis=1)[:, :chosen]
    assert indices.dtype == np.int64
    assert np.array_equal(indices, expected)
    powers = np.exp(np.take_along_axis(logits, expected, 1))
    assert_close(weights.asnumpy(), powers / powers.sum(1, keepdims=True))


def test_take_repeats_reorders_and_may_take_nothing(ops: Ops) -> None:
    x = random(4, 3)
    for indices in ([0], [3, 0, 0, 2, 3], []):
        taken = ops.take(ops.tensor(x), np.array(indices, np.int64)).asnumpy()
        assert np.array_equal(taken, x[np.array(indices, np.int64)])


@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize("chosen", [1, 3])
def test_weighted_sum(ops: Ops, tokens: int, chosen: int) -> None:
    x, weights = random(tokens, chosen, 5), random(tokens, chosen, seed=1)
    result = ops.weighted_sum(ops.tensor(x), ops.tensor(weights)).asnumpy()
    assert_close(result, np.einsum("tkd,tk->td", x, weights))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("sizes", [(6,), (1, 5), (2, 1, 3)])
def test_split_and_concat_undo_each_other(ops: Ops, axis: int, sizes: tuple[int, ...]) -> None:
    x = random(6, 6, 2)
    parts = ops.split(ops.tensor(x), sizes, axis)
    bounds = np.cumsum((0, *sizes))
    expected = [x[a:b] if axis == 0 else x[:, a:b] for a, b in pairwise(bounds)]
    assert [part.shape for part in parts] == [part.shape for part in expected]
    assert all(np.array_equal(part.asnumpy(), array) for part, array in zip(parts, expected, strict=True))
    assert np.array_equal(ops.concat(parts, axis).asnumpy(), x)
