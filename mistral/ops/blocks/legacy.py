"""Blocks of 32 weights with one scale each: Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1.

A block starts with its scale d, a float16. A weight of Q8_0, Q4_0 or Q5_0 is d times an integer; of Q4_1 and Q5_1,
which have a second float16 m, it is d times an integer plus m. Of four-bit integers, byte j has weight j in its lower
and weight j + 16 in its upper half. Q5 has the fifth bits of all 32 weights in four bytes before these.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]  # (n, bytes of a block)
Wide = NDArray[np.float32]  # (n, weights of a block)


def half(blocks: Bytes, at: int) -> Wide:
    """The float16 at byte `at` of every block, as float32: (n, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def nibbles(packed: Bytes) -> Bytes:
    """The four-bit numbers in bytes (n, k): all lower halves, then all upper halves, (n, 2 k)."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def fifth_bits(blocks: Bytes, at: int) -> Bytes:
    """16 where a weight's bit in the four bytes from `at` is set, else 0: (n, 32)."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << np.uint8(4)


def q8_0(blocks: Bytes) -> Wide:
    """34 bytes: d, 32 signed 8-bit integers."""
    return half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def q4_0(blocks: Bytes) -> Wide:
    """18 bytes: d, 32 numbers of four bits, minus 8."""
    return half(blocks, 0) * (nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def q4_1(blocks: Bytes) -> Wide:
    """20 bytes: d, m, 32 numbers of four bits."""
    return half(blocks, 0) * nibbles(blocks[:, 4:]).astype(np.float32) + half(blocks, 2)


def q5_0(blocks: Bytes) -> Wide:
    """22 bytes: d, the fifth bits, the lower four, minus 16."""
    numbers = nibbles(blocks[:, 6:]) | fifth_bits(blocks, 2)
    return half(blocks, 0) * (numbers.astype(np.float32) - 16)


def q5_1(blocks: Bytes) -> Wide:
    """24 bytes: d, m, the fifth bits, the lower four."""
    numbers = nibbles(blocks[:, 8:]) | fifth_bits(blocks, 4)
    return half(blocks, 0) * numbers.astype(np.float32) + half(blocks, 2)
