"""Weights of 8-bit floats: what the bytes mean, and that every loop of every build multiplies with just that."""

from __future__ import annotations

from typing import Any, cast

import ml_dtypes
import numpy as np
import pytest

from mistral.ops import portable
from mistral.ops.float8 import FLOAT8, Float8
from mistral.ops.interface import Ops
from mistral.ops.native import Native
from tests.ops.test_native import MACHINES, ROWS, assert_close, random, rounded

NAN = (0x7F, 0xFF)


@pytest.fixture(scope="module", params=MACHINES)
def native(ops: Ops, request: pytest.FixtureRequest) -> Ops:
    return cast(Ops, Native(machine=MACHINES[request.param]))


@pytest.fixture(scope="module", params=MACHINES)
def precise(ops: Ops, request: pytest.FixtureRequest) -> Ops:
    return cast(Ops, Native(precise=True, machine=MACHINES[request.param]))


@pytest.fixture(scope="module", params=[(name, exact) for name in MACHINES for exact in (False, True)], ids=str)
def either(ops: Ops, request: pytest.FixtureRequest) -> Ops:
    name, exact = request.param
    return cast(Ops, Native(precise=exact, machine=MACHINES[name]))


def weight(outer: int, inner: int, scale: float = 0.013) -> Float8:
    """A random matrix with every value there is but NaN."""
    numbers = np.random.default_rng(outer * inner).integers(0, 256, (outer, inner)).astype(np.uint8)
    numbers[np.isin(numbers, NAN)] = 0
    return Float8(numbers.view(FLOAT8), np.float32(scale))


def test_each_byte_stands_for_the_number_of_the_specification() -> None:
    values = Float8(np.arange(256, dtype=np.uint8).view(FLOAT8).reshape(1, 256), np.float32(1)).dense()[0]
    for byte in range(128):
        exponent, mantissa = byte >> 3, byte & 7
        number = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        if byte == 0x7F:
            assert np.isnan(values[byte]) and np.isnan(values[byte + 128])
        else:
            assert (values[byte], values[byte + 128]) == (number, -number)
    assert np.nanmax(values) == 448


@pytest.mark.parametrize("tokens", [1, 2, 5, 9, 40])
@pytest.mark.parametrize("inner", [254, 256, 300])
def test_every_value_is_multiplied_exactly(either: Ops, tokens: int, inner: int) -> None:
    """A token that is 1 in one place gives a column of the matrix, in every place of a vector."""
    codes = [code for code in range(256) if code not in NAN]
    w = Float8(np.resize(np.array(codes, np.uint8), (70, inner)).view(FLOAT8), np.float32(0.25))
    x = np.zeros((tokens, inner), np.float32)
    places = (np.arange(tokens) * 37 + 11) % inner
    x[np.arange(tokens), places] = 1
    found = either.linear(either.tensor(x), either.weight(w)).asnumpy()
    assert np.array_equal(found, w.dense()[:, places].T)


@pytest.mark.parametrize(("inner", "outer"), [(1, 1), (31, 5), (160, 130), (1100, 31)])
def test_products_are_those_of_the_dense_weights(native: Ops, inner: int, outer: int) -> None:
    for tokens in ROWS:
        x, w = random(tokens, inner), weight(outer, inner)
        found = native.linear(native.tensor(x), native.weight(w)).asnumpy()
        assert_close(found, rounded(x).astype(np.float64) @ w.dense().astype(np.float64).T, 1e-5)


@pytest.mark.parametrize("tokens", [1, 7, 33])
def test_precise_rounds_no_activation(precise: Ops, tokens: int) -> None:
    x, w = random(tokens, 300), weight(70, 300)
    found = precise.linear(precise.tensor(x), precise.weight(w)).asnumpy()
    assert_close(found, x.astype(np.float64) @ w.dense().astype(np.float64).T, 2e-5)


def test_a_token_gives_the_same_bits_alone_and_in_any_batch(native: Ops) -> None:
    x, w = random(45, 1100), native.weight(weight(70, 1100))
    together = native.linear(native.tensor(x), w).asnumpy()
    for first, count in ((0, 1), (3, 1), (7, 2), (11, 5), (20, 8), (30, 15)):
        part = native.linear(native.tensor(x[first : first + count]), w).asnumpy()
        assert np.array_equal(part, together[first : first + count])


@pytest.mark.parametrize("tokens", [1, 4, 20])
def test_a_weight_that_is_no_number_shows(native: Ops, tokens: int) -> None:
    w = weight(9, 64)
    w.values.view(np.uint8)[4, 10] = 0xFF
    found = native.linear(native.tensor(random(tokens, 64)), native.weight(w)).asnumpy()
    assert np.isnan(found[:, 4]).all() and np.isfinite(np.delete(found, 4, 1)).all()


def test_feed_forward_mixes_types_of_weights(native: Ops) -> None:
    x = random(5, 70)
    weights: list[Any] = [weight(48, 70), random(70, 48, seed=1).astype(ml_dtypes.bfloat16), weight(48, 70, 0.02)]
    found = native.feed_forward(native.tensor(x), *map(native.weight, weights)).asnumpy()
    expected = portable.feed_forward(portable.tensor(x), *map(portable.weight, weights)).asnumpy()
    assert_close(found, expected, 2e-2)
