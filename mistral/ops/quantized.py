"""Weights of 8 or 4 bits: groups of 32 along a row share a scale, and a row an exponent. What the bits mean is defined
here.

A weight is a whole number of at most 2032 times 2^(exponent - 138), where `exponent` belongs to its row. The number is,
in 8 bits, q * 2^shift, with a shift from 0 to 4 for each group: `scale % 8`, at most 4. In 4 bits it is an entry of a
table: with m = scale % 128,

    +-16 * LEVELS[q] * 2^((m - 127) / 8)    rounded to a whole number and then to 8 significant bits

where scale >= 128 gives the minus. The levels are those that lose least of normally distributed weights (Lloyd's
iteration, with the best sign and scale for each group): they lie closer together around zero.

So every weight is exactly a bfloat16 and, but for its row's exponent, exactly an integer of 12 bits: it is the same
weight whether a kernel multiplies it as one or as the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

GROUP = 32  # weights that share a scale
BLOCK = 128  # weights of 4 bits in 32 words of 16 bits: nibble n of word j is weight 32 * n + j
MOST_SHIFT = 4
LEVELS = (-127, -100, -79, -62, -47, -34, -21, -9, 2, 13, 25, 37, 50, 65, 82, 105)


@dataclass(frozen=True)
class Quantized:
    """A matrix (out, in) in 8 or 4 bits; rows are padded with weights that no activation is multiplied by.

    values: (out, in rounded up to 32) int8 for 8 bits; (out, in rounded up to 128, halved) uint8 for 4 bits.
    scales: (out, values in a row / 32) uint8. exponents: (out,) uint8.
    """

    bits: int
    shape: tuple[int, int]
    values: NDArray[np.int8] | NDArray[np.uint8]
    scales: NDArray[np.uint8]
    exponents: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        """Bytes of all its parts."""
        return self.values.nbytes + self.scales.nbytes + self.exponents.nbytes

    def dense(self) -> NDArray[np.float32]:
        """The weights (out, in) as float32."""
        if self.bits == 8:
            shifts = np.repeat(np.minimum(self.scales & 7, MOST_SHIFT), GROUP, 1).astype(np.int32)
            numbers = self.values.astype(np.int32) << shifts
        else:
            words = self.values.reshape(self.shape[0], -1, BLOCK // 2).view("<u2")  # (out, blocks, 32)
            nibbles = np.stack([words >> 4 * n & 15 for n in range(4)], 2)  # (out, blocks, 4, 32)
            numbers = scale_table()[self.scales.reshape(nibbles.shape[:3])[..., None], nibbles]
        numbers = numbers.reshape(self.shape[0], -1)[:, : self.shape[1]]
        return np.ldexp(numbers.astype(np.float32), self.exponents.astype(np.int32)[:, None] - 138)


def scale_table() -> NDArray[np.int32]:
    """The number that each of 16 nibbles stands for under each of 256 scales: (256, 16)."""
    scale = np.arange(256)
    sizes = np.where(scale < 128, 16, -16) * 2.0 ** ((scale % 128 - 127) / 8)
    numbers = np.rint(sizes[:, None] * np.array(LEVELS)).astype(np.float32)
    return np.asarray(numbers.astype(ml_dtypes.bfloat16), np.int32)


def stored_shapes(bits: int, out: int, inner: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of `values` and `scales` of a matrix (out, inner)."""
    width = -(-inner // (GROUP if bits == 8 else BLOCK)) * (GROUP if bits == 8 else BLOCK)
    return (out, width if bits == 8 else width // 2), (out, width // GROUP)


def part_forms(bits: int, shape: tuple[int, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Dtype and shape of each part."""
    values, scales = stored_shapes(bits, *shape)
    return ("int8" if bits == 8 else "uint8", values), ("uint8", scales), ("uint8", shape[:1])
