"""One tensor in a memory-mapped weight file."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mistral.errors import InputError
from mistral.mapped_file import map_file, quoted

__all__ = ("Array", "StoredTensor", "map_file", "quoted", "row_major")

# A header (JSON, pickle or zip directory) is never larger: room for 30,000 tensors in one file, and a bound on what a
# hostile file can make us hold (some 70 bytes of objects per byte of header).
HEADER_LIMIT = 4 << 20
MAX_DIMENSIONS = 8
# Why a tensor may have no elements, and what to do
NOT_GATHERED = (
    "it was saved under DeepSpeed ZeRO-3 without gathering its parts; save it again with"
    " stage3_gather_16bit_weights_on_model_save, or join the parts with zero_to_fp32.py"
)
Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class StoredTensor:
    """A strided view of a mapped file; nothing is read before the elements of `array` are.

    `start` is the offset of element 0 in bytes, `strides` count elements. The creator has checked that all of it is
    inside the file. `buffer` is None for a file that only another rank has.
    """

    path: Path
    buffer: mmap.mmap | None
    start: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, without gaps between them."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_empty(self) -> bool:
        """Whether it has no elements: some programs save a placeholder for a tensor that is stored elsewhere."""
        return self.shape == (0,)

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements are contiguous in row-major order, and aligned."""
        return self.strides == row_major(self.shape) and self.start % self.dtype.itemsize == 0

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """The tensor itself; other kinds of tensors consist of several parts."""
        return (self,)

    def array(self) -> Array:
        """The values, read-only, without a copy (unless they are not aligned in the file)."""
        if self.buffer is None:
            raise InputError(f"{self.path}: is not on this machine; copy it there")
        size = self.dtype.itemsize
        buffer: mmap.mmap | bytes = self.buffer
        offset = self.start
        if offset % size:  # unaligned elements are slow or undefined in most kernels
            span = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
            buffer, offset = self.buffer[offset : offset + span * size], 0
        return np.ndarray(self.shape, self.dtype, buffer, offset, tuple(s * size for s in self.strides))

    def number(self) -> float:
        """The value of a tensor with one element, read without the pages around it."""
        if self.buffer is None or not hasattr(mmap, "MADV_RANDOM"):
            return float(self.array().reshape(-1)[0])
        page = self.start // mmap.PAGESIZE * mmap.PAGESIZE
        place = page, self.start + self.dtype.itemsize - page
        self.buffer.madvise(mmap.MADV_RANDOM, *place)
        number = float(self.array().reshape(-1)[0])
        self.buffer.madvise(mmap.MADV_NORMAL, *place)
        return number

    def described(self) -> StoredTensor:
        """The tensor without its file, to be sent to another rank: its location and no values."""
        return replace(self, buffer=None)

    def release(self) -> None:
        """Let the system have the pages of the whole file back; they are read again when they are looked at."""
        if self.buffer is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.buffer.madvise(mmap.MADV_DONTNEED)

    def rows(self, first: int, last: int) -> StoredTensor:
        """The part [first:last] along the first axis."""
        assert 0 <= first < last <= self.shape[0]
        start = self.start + first * self.strides[0] * self.dtype.itemsize
        return replace(self, start=start, shape=(last - first, *self.shape[1:]))

    def transposed(self) -> StoredTensor:
        """The same elements with the axes in reverse order."""
        return replace(self, shape=self.shape[::-1], strides=self.strides[::-1])


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
