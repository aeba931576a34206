"""Files that torch.save writes (zip form, torch 1.6 and later), mapped, without torch.

The archive holds `NAME/data.pkl`, a pickle that describes the tensors, and `NAME/data/KEY`, the raw bytes of each
storage, uncompressed: torch/serialization.py and caffe2/serialize/inline_container.h.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from mistral.checkpoint.formats.stored_tensor import HEADER_LIMIT, StoredTensor, map_file, quoted
from mistral.checkpoint.formats.torch_pickle import StorageRecord, TensorRecord, read_tensor_table
from mistral.errors import InputError, one_line

_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_UTF8 = 0x800  # flag bit of a zip entry


@dataclass(frozen=True)
class _Entry:
    start: int
    size: int
    crc: int


def read_torch_zip(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file by name; reads only the archive's directory and its pickle.

    Raises InputError naming the file, and the tensor if one is at fault. Nothing in the pickle is executed.
    """
    buffer = map_file(path)
    entries = _entries(path, buffer)
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise InputError(f"{path}: no data.pkl in it, so not a file of torch.save; download it again")
    root = pickles[0].removesuffix("data.pkl")
    order = _read(path, buffer, entries, root + "byteorder") if root + "byteorder" in entries else b"little"
    if order != b"little":
        raise InputError(f"{path}: saved on a machine of another byte order; save it again on this kind of machine")
    records = read_tensor_table(_read(path, buffer, entries, pickles[0]), f"{path}: data.pkl")
    types: dict[str, StorageRecord] = {}
    for name, record in records.items():
        if types.setdefault(record.storage.key, record.storage) != record.storage:
            what = "sees another's bytes as another type; save the two apart"
            raise InputError(f"{path}: tensor {quoted(name)} {what}")
    return {name: _stored(path, buffer, entries, root, name, record) for name, record in records.items()}


def read_checksums(path: Path) -> list[tuple[int, int, int]]:
    """First byte, end and CRC-32 of each member that has one; torch.save can omit them."""
    return [(e.start, e.start + e.size, e.crc) for e in _entries(path, map_file(path)).values() if e.crc]


def _entries(path: Path, buffer: mmap.mmap) -> dict[str, _Entry]:
    """The archive's members; each uncompressed, once, and no two sharing bytes."""
    try:
        with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            infos, end = sorted(archive.infolist(), key=lambda info: info.header_offset), archive.start_dir
    except (zipfile.BadZipFile, RuntimeError, struct.error, ValueError, OverflowError, OSError, EOFError) as error:
        raise InputError(f"{path}: {_why_no_zip(buffer, error)}") from None
    entries: dict[str, _Entry] = {}
    followings = [*(info.header_offset for info in infos), end][1:]
    for info, following in zip(infos, followings, strict=True):
        member = f"{path}: its member {quoted(info.filename)}"
        if info.filename in entries:
            raise InputError(f"{member} is there twice; download the file again")
        if info.compress_type or info.compress_size != info.file_size:
            raise InputError(f"{member} is compressed or encrypted; save it again with torch.save")
        start = _data_start(buffer, info)
        if start is None or start + info.file_size > following:
            raise InputError(f"{member} is not where the directory says, or overlaps another; download the file again")
        entries[info.filename] = _Entry(start, info.file_size, info.CRC)
    return entries


class _BoundedFile(io.FileIO):
    """A file that returns at most HEADER_LIMIT bytes at once, since zipfile reads a directory of any size at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(HEADER_LIMIT if size is None or size < 0 else min(size, HEADER_LIMIT))


def _why_no_zip(buffer: mmap.mmap, error: Exception) -> str:
    if buffer[: len(_LEGACY_MAGIC)] == _LEGACY_MAGIC:
        return "in torch's old form (before 1.6); load it with torch and torch.save it again, or use safetensors"
    if buffer[:4] == b"PK\x03\x04":
        return f"truncated or damaged zip archive ({one_line(error)}); download it again"
    return "not in the zip form that torch.save writes; download it again"


def _data_start(buffer: mmap.mmap, info: zipfile.ZipInfo) -> int | None:
    """The offset of a member's data, after its local header, name and padding."""
    header = buffer[info.header_offset : info.header_offset + 30]
    if info.header_offset < 0 or len(header) < 30 or header[:4] != b"PK\x03\x04":
        return None
    name_length, extra_length = struct.unpack("<HH", header[26:])
    start = info.header_offset + 30 + name_length
    name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")
    return start + extra_length if buffer[start - name_length : start] == name else None


def _read(path: Path, buffer: mmap.mmap, entries: dict[str, _Entry], name: str) -> bytes:
    entry = entries[name]
    if entry.size > HEADER_LIMIT:
        raise InputError(f"{path}: its {quoted(name)} has {entry.size} bytes, too many for a model; download it again")
    data = buffer[entry.start : entry.start + entry.size]
    if entry.crc not in (0, zlib.crc32(data)):  # torch.save can be told to leave the checksum out: 0
        raise InputError(f"{path}: the checksum of {quoted(name)} does not fit; download the file again")
    return data


def _stored(
    path: Path, buffer: mmap.mmap, entries: dict[str, _Entry], root: str, name: str, record: TensorRecord
) -> StoredTensor:
    """The location in the file of a tensor in the pickle."""
    dtype, storage = record.storage.dtype, record.storage
    entry = entries.get(f"{root}data/{storage.key}")
    if entry is None:
        raise InputError(f"{path}: tensor {quoted(name)} has no data in the file; download it again")
    if entry.size != storage.size * dtype.itemsize:
        needed = storage.size * dtype.itemsize
        raise InputError(f"{path}: tensor {quoted(name)} has {entry.size} bytes and needs {needed}; download it again")
    start = entry.start + record.offset * dtype.itemsize
    return StoredTensor(path, buffer, start, dtype, record.shape, record.strides)
