"""Quantizes a matrix to a block format, with the CPU kernels."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral.errors import InputError
from mistral.ops import build
from mistral.ops.blocks.block_quantized import BlockQuantized, byte_shape
from mistral.ops.blocks.kind import KINDS, Kind

TYPES = {"float32": 0, "bfloat16": 1, "float16": 2}  # the numbers in kernels.h


def quantize_blocks(
    array: Any, kind: Kind, importances: NDArray[np.float32] | None = None, name: str = "a weight"
) -> BlockQuantized:
    """A matrix (out, in) of float32, float16 or bfloat16 in blocks of `kind`, whose size must divide `in`.

    importances (in,): the weight of an error in each column, positive numbers; None: equal. The result does not depend
    on the number of threads. Raises InputError, with `name`, for NaN and infinity, for weights whose scale is beyond
    float16, and if there is no compiler for the kernels.
    """
    library = build.kernels().load(lambda path: ctypes.CDLL(str(path)))
    library.quantize_blocks.restype = ctypes.c_int64
    array = np.require(array, requirements=("C", "A"))
    out, inner = array.shape
    made = BlockQuantized(np.empty(byte_shape(kind, array.shape), np.uint8), kind, (out, inner))
    if importances is not None:
        importances = np.require(importances, np.float32, ("C", "A"))
        assert importances.shape == (inner,)
    number = next(number for number, each in KINDS.items() if each is kind)
    lost = library.quantize_blocks(
        ctypes.c_void_p(array.ctypes.data), TYPES[array.dtype.name], ctypes.c_int64(out), ctypes.c_int64(inner), number,
        ctypes.c_void_p(None if importances is None else importances.ctypes.data),
        ctypes.c_void_p(made.values.ctypes.data),
    )  # fmt: skip
    assert lost >= 0, f"{kind.name} and rows of {inner}"
    if lost:
        raise InputError(f"{name}: {lost} of its values are NaN or infinite; download the weights again")
    if bad := made.bad_blocks():
        raise InputError(f"{name}: {bad} of its blocks need a scale beyond float16; write BF16 instead")
    return made
