"""torch.save's zip form, written without torch; torch.load(weights_only=True) reads it back."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
STORAGES = {
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.int64): "LongStorage",
}


@dataclass(frozen=True)
class Record:
    """One entry of data.pkl; sizes, offset and strides in elements."""

    name: str
    storage: str
    key: str
    size: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def text(value: str) -> bytes:
    """BINUNICODE."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    """BININT, or LONG1 where that is too narrow."""
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)


def integers(values: Iterable[int]) -> bytes:
    """A tuple of numbers."""
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor_opcodes(record: Record) -> bytes:
    """What rebuilds one tensor."""
    storage = text("storage") + f"ctorch\n{record.storage}\n".encode() + text(record.key) + text("cpu")
    arguments = b"((" + storage + integer(record.size) + b"tQ" + integer(record.offset)
    arguments += integers(record.shape) + integers(record.strides) + b"\x89ccollections\nOrderedDict\n)Rt"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def tensor_pickle(records: Iterable[Record]) -> bytes:
    """data.pkl of a dictionary of tensors, protocol 2."""
    items = b"".join(text(record.name) + tensor_opcodes(record) for record in records)
    return b"\x80\x02}(" + items + b"u."


def records_of(tensors: Mapping[str, Array]) -> list[Record]:
    """One storage per tensor, numbered."""
    return [
        Record(name, STORAGES[array.dtype], str(key), array.size, 0, array.shape, row_major(array.shape))
        for key, (name, array) in enumerate(tensors.items())
    ]


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor, in elements."""
    return tuple(int(np.prod(shape[axis + 1 :], dtype=int)) for axis in range(len(shape)))


def write_torch_file(path: Path, tensors: Mapping[str, Array], sparse: bool = False) -> None:
    """What torch.save(tensors, path) writes; `sparse` leaves the values out and holes of their size in."""
    members: list[tuple[str, bytes | int]] = [
        ("archive/data.pkl", tensor_pickle(records_of(tensors))),
        ("archive/byteorder", b"little"),
    ]
    for key, array in enumerate(tensors.values()):
        members.append((f"archive/data/{key}", array.nbytes if sparse else array.tobytes()))
    write_zip(path, [*members, ("archive/version", b"3\n")])


def write_zip(path: Path, members: Iterable[tuple[str, bytes | int]]) -> None:
    """An uncompressed zip64 archive, data at multiples of 64; a number stands for a hole of so many bytes."""
    directory, count = b"", 0
    with path.open("wb") as file:
        for name, data in members:
            start, raw = file.tell(), name.encode()
            size, crc = (data, 0) if isinstance(data, int) else (len(data), zlib.crc32(data))
            padding = -(start + 30 + len(raw) + 4) % 64
            file.write(struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0x808, 0, 0, 0, 0, 0, 0, len(raw), padding + 4))
            file.write(raw + struct.pack("<2sH", b"FB", padding) + bytes(padding))
            if isinstance(data, int):
                file.seek(size, 1)
            else:
                file.write(data)
            file.write(struct.pack("<4sI2Q", b"PK\7\x08", crc, size, size))
            wide = struct.pack("<2H3Q", 1, 24, size, size, start)
            fixed = (b"PK\1\2", 45, 45, 0x808, 0, 0, 0, crc, 0xFFFFFFFF, 0xFFFFFFFF, len(raw), len(wide), 0, 0, 0, 0)
            directory += struct.pack("<4s6H3I5H2I", *fixed, 0xFFFFFFFF) + raw + wide
            count += 1
        start = file.tell()
        end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), start)
        locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + len(directory), 1)
        last = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        file.write(directory + end + locator + last)
