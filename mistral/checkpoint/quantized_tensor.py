"""One matrix of 8 or 4 bits as it lies in a safetensors file: its values, X.weight, and beside it
X.weight.scales and X.weight.exponents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mistral.checkpoint.formats.stored_tensor import StoredTensor, quoted
from mistral.errors import InputError
from mistral.model.parameters import Parameter
from mistral.ops.quantized import Quantized, part_forms

SCALES = ".scales"


@dataclass(frozen=True)
class QuantizedTensor:
    """A matrix (out, in) where an unquantized model has a `StoredTensor`; nothing is read before `array` is looked at.

    `parts` are its values, scales and exponents.
    """

    bits: int
    shape: tuple[int, ...]
    parts: tuple[StoredTensor, ...]

    @property
    def path(self) -> Path:
        """The file that holds the values."""
        return self.parts[0].path

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The dtype of the values: int8 for 8 bits, uint8 for 4 bits."""
        return self.parts[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of values, scales and exponents together."""
        return sum(part.nbytes for part in self.parts)

    @property
    def is_contiguous(self) -> bool:
        """Whether every part lies row after row, aligned, so that it can be used as it lies."""
        return all(part.is_contiguous for part in self.parts)

    def array(self) -> Quantized:
        """The quantized matrix, its parts views of the mapped file."""
        values, scales, exponents = (part.array() for part in self.parts)
        return Quantized(self.bits, self.shape, values, scales, exponents)  # type: ignore[arg-type]


def part_names(name: str) -> tuple[str, str, str]:
    """What a file calls the values, scales and exponents of the matrix `name`."""
    return name, f"{name}{SCALES}", f"{name}.exponents"


def matrix_scaled_by(part: str) -> str | None:
    """The name of the matrix whose scales a file's tensor is by its name; None where it is something else."""
    return part.removesuffix(SCALES) if part.endswith(SCALES) else None


def take_quantized(parameter: Parameter, tensors: Mapping[str, StoredTensor], where: Path | str) -> QuantizedTensor:
    """A quantized matrix out of a file's tensors. Raises InputError for a part that is missing or of another form."""
    parts, bits, shape = [], parameter.bits, parameter.shape
    assert bits is not None
    for part, (dtype, stored) in zip(part_names(parameter.name), part_forms(bits, shape), strict=True):
        tensor = tensors.get(part)
        if tensor is None:
            raise InputError(f"{where}: tensor {quoted(part)} is missing; quantize the model again")
        if (str(tensor.dtype), tensor.shape) != (dtype, stored):
            raise InputError(
                f"{tensor.path}: tensor {quoted(part)} is {tensor.dtype} of shape {tensor.shape} and must be {dtype} of"
                f" shape {stored}; quantize the model again"
            )
        parts.append(tensor)
    return QuantizedTensor(bits, shape, tuple(parts))
