"""Blocks whose four-bit numbers are indices of non-uniform levels, denser around zero: IQ4_NL and IQ4_XS."""

from __future__ import annotations

import numpy as np

from mistral.ops.blocks.legacy import Bytes, Wide, half, nibbles

LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def iq4_nl(blocks: Bytes) -> Wide:
    """18 bytes: d, 32 numbers of four bits in the order of Q4_0."""
    return half(blocks, 0) * LEVELS[nibbles(blocks[:, 2:])]


def iq4_xs(blocks: Bytes) -> Wide:
    """136 bytes: d, the upper two bits of eight scales, the lower four, 256 numbers of four bits.

    A weight of group g, 32 weights, is (d * (scale - 32)) * level.
    """
    count = len(blocks)
    upper = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    lower = blocks[:, 4:8, None] >> np.array([0, 4], np.uint8) & 15
    scales = (lower.reshape(count, 8) | upper.astype(np.uint8) << 4).astype(np.float32) - 32
    packed = blocks[:, 8:].reshape(count * 8, 16)
    levels = LEVELS[nibbles(packed)].reshape(count, 8, 32)
    wide: Wide = ((half(blocks, 0) * scales)[:, :, None] * levels).reshape(count, 256)
    return wide
