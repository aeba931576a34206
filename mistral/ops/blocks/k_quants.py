"""Blocks of 256 weights whose groups have scales in units of the block's scale: Q4_K, Q5_K and Q6_K.

Q4_K and Q5_K have eight groups of 32: a weight is (d * scale) * number - (dmin * minimum), with float16 d and dmin and
scales and minima of six bits. Q6_K has sixteen groups of 16: (d * scale) * (number - 32), with scales of eight bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mistral.ops.blocks.legacy import Bytes, Wide, half


def scales_and_minima(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The eight scales and eight minima (n, 8), of six bits each, in twelve bytes (n, 12).

    Bytes 0 to 3 have the first four scales, 4 to 7 the first four minima, in their lower six bits. Bytes 8 to 11 have
    the lower four bits of the other scales below and of the other minima above; the upper two bits of these are those
    that bytes 0 to 7 have left.
    """
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 2 & 48)], axis=1)
    minima = np.concatenate([second & 63, (rest >> 4) | (second >> 2 & 48)], axis=1)
    return scales, minima


def q4_k(blocks: Bytes) -> Wide:
    """144 bytes: d, dmin, scales and minima, 256 numbers of four bits."""
    return _by_groups(blocks, _group_nibbles(blocks[:, 16:]))


def q5_k(blocks: Bytes) -> Wide:
    """176 bytes: d, dmin, scales and minima, the fifth bits of all numbers, the lower four."""
    bits = np.arange(8, dtype=np.uint8)[:, None]
    fifth = (blocks[:, None, 16:48] >> bits & np.uint8(1)) << np.uint8(4)  # (n, 8, 32): group g has bit g of byte j
    return _by_groups(blocks, _group_nibbles(blocks[:, 48:]) | fifth)


def q6_k(blocks: Bytes) -> Wide:
    """210 bytes: the lower four bits of 256 numbers, the upper two, sixteen scales, d.

    Each half of a block, 128 weights, has 64 bytes of the first and 32 of the second kind.
    """
    count = len(blocks)
    low = blocks[:, :128].reshape(count, 2, 1, 64)
    lower = np.concatenate([low & 15, low >> 4], axis=2).reshape(count, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    upper = (blocks[:, 128:192].reshape(count, 2, 1, 32) >> shifts & 3) << 4
    numbers = (lower | upper).astype(np.float32).reshape(count, 16, 16) - 32
    scales = half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    wide: Wide = (scales[:, :, None] * numbers).reshape(count, 256)
    return wide


def _group_nibbles(packed: Bytes) -> NDArray[np.uint8]:
    """The four-bit numbers (n, 8, 32) in 128 bytes: 32 bytes have one group below and the next above."""
    pairs = packed.reshape(len(packed), 4, 1, 32)
    groups: NDArray[np.uint8] = np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(len(packed), 8, 32)
    return groups


def _by_groups(blocks: Bytes, numbers: NDArray[np.uint8]) -> Wide:
    scales, minima = scales_and_minima(blocks[:, 4:16])
    factors = (half(blocks, 0) * scales.astype(np.float32))[:, :, None]
    offsets = (half(blocks, 2) * minima.astype(np.float32))[:, :, None]
    wide: Wide = (factors * numbers.astype(np.float32) - offsets).reshape(len(blocks), 256)
    return wide
