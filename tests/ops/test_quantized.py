"""What 8 and 4 bits stand for, read by a second hand, and what they lose."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from mistral.errors import InputError
from mistral.ops.quantize import quantize_array
from mistral.ops.quantized import LEVELS, Quantized, stored_shapes

Array = npt.NDArray[np.float32]
SHAPES = [(1, 1), (5, 1), (1, 300), (3, 31), (4, 32), (7, 33), (2, 128), (3, 129), (9, 160)]


def weights(*shape: int, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.02).astype(np.float32)


def loss(found: Array, wanted: Array) -> float:
    """Relative root mean square error."""
    return float(np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean()))


def significant(number: int) -> int:
    """The nearest whole number of 8 significant bits, ties to even."""
    unit = 1 << max(0, abs(number).bit_length() - 8)
    return round(number / unit) * unit


def read_by_hand(q: Quantized) -> Array:
    """Each weight by itself, from the bits."""
    out, inner = q.shape
    found = np.zeros(q.shape, np.float32)
    for n in range(out):
        unit = 2.0 ** (int(q.exponents[n]) - 138)
        for k in range(inner):
            scale = int(q.scales[n, k // 32])
            if q.bits == 8:
                found[n, k] = int(q.values[n, k]) * 2 ** min(scale % 8, 4) * unit
                continue
            word = k // 128 * 32 + k % 32
            bits = int(q.values[n, 2 * word]) | int(q.values[n, 2 * word + 1]) << 8
            size = 2.0 ** ((scale % 128 - 127) / 8) * (-16 if scale >= 128 else 16)
            found[n, k] = significant(round(LEVELS[bits >> 4 * (k // 32 % 4) & 15] * size)) * unit
    return found


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_bits_mean_what_the_format_says(bits: int, shape: tuple[int, int]) -> None:
    array = weights(*shape)
    q = quantize_array(array, bits)
    assert (q.values.shape, q.scales.shape) == stored_shapes(bits, *shape)
    assert np.array_equal(q.dense(), read_by_hand(q))
    assert np.array_equal(q.dense(), q.dense().astype(ml_dtypes.bfloat16).astype(np.float32))
    assert np.abs(q.dense() - array).max() <= np.abs(array).max() * (0.01 if bits == 8 else 0.15)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bits", [8, 4])
def test_other_dtypes_are_quantized_as_float32_would_be(bits: int, dtype: npt.DTypeLike) -> None:
    array = weights(6, 100).astype(dtype)
    found, wide = quantize_array(array, bits), quantize_array(array.astype(np.float32), bits)
    assert np.array_equal(found.dense(), wide.dense())


def q4_0(array: Array) -> Array:
    """llama.cpp's 4-bit format: groups of 32, the largest value is -8 steps of a float16."""
    groups = array.reshape(-1, 32)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(1)[:, None], 1)
    step = (largest / -8).astype(np.float16).astype(np.float32)
    return np.asarray((np.clip(np.floor(groups / step + 8.5), 0, 15) - 8) * step, np.float32).reshape(array.shape)


@pytest.mark.parametrize("kind", ["normal", "heavy tails"])
def test_four_bits_lose_less_than_those_of_others(kind: str) -> None:
    """In 4.25 bits a weight, with its scales, where the other takes 4.5."""
    array = weights(400, 512)
    if kind == "heavy tails":
        array *= (1 / np.sqrt(np.random.default_rng(1).chisquare(5, array.shape) / 5)).astype(np.float32)
    q = quantize_array(array, 4)
    assert loss(q.dense(), array) < 0.9 * loss(q4_0(array), array)
    assert q.nbytes * 8 / array.size < 4.27


def test_eight_bits_lose_at_most_half_a_step() -> None:
    array = weights(50, 256)
    q = quantize_array(array, 8)
    steps = np.repeat(2.0**q.scales, 32, 1) * 2.0 ** (q.exponents.astype(np.float64) - 138)[:, None]
    inside = np.abs(array) <= 127 * steps  # the largest of a group may be just above
    assert (np.abs(q.dense() - array)[inside] <= steps[inside] / 2).all()
    assert loss(q.dense(), array) < 0.008


@pytest.mark.parametrize("bits", [8, 4])
def test_strange_weights_stay_finite(bits: int) -> None:
    array = weights(8, 96)
    array[0] = 0
    array[1, :32] = 0
    array[2] = 1e-42
    array[3] = 3e38
    array[4, 5] = -1e30
    array[5] = -array[5].max()
    found = quantize_array(array, bits).dense()
    assert np.isfinite(found).all()
    assert np.abs(found[0]).max() < 1e-30
    assert np.abs(found[2]).max() < 1e-30
    assert loss(found[6:], array[6:]) < 0.1
    assert np.allclose(found[5], array[5], rtol=0.05)
    assert np.isclose(found[4, 5], -1e30, rtol=0.1)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bits: int, value: float) -> None:
    array = weights(4, 40)
    array[1, 39] = array[3, 0] = value
    with pytest.raises(InputError, match="layer 5: 2 of its values are NaN or infinite"):
        quantize_array(array, bits, "layer 5")
