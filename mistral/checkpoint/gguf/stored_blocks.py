"""One block-quantized tensor in a mapped GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mistral.checkpoint.formats.stored_tensor import StoredTensor
from mistral.ops.blocks.block_quantized import BlockQuantized
from mistral.ops.blocks.kind import Kind


@dataclass(frozen=True)
class StoredBlocks:
    """A block-quantized tensor in place of a `StoredTensor`; nothing is read before the elements of `array` are.

    `values` are its bytes, (rows, bytes per row).
    """

    values: StoredTensor
    kind: Kind
    shape: tuple[int, ...]

    @property
    def path(self) -> Path:
        """The file that holds it."""
        return self.values.path

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The dtype of its bytes, uint8."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return self.values.nbytes

    @property
    def is_contiguous(self) -> bool:
        """Whether its rows are contiguous, so that they can be used in place."""
        return self.values.is_contiguous

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """Its bytes."""
        return (self.values,)

    def array(self) -> BlockQuantized:
        """The blocks, a view of the mapped file."""
        return BlockQuantized(self.values.array(), self.kind, self.shape)  # type: ignore[arg-type]

    def rows(self, first: int, last: int) -> StoredBlocks:
        """The rows [first:last] of a matrix."""
        return replace(self, values=self.values.rows(first, last), shape=(last - first, *self.shape[1:]))
