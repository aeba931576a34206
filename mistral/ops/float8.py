"""FP8 weights: E4M3 (OCP 8-bit floating point specification, 2023), with one scale for each matrix."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)


@dataclass(frozen=True)
class Float8:
    """A matrix (out, in): values of `FLOAT8`, each times `scale`. NaN is the only value that is not finite."""

    values: NDArray[np.generic]
    scale: np.float32

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        return tuple(self.values.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values and the scale."""
        return self.values.nbytes + 4

    def dense(self) -> NDArray[np.float32]:
        """The weights (out, in) as float32, value * scale, each product rounded once."""
        table = np.arange(256, dtype=np.uint8).view(FLOAT8).astype(np.float32) * self.scale
        return table[self.values.view(np.uint8)]
