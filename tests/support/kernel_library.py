"""The kernels called as plain C functions on NumPy arrays, without MindSpore: thousands of products in a second."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mistral.ops import build
from mistral.ops.blocks.block_quantized import BlockQuantized
from mistral.ops.native import TYPES

Array = NDArray[np.float32]


class Matrix(ctypes.Structure):
    """`Matrix` of kernels.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("out", ctypes.c_int64),
        ("in", ctypes.c_int64),
    )


POINTER, COUNT = ctypes.c_void_p, ctypes.c_int64
EMBED = ctypes.CFUNCTYPE(None, Matrix, POINTER, POINTER, COUNT)
LINEAR = ctypes.CFUNCTYPE(None, POINTER, Matrix, POINTER, COUNT, ctypes.c_bool)


class KernelLibrary:
    """The kernels compiled with some flags."""

    def __init__(self, machine: Sequence[str]) -> None:
        """`machine`: compiler flags that say for which processor."""
        library = ctypes.CDLL(str(build.kernels(machine).build()))
        library.mistral_kernels.restype = ctypes.POINTER(POINTER)
        table = library.mistral_kernels()  # struct Kernels: embed, rms_norm, linear, ...
        self._embed, self._linear = EMBED(table[0]), LINEAR(table[2])

    def linear(self, x: Array, weight: BlockQuantized, precise: bool = False) -> Array:
        """x (T, in) times the transpose of weight (out, in) -> (T, out)."""
        x = np.ascontiguousarray(x, np.float32)
        y = np.full((len(x), weight.shape[0]), 77, np.float32)
        self._linear(x.ctypes.data, matrix_of(weight), y.ctypes.data, len(x), precise)
        return y

    def embed(self, table: BlockQuantized, ids: Sequence[int]) -> Array:
        """Rows `ids` (T,) of a table (V, D) -> (T, D)."""
        numbers = np.array(ids, np.int64)
        y = np.full((len(numbers), table.shape[1]), 77, np.float32)
        self._embed(matrix_of(table), numbers.ctypes.data, y.ctypes.data, len(numbers))
        return y


def matrix_of(weight: BlockQuantized) -> Matrix:
    """The handle of a matrix, which must be kept as long as it is used."""
    out, inner = weight.shape
    return Matrix(weight.values.ctypes.data, None, TYPES[weight.kind.name], out, inner)
