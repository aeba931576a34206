"""Weights of 8 or 4 bits: groups of 32 along a row share a scale. What the bits mean is defined here.

Every weight they stand for is exactly a bfloat16, so it is the same weight whichever kernel multiplies with it.

8 bits is MXINT8 (Open Compute Project, Microscaling Formats, version 1.0): a weight is q / 64 * 2^(scale - 127).

4 bits is a table of 16 levels: with m = scale % 128, a weight is

    round_to_bfloat16(+-LEVELS[q] / 128 * 2^((m - 127) / 8)) * 2^(exponent - 127)

where scale >= 128 gives the minus and `exponent` belongs to the whole row. The levels are those that lose least of
normally distributed weights (Lloyd's iteration, with the best sign and scale for each group): they lie closer together
around zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

GROUP = 32  # weights that share a scale
BLOCK = 128  # weights of 4 bits in 32 words of 16 bits: nibble n of word j is weight 32 * n + j
LEVELS = (-127, -100, -79, -62, -47, -34, -21, -9, 2, 13, 25, 37, 50, 65, 82, 105)


@dataclass(frozen=True)
class Quantized:
    """A matrix (out, in) in 8 or 4 bits; rows are filled up with weights that meet no activation.

    values: (out, in rounded up to 32) int8 for 8 bits; (out, in rounded up to 128, halved) uint8 for 4 bits.
    scales: (out, values in a row / 32) uint8. exponents: (out,) uint8 for 4 bits, None for 8.
    """

    bits: int
    shape: tuple[int, int]
    values: NDArray[np.int8] | NDArray[np.uint8]
    scales: NDArray[np.uint8]
    exponents: NDArray[np.uint8] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all its parts."""
        return self.values.nbytes + self.scales.nbytes + (0 if self.exponents is None else self.exponents.nbytes)

    def dense(self) -> NDArray[np.float32]:
        """The weights (out, in) as float32."""
        if self.exponents is None:
            weights = np.ldexp(self.values.astype(np.float32), np.repeat(self.scales, GROUP, 1).astype(np.int32) - 133)
            return np.ascontiguousarray(weights[:, : self.shape[1]])
        words = self.values.reshape(self.shape[0], -1, BLOCK // 2).view("<u2")  # (out, blocks, 32)
        nibbles = np.stack([words >> 4 * n & 15 for n in range(4)], 2)  # (out, blocks, 4, 32)
        weights = scale_table()[self.scales.reshape(nibbles.shape[:3])[..., None], nibbles]
        weights = np.ldexp(weights.reshape(self.shape[0], -1), self.exponents.astype(np.int32)[:, None] - 127)
        return np.ascontiguousarray(weights[:, : self.shape[1]])


def scale_table() -> NDArray[np.float32]:
    """What each of 16 nibbles stands for under each of 256 scales: (256, 16), before a row's exponent."""
    scale = np.arange(256)
    sizes = np.where(scale < 128, 1, -1) * 2.0 ** ((scale % 128 - 127) / 8)
    table = sizes[:, None] * np.array(LEVELS) / 128
    return np.asarray(table.astype(np.float32).astype(ml_dtypes.bfloat16), np.float32)


def stored_shapes(bits: int, out: int, inner: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of `values` and `scales` of a matrix (out, inner)."""
    width = -(-inner // (GROUP if bits == 8 else BLOCK)) * (GROUP if bits == 8 else BLOCK)
    return (out, width if bits == 8 else width // 2), (out, width // GROUP)
