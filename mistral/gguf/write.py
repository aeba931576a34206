"""Writes the header of a GGUF file: metadata, and the location of each tensor."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral.gguf.header import MAGIC
from mistral.gguf.value import ARRAY, BOOL, FLOAT32, NUMBERS, STRING, UINT32, Value
from mistral.ops.blocks.kind import KINDS, Kind

VERSION = 3
ALIGNMENT = 32  # bytes; the default of the format
Plain = str | bool | int | float | Sequence[str] | NDArray[Any] | Value
_NUMBER = {np.dtype(name): number for number, name in NUMBERS.items()}
_KIND_NUMBER = {kind: number for number, kind in KINDS.items()}


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write: its name, its type, and its shape, the outer axis first."""

    name: str
    kind: Kind
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, without padding."""
        return math.prod(self.shape) // self.kind.weights * self.kind.nbytes


def padding(nbytes: int) -> bytes:
    """The zeros that pad `nbytes` to the next multiple of ALIGNMENT."""
    return bytes(-nbytes % ALIGNMENT)


def header(values: Mapping[str, Plain], tensors: Sequence[PlannedTensor]) -> bytes:
    """The bytes of a file before its first tensor; the tensors must follow in this order, each with its `padding`.

    An int becomes uint32 and a float float32; arrays of numbers keep their dtype, and values from another file their
    type.
    """
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(values))]
    for key, value in values.items():
        parts += [_text(key), encoded(value)]
    offset = 0
    for tensor in tensors:
        axes = tensor.shape[::-1]
        parts.append(_text(tensor.name) + struct.pack(f"<I{len(axes)}Q", len(axes), *axes))
        parts.append(struct.pack("<IQ", _KIND_NUMBER[tensor.kind], offset))
        offset += tensor.nbytes + len(padding(tensor.nbytes))
    data = b"".join(parts)
    return data + padding(len(data))


def encoded(value: Plain) -> bytes:
    """The bytes of a value, preceded by its type."""
    if isinstance(value, Value):
        return copied(value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", ARRAY, _NUMBER[value.dtype], len(value)) + value.tobytes()
    return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_text, value))


def copied(value: Value) -> bytes:
    """The bytes of a value from another file, preceded by its type."""
    if value.kind == STRING:
        texts = value.texts()
        return encoded(texts[0] if value.count is None else texts)
    if value.count is None:
        return struct.pack("<I", value.kind) + value.numbers().tobytes()
    return struct.pack("<IIQ", ARRAY, value.kind, value.count) + value.numbers().tobytes()


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
