"""The safetensors file format, memory-mapped.

A file is 8 bytes of header length (little-endian), a JSON header, and the tensors one after the other without gaps:
https://github.com/huggingface/safetensors#format. The `safetensors` package is not used because its NumPy interface
copies and has no bfloat16.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from mistral.checkpoint.formats.stored_tensor import (
    HEADER_LIMIT,
    MAX_DIMENSIONS,
    StoredTensor,
    map_file,
    quoted,
    row_major,
)
from mistral.errors import InputError, one_line

_DTYPES: dict[str, np.dtype[np.generic]] = {
    "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"),
    "I8": np.dtype("i1"), "I16": np.dtype("<i2"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"), "U16": np.dtype("<u2"), "U32": np.dtype("<u4"), "U64": np.dtype("<u8"),
    "BOOL": np.dtype("?"), "C64": np.dtype("<c8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}  # fmt: skip
# What this program writes; uint16 stands for the bits of bfloat16.
NAMES = {
    "float32": "F32", "bfloat16": "BF16", "uint16": "BF16", "float16": "F16", "int8": "I8", "uint8": "U8",
    "int64": "I64", "float8_e4m3fn": "F8_E4M3",
}  # fmt: skip


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file by name; reads only the header.

    Raises InputError naming the file, and the tensor if one is at fault, for anything that the format forbids.
    """
    buffer = map_file(path)
    table, start = _header(path, buffer)
    table.pop("__metadata__", None)
    places = sorted((*_place(path, name, entry), name) for name, entry in table.items())
    end = 0
    for first, last, name in places:
        if first != end:
            what = "overlaps the one before it" if first < end else "leaves a hole before it"
            raise InputError(f"{path}: tensor {quoted(name)} {what}; the file is damaged, download it again")
        end = last
        if start + end > len(buffer):
            missing = start + places[-1][1] - len(buffer)
            raise InputError(f"{path}: truncated in tensor {quoted(name)}, {missing} bytes short; download it again")
    if start + end < len(buffer):
        raise InputError(f"{path}: {len(buffer) - start - end} bytes belong to no tensor; download it again")
    return {name: _stored(path, buffer, start + first, table[name]) for first, _, name in places}


def read_metadata(path: Path) -> dict[str, str]:
    """The texts in the header's `__metadata__`. Raises InputError for a file that is no safetensors file."""
    metadata = _header(path, map_file(path))[0].get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{path}: its metadata are not texts; download it again")
    return metadata


def _header(path: Path, buffer: mmap.mmap) -> tuple[dict[str, Any], int]:
    """The JSON object, and the offset of the first tensor."""
    if len(buffer) < 8:
        raise InputError(f"{path}: truncated, {len(buffer)} bytes are no safetensors file; download it again")
    length = int.from_bytes(buffer[:8], "little")
    if length > HEADER_LIMIT:
        raise InputError(f"{path}: header of {length} bytes, so not a safetensors file; download it again")
    if 8 + length > len(buffer):
        raise InputError(f"{path}: truncated in its header; download it again")
    try:
        table = json.loads(buffer[8 : 8 + length].decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: header is not valid JSON ({one_line(error)}); download it again") from None
    if not isinstance(table, dict):
        raise InputError(f"{path}: header is not a JSON object; download it again")
    return table, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"{quoted(key)} is there twice")
        table[key] = value
    return table


def _place(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """First byte and end of a tensor, relative to the first tensor; its dtype, shape and size checked."""
    tensor = f"{path}: tensor {quoted(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{tensor} lacks its dtype, shape and data_offsets; download the file again")
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise InputError(f"{tensor} has dtype {quoted(str(dtype))}, which is not supported; use bfloat16 weights")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise InputError(f"{tensor} has no valid shape; download the file again")
    if not _naturals(place) or len(place) != 2:
        raise InputError(f"{tensor} has no valid data_offsets; download the file again")
    needed = math.prod(shape) * _DTYPES[dtype].itemsize
    if place[1] - place[0] != needed:
        raise InputError(f"{tensor} has {place[1] - place[0]} bytes where its shape needs {needed}; download it again")
    return place[0], place[1]


def _naturals(value: Any) -> bool:
    # 2**62 bounds each number, so that messages and products stay short
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in value)


def _stored(path: Path, buffer: mmap.mmap, start: int, entry: dict[str, Any]) -> StoredTensor:
    shape = tuple(entry["shape"])
    return StoredTensor(path, buffer, start, _DTYPES[entry["dtype"]], shape, row_major(shape))


def stored_nbytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of this shape whose dtype has this NumPy name."""
    return math.prod(shape) * _DTYPES[NAMES[dtype]].itemsize


def write_header(
    out: BinaryIO, tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write the header of a file to `out`. `tensors`: NumPy name of the dtype, and shape, by the tensor's name.

    The tensors' bytes must follow in the same order. The first begins at a multiple of 64 bytes, so that tensors can be
    used in place.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name, (dtype, shape) in tensors.items():
        end = at + stored_nbytes(dtype, shape)
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    out.write(len(text).to_bytes(8, "little") + text)
