"""The header of one GGUF file: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

A file has the letters GGUF, the version, the numbers of tensors and of values, the keys and values, for each tensor its
name, shape, type and offset, and then, from an aligned byte on, the tensors.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mistral.errors import InputError
from mistral.gguf.cursor import Cursor
from mistral.gguf.value import UINT32, Metadata, Value
from mistral.mapped_file import map_file, quoted
from mistral.ops.blocks.kind import KINDS, Kind
from mistral.places import kind_of

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_VALUES, MOST_TENSORS = 1 << 14, 1 << 16
MOST_AXES = 4
LARGEST_ALIGNMENT = 1 << 24
LARGEST = 1 << 48  # elements of a tensor, and bytes of an offset
ALIGNMENT = "general.alignment"


@dataclass(frozen=True)
class TensorPlace:
    """A tensor of a file: its type, its shape (outer axis first, as in NumPy), and the offset of its first byte."""

    kind: Kind
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) // self.kind.weights * self.kind.nbytes


@dataclass(frozen=True)
class GgufFile:
    """A mapped file with its metadata and tensors, all of which are checked to be inside the file."""

    path: Path
    buffer: mmap.mmap
    metadata: Metadata
    tensors: Mapping[str, TensorPlace]


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a file. Raises InputError, naming the file, for anything that the format forbids."""
    buffer = map_file(path)
    require_version(path, buffer[:8])
    cursor = Cursor(path, buffer, 8)
    n_tensors, n_values = cursor.integer(8), cursor.integer(8)
    for count, most, what in ((n_tensors, MOST_TENSORS, "tensors"), (n_values, MOST_VALUES, "values")):
        if count > most:
            raise cursor.damaged(f"{count} {what}")
    values: dict[str, Value] = {}
    for _ in range(n_values):
        key = cursor.name("a key")
        if key in values:
            raise cursor.damaged(f"the key {quoted(key)} twice")
        values[key] = cursor.value(key)
    metadata = Metadata(path, values)
    entries: dict[str, TensorPlace] = {}
    for _ in range(n_tensors):
        name, entry = read_entry(cursor)
        if name in entries:
            raise cursor.damaged(f"the tensor {quoted(name)} twice")
        entries[name] = entry
    return GgufFile(path, buffer, metadata, placed(path, len(buffer), entries, cursor.at, alignment(metadata)))


def require_version(path: Path, start: bytes) -> None:
    """Raise InputError unless a file starts with GGUF's magic bytes and a supported version."""
    if start[:4] != MAGIC:
        what = kind_of(path)
        raise InputError(f"{path}: is no GGUF file: {what}" if path.suffix == ".gguf" else f"{path}: {what}")
    if len(start) < 8:
        raise InputError(f"{path}: truncated in its header; download it again")
    version = int.from_bytes(start[4:], "little")
    if version and version % (1 << 16) == 0:
        raise InputError(f"{path}: is for big-endian processors; download the file for little-endian ones")
    if version not in VERSIONS:
        ways = "convert the model again" if version < VERSIONS[0] else "use a later release of this program"
        raise InputError(f"{path}: is GGUF of version {version}, and 2 and 3 are read; {ways}")


def alignment(metadata: Metadata) -> int:
    """The alignment of tensors, in bytes. Raises InputError unless it is a power of two."""
    value = metadata.values.get(ALIGNMENT)
    if value is None:
        return 32
    found = metadata.number(ALIGNMENT)
    if value.kind != UINT32 or not isinstance(found, int):
        raise metadata.unfit(ALIGNMENT, f"is of type {value.kind} and must be of type {UINT32} (uint32)")
    if not 8 <= found <= LARGEST_ALIGNMENT or found & (found - 1):
        raise metadata.unfit(ALIGNMENT, f"is {found} and must be a power of two from 8 to {LARGEST_ALIGNMENT}")
    return found


def read_entry(cursor: Cursor) -> tuple[str, TensorPlace]:
    """The name of a tensor, with its type, shape and offset after the header (as `start`)."""
    name = cursor.name("a tensor's name")
    tensor = f"{cursor.path}: tensor {quoted(name)}"
    axes = cursor.integer(4)
    if not 1 <= axes <= MOST_AXES:
        raise InputError(f"{tensor} has {axes} axes; the file is damaged, download it again")
    shape = tuple(cursor.integer(8) for _ in range(axes))[::-1]
    number, offset = cursor.integer(4), cursor.integer(8)
    if number not in KINDS:
        raise InputError(f"{tensor} is of type {number}, which is not known; use a file of another type")
    if not all(0 < n < LARGEST for n in shape) or math.prod(shape) > LARGEST or offset > LARGEST:
        raise InputError(f"{tensor} has no valid shape and place; the file is damaged, download it again")
    kind = KINDS[number]
    if shape[-1] % kind.weights:
        raise InputError(
            f"{tensor} has rows of {shape[-1]} weights, which are no whole blocks of {kind.name}; download it again"
        )
    return name, TensorPlace(kind, shape, offset)


def placed(
    path: Path, size: int, entries: Mapping[str, TensorPlace], header: int, aligned: int
) -> dict[str, TensorPlace]:
    """The tensors with their offsets in the file; each must be inside it, aligned, and after the one before."""
    first = -(-header // aligned) * aligned
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        tensor = f"{path}: tensor {quoted(name)}"
        if entry.start % aligned:
            raise InputError(f"{tensor} is not aligned to {aligned} bytes; the file is damaged, download it again")
        if entry.start < end:
            raise InputError(f"{tensor} overlaps the one before it; the file is damaged, download it again")
        end = entry.start + entry.nbytes
        if first + end > size:
            raise InputError(f"{path}: truncated in tensor {quoted(name)}, {first + end - size} bytes short or more"
                             "; download it again")  # fmt: skip
    return {name: TensorPlace(entry.kind, entry.shape, first + entry.start) for name, entry in entries.items()}
