"""An FP8 matrix in a safetensors file: its values, X.weight, and its scale.

The scale is X.qscale_weight in official files and X.weight_scale_inv in Hugging Face's; the values are multiplied by it
in both. Scales of activations, which such files may have too, are not used: this program does no 8-bit arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from mistral.checkpoint.formats.stored_tensor import StoredTensor, quoted
from mistral.errors import InputError
from mistral.ops.float8 import Float8

WEIGHT = ".weight"
SCALE_DTYPES = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))
SCALAR_SHAPES = ((), (1,))
ACTIVATION_SCALES = (".qscale_act", ".activation_scale", ".input_scale")


@dataclass(frozen=True)
class Float8Tensor:
    """A matrix (out, in) in place of a `StoredTensor`; `name` is the name of its scale in the file."""

    values: StoredTensor
    scale: StoredTensor
    name: str

    @property
    def path(self) -> Path:
        """The file that holds the values."""
        return self.values.path

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix."""
        return self.values.shape

    @property
    def nbytes(self) -> int:
        """Bytes of values and scale."""
        return self.values.nbytes + self.scale.nbytes

    @property
    def is_contiguous(self) -> bool:
        """Whether the values are contiguous, so that they can be used in place."""
        return self.values.is_contiguous

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """Values and scale."""
        return self.values, self.scale

    def array(self) -> Float8:
        """The matrix, its values a view of the mapped file. Raises InputError for a scale that is not positive."""
        scale = self.scale.number()
        if not scale > 0:
            raise InputError(
                f"{self.scale.path}: tensor {quoted(self.name)} is {scale:g} and must be above 0; a part of the file"
                " may not be downloaded: download it again"
            )
        return Float8(self.values.array(), np.float32(scale))


def scale_name(weight: str, hugging_face: bool) -> str:
    """The name of the scale of the matrix that a file calls `weight`."""
    stem = weight.removesuffix(WEIGHT)
    return f"{stem}.weight_scale_inv" if hugging_face else f"{stem}.qscale_weight"


def is_activation_scale(name: str, tensor: StoredTensor) -> bool:
    """Whether a file's tensor is a scale of activations, which is not used."""
    return name.endswith(ACTIVATION_SCALES) and tensor.shape in SCALAR_SHAPES


def take_float8(
    weight: str, values: StoredTensor, hugging_face: bool, tensors: Mapping[str, StoredTensor]
) -> Float8Tensor:
    """The matrix whose values the file calls `weight`, with its scale. Raises InputError for an invalid scale.

    A scale of 0 is accepted until the weights are read: a file that has been allocated and not yet written has it.
    """
    name = scale_name(weight, hugging_face)
    scale = tensors.get(name)
    if scale is None:
        raise InputError(
            f"{values.path}: tensor {quoted(weight)} is FP8 and its scale {quoted(name)} is missing; download the"
            " weights again"
        )
    where = f"{scale.path}: tensor {quoted(name)}"
    if scale.shape not in SCALAR_SHAPES:
        kind = "FP8 in blocks or by rows is not read" if math.prod(scale.shape) else "it is empty"
        raise InputError(
            f"{where} has shape {scale.shape} where one number scales the matrix: {kind}; download the original"
            " weights, in a -BF16 repository where the model has one"
        )
    if scale.dtype not in SCALE_DTYPES:
        raise InputError(f"{where} has dtype {scale.dtype} and must be float32, bfloat16 or float16; download it again")
    found = Float8Tensor(values, scale, name)
    if scale.buffer is not None:
        number = scale.number()
        if not 0 <= number < math.inf:
            raise InputError(f"{where} is {number:g} and must be a positive number; download the weights again")
    return found
