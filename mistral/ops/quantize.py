"""Quantize a matrix with the CPU kernels."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from mistral.errors import InputError
from mistral.ops import build
from mistral.ops.quantized import Quantized, part_forms

TYPES = {"float32": 0, "bfloat16": 1, "float16": 2}  # as the kernels number them


def quantize_array(array: Any, bits: int, name: str = "a weight") -> Quantized:
    """A matrix (out, in) of float32, float16 or bfloat16 in 8 or 4 bits.

    Raises InputError, with `name`, for NaN and infinity, and where there is no compiler for the kernels that do it.
    """
    library = build.kernels().load(lambda path: ctypes.CDLL(str(path)))
    library.quantize_rows.restype = ctypes.c_int64
    array = np.require(array, requirements=("C", "A"))
    out, inner = array.shape
    values, scales, exponents = (np.empty(shape, dtype) for dtype, shape in part_forms(bits, array.shape))
    found = Quantized(bits, (out, inner), values, scales, exponents)
    pointers = [part.ctypes.data for part in (values, scales, exponents)]
    lost = library.quantize_rows(
        ctypes.c_void_p(array.ctypes.data), TYPES[array.dtype.name], ctypes.c_int64(out), ctypes.c_int64(inner), bits,
        *map(ctypes.c_void_p, pointers),
    )  # fmt: skip
    if lost:
        raise InputError(f"{name}: {lost} of its values are NaN or infinite; download the weights again")
    return found
