"""Weights in blocks: every bit of them as the gguf package, the formats' own implementation in NumPy, widens them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mistral.ops.blocks import block_quantized
from mistral.ops.blocks.block_quantized import SCALES, BlockQuantized, byte_shape
from mistral.ops.blocks.kind import BLOCK_KINDS, BY_NAME, KINDS


def matrix(name: str, rows: int, blocks: int, seed: int) -> BlockQuantized:
    """A matrix of random bytes: scales of every kind are among them, NaN and infinity too."""
    kind = BY_NAME[name]
    values = np.random.default_rng(seed).integers(0, 256, (rows, blocks * kind.nbytes), dtype=np.uint8)
    return BlockQuantized(values, kind, (rows, blocks * kind.weights))


def oracle(blocks: BlockQuantized) -> NDArray[np.float32]:
    """What the gguf package makes of them."""
    with np.errstate(invalid="ignore", over="ignore"):
        return quants.dequantize(blocks.values, GGMLQuantizationType[blocks.kind.name]).reshape(blocks.shape)


@pytest.mark.parametrize("name", BLOCK_KINDS)
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 4), seed=st.integers(0, 1 << 32))
def test_random_blocks_are_widened_to_the_same_bits(name: str, rows: int, blocks: int, seed: int) -> None:
    made = matrix(name, rows, blocks, seed)
    ours, theirs = made.dense(), oracle(made)
    numbers = ~np.isnan(theirs)
    assert np.array_equal(np.isnan(ours), ~numbers)
    assert np.array_equal(ours[numbers].view(np.uint32), theirs[numbers].view(np.uint32))


@pytest.mark.parametrize("name", BLOCK_KINDS)
def test_every_number_under_scales_of_every_kind(name: str) -> None:
    """Zero of both signs, subnormal, largest, infinite and NaN scales, over blocks that hold every byte."""
    kind = BY_NAME[name]
    scales = np.array([0, 0x8000, 1, 0x3FF, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0x3C00], "<u2")
    values = np.resize(np.arange(256, dtype=np.uint8), (len(scales), 8 * kind.nbytes)).reshape(-1, kind.nbytes)
    for at in SCALES[name]:
        values[:, at : at + 2] = np.repeat(scales, 8).view(np.uint8).reshape(-1, 2)
    made = BlockQuantized(values.reshape(len(scales), -1), kind, (len(scales), 8 * kind.weights))
    ours, theirs = made.dense(), oracle(made)
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))
    assert np.array_equal(np.nan_to_num(ours).view(np.uint32), np.nan_to_num(theirs).view(np.uint32))
    assert made.bad_blocks() == 3 * 8


def test_a_matrix_is_in_blocks_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts, of some rows each, make up the whole; the last has fewer."""
    made = matrix("Q4_K", 7, 2, seed=5)
    whole = made.dense()
    monkeypatch.setattr(block_quantized, "AT_ONCE", 2 * 512)
    assert np.array_equal(made.dense().view(np.uint32), whole.view(np.uint32))
    assert not whole.flags.writeable


def test_types_have_the_numbers_and_sizes_of_the_format() -> None:
    theirs = {number.value: (number.name, *size) for number, size in gguf.GGML_QUANT_SIZES.items()}
    assert {number: (kind.name, kind.weights, kind.nbytes) for number, kind in KINDS.items()} == theirs
    assert byte_shape(BY_NAME["Q6_K"], (3, 4, 512)) == (12, 420)
