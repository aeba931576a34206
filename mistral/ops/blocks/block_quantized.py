"""A matrix in one of the block formats of GGUF files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mistral.ops.blocks.iq4 import iq4_nl, iq4_xs
from mistral.ops.blocks.k_quants import q4_k, q5_k, q6_k
from mistral.ops.blocks.kind import Kind
from mistral.ops.blocks.legacy import Bytes, Wide, half, q4_0, q4_1, q5_0, q5_1, q8_0

AT_ONCE = 1 << 20  # weights that are dequantized at a time: limits the memory beside the result
WIDENERS: Mapping[str, Callable[[Bytes], Wide]] = {
    "Q8_0": q8_0, "Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k,
    "IQ4_NL": iq4_nl, "IQ4_XS": iq4_xs,
}  # fmt: skip
# The offsets, in bytes, of the float16 scales in a block
SCALES = {
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2),
    "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip


@dataclass(frozen=True)
class BlockQuantized:
    """Weights of `shape` whose last axis is in blocks of `kind`: `values` (rows, bytes per row), as stored in a file.

    A vector has one row.
    """

    values: NDArray[np.uint8]
    kind: Kind
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks."""
        return self.values.nbytes

    def dense(self) -> NDArray[np.float32]:
        """The weights as float32, read-only; little memory is needed beside the result."""
        out = np.empty((len(self.values), self.shape[-1]), np.float32)
        widen = WIDENERS[self.kind.name]
        with np.errstate(invalid="ignore", over="ignore"):  # a damaged file may have scales that are not finite
            for rows, blocks in self._chunks():
                out[rows] = widen(blocks).reshape(-1, self.shape[-1])
        out.flags.writeable = False
        return out.reshape(self.shape)

    def bad_blocks(self) -> int:
        """The number of blocks with a scale that is NaN or infinite; the weights of all other blocks are finite."""
        count = 0
        for _, blocks in self._chunks():
            bad = np.zeros((len(blocks), 1), bool)
            for at in SCALES[self.kind.name]:
                bad |= ~np.isfinite(half(blocks, at))
            count += int(np.count_nonzero(bad))
        return count

    def _chunks(self) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
        """Some rows at a time, as a slice, and their blocks (n, bytes per block)."""
        step = max(1, AT_ONCE // max(1, self.shape[-1]))
        for first in range(0, len(self.values), step):
            rows = slice(first, first + step)
            yield rows, np.ascontiguousarray(self.values[rows]).reshape(-1, self.kind.nbytes)


def byte_shape(kind: Kind, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and bytes per row of a tensor of this shape, whose last axis is a whole number of blocks."""
    return math.prod(shape[:-1]), shape[-1] // kind.weights * kind.nbytes
