"""Every byte of a checkpoint's files, read once: checksums, and values that are NaN or infinite."""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mistral.checkpoint.formats.stored_tensor import StoredTensor, quoted
from mistral.checkpoint.formats.torch_zip import read_checksums
from mistral.checkpoint.gguf.model import GgufTensor, read_gguf_tensors
from mistral.checkpoint.gguf.stored_blocks import StoredBlocks
from mistral.checkpoint.matching import read_file
from mistral.cli.console import ProgressLine
from mistral.cli.info.checksums import Checksum, Digest, find_checksums
from mistral.errors import InputError
from mistral.model.args import ModelArgs
from mistral.ops.float8 import FLOAT8
from mistral.places import starts_as_gguf

BLOCK = 1 << 20  # bytes read at once: they stay in the processor's cache; a multiple of every element's size
EXPONENTS = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000, "float64": 0x7FF0000000000000}
SHOWN = 20  # tensors or files named one by one
Owner = TypeVar("Owner")


@dataclass(frozen=True)
class Verification:
    """What came of reading files: bytes and tensors read, checksums compared, notes, and what is wrong."""

    nbytes: int
    tensors: int
    checksums: tuple[str, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Segment:
    """A run of bytes of a file, with the tensor that it is part of and the number of the archive's member."""

    start: int
    stop: int
    tensor: str | None
    member: int | None


@dataclass
class Values:
    """What has been seen of one tensor's values: how many are bad, and whether bytes were seen and all are zero."""

    bad: int = 0
    zero: bool | None = None


def bad_values(block: NDArray[np.uint8], dtype: np.dtype[np.generic]) -> int:
    """How many values of a block are NaN or infinite."""
    if dtype == FLOAT8:  # which has no infinity
        return int(np.count_nonzero((block & 0x7F) == 0x7F))
    mask = EXPONENTS.get(dtype.name)
    if mask is None:
        return 0  # every whole number is a value
    bits = block.view(f"u{dtype.itemsize}")
    exponents = bits & bits.dtype.type(mask)
    return int(np.count_nonzero(exponents == mask)) if exponents.max(initial=0) == mask else 0


def bad_scales(file: Path, tensors: Mapping[str, GgufTensor]) -> list[str]:
    """A problem for each tensor of blocks, of a GGUF file, with scales that are NaN or infinite."""
    bad = {name: each.array().bad_blocks() for name, each in tensors.items() if isinstance(each, StoredBlocks)}
    return [
        f"{file}: tensor {quoted(name)}: {count} of its blocks have a scale that is NaN or infinite; download it again"
        for name, count in list(bad.items())
        if count
    ][:SHOWN]


def segments(
    size: int, tensors: Mapping[str, StoredTensor], members: Sequence[tuple[int, int, int]], whole: bool
) -> list[Segment]:
    """A file of `size` bytes cut where tensors and members begin and end.

    Bytes that several tensors share are one of theirs. Bytes that belong to no tensor and no member are among the
    segments only if the file is to be read `whole`.
    """
    spans = [(each.start, each.start + span_of(each), name) for name, each in tensors.items() if each.nbytes]
    archive = [(first, last, number) for number, (first, last, _) in enumerate(members) if first < last]
    cuts = sorted({0, size, *(cut for span in (*spans, *archive) for cut in span[:2])})
    tensor_at, member_at = owners(cuts, spans), owners(cuts, archive)
    found = [Segment(a, b, tensor_at.get(a), member_at.get(a)) for a, b in pairwise(cuts)]
    return [s for s in found if whole or s.tensor is not None or s.member is not None]


def owners(cuts: Sequence[int], spans: Sequence[tuple[int, int, Owner]]) -> dict[int, Owner]:
    """Of each cut that lies in a span, from its first byte to before its end: whose span it is.

    Of several the one that reaches farthest; each span is looked at once.
    """
    waiting = sorted(spans, key=lambda span: span[0], reverse=True)
    found: dict[int, Owner] = {}
    reach, owner = 0, None
    for cut in cuts:
        while waiting and waiting[-1][0] <= cut:
            _, last, name = waiting.pop()
            if last > reach:
                reach, owner = last, name
        if owner is not None and cut < reach:
            found[cut] = owner
    return found


def span_of(tensor: StoredTensor) -> int:
    """Bytes from the beginning of a tensor's first element to the end of its last."""
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    return (last + 1) * tensor.dtype.itemsize


def verify(folder: Path, files: Sequence[Path], args: ModelArgs | None, progress: ProgressLine) -> Verification:
    """Read the weight `files`, and every other file of the folder that there is a checksum of."""
    sums, absent = find_checksums(folder)
    reading = Reading(args, progress, sum(file.stat().st_size for file in {*files, *sums} if file.is_file()))
    weights = set(files)
    for file in dict.fromkeys([*files, *sums]):
        reading.read(file, sums.get(file, []), file in weights)
    progress.clear()
    notes = list(reading.notes)
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        notes.append(f"listed with a checksum and not here: {quoted(absent[0])}{more}")
    if not any(file in sums for file in files):
        notes.append("no checksums came with the weights")
    return Verification(reading.done, reading.tensors, tuple(reading.checked), tuple(notes), tuple(reading.problems))


class Reading:
    """Files being read, one after the other; `total` is the number of bytes to read."""

    def __init__(self, args: ModelArgs | None, progress: ProgressLine, total: int) -> None:
        self.args, self.progress, self.total = args, progress, total
        self.done = self.tensors = 0
        self.checked, self.notes, self.problems = list[str](), list[str](), list[str]()
        self.buffer = np.empty(BLOCK, np.uint8)

    def read(self, file: Path, sums: Sequence[Checksum], weights: bool) -> None:
        """Read one file from its first byte to its last; `weights`: it holds tensors, whose values are looked at."""
        try:
            is_gguf = weights and starts_as_gguf(file)
            stored = read_gguf_tensors(file) if is_gguf else {}
            tensors = {name: each.parts[0] for name, each in stored.items()} or (read_file(file) if weights else {})
            members = read_checksums(file) if weights and not is_gguf and file.suffix != ".safetensors" else []
            self.problems += bad_scales(file, stored)
        except InputError as error:
            self.problems.append(error.with_flags())
            tensors, members = {}, []
        if not file.is_file():
            return
        size = file.stat().st_size
        digests = [checksum.begin(size) for checksum in sums]
        values, crcs = {name: Values() for name in tensors}, [0] * len(members)
        try:
            for segment, block in self.blocks(file, segments(size, tensors, members, bool(sums))):
                for digest in digests:
                    digest.update(block.data)
                if segment.member is not None:
                    crcs[segment.member] = zlib.crc32(block.data, crcs[segment.member])
                if segment.tensor is not None:
                    self.look(block, segment.tensor, tensors[segment.tensor], values[segment.tensor])
        except OSError as error:
            self.problems.append(f"{file}: cannot be read ({error.strerror})")
            return
        except InputError as error:
            self.problems.append(error.with_flags())
            return
        self.judge(file, tensors, values)
        self.compare_members(file, tensors, members, crcs)
        self.compare_digests(file, sums, digests)

    def blocks(self, file: Path, parts: Sequence[Segment]) -> Iterator[tuple[Segment, NDArray[np.uint8]]]:
        """The bytes of each segment in blocks of at most BLOCK bytes; a block holds until the next one is asked for.

        Raises OSError, and InputError for a file that has become shorter.
        """
        with file.open("rb", buffering=0) as stream:
            for segment in parts:
                stream.seek(segment.start)
                for at in range(segment.start, segment.stop, BLOCK):
                    block = self.buffer[: min(BLOCK, segment.stop - at)]
                    if stream.readinto(block.data) != len(block):
                        raise InputError(f"{file}: became shorter while it was read")
                    yield segment, block
                    self.done += len(block)
                    self.progress(self.done, self.total)

    def look(self, block: NDArray[np.uint8], name: str, tensor: StoredTensor, values: Values) -> None:
        """Count the bad values of one block of a tensor."""
        values.bad += bad_values(block, tensor.dtype)
        values.zero = values.zero is not False and not block.any()

    def judge(self, file: Path, tensors: Mapping[str, StoredTensor], values: Mapping[str, Values]) -> None:
        """Add a problem for each tensor of the file with bad values, and a note about tensors that are all zeros."""
        self.tensors += len(tensors)
        bad = {name: seen.bad for name, seen in values.items() if seen.bad}
        for name, count in list(bad.items())[:SHOWN]:
            of = tensors[name].nbytes // tensors[name].dtype.itemsize
            self.problems.append(
                f"{file}: tensor {quoted(name)}: {count} of its {of} values are NaN or infinite; download it again"
            )
        if len(bad) > SHOWN:
            self.problems.append(f"{file}: {len(bad) - SHOWN} more tensors with values that are NaN or infinite")
        holes = [name for name, seen in values.items() if seen.zero and len(tensors[name].shape) > 1]
        if holes:
            more = f" and {len(holes) - 1} more" if len(holes) > 1 else ""
            self.notes.append(f"{file}: all zeros in tensor {quoted(holes[0])}{more}: part of it may not be downloaded")

    def compare_members(
        self,
        file: Path,
        tensors: Mapping[str, StoredTensor],
        members: Sequence[tuple[int, int, int]],
        crcs: Sequence[int],
    ) -> None:
        """Add a problem for each member of an archive whose CRC-32 is not the archive's own."""
        names = sorted((tensor.start, name) for name, tensor in tensors.items())
        for (first, last, expected), crc in zip(members, crcs, strict=True):
            if crc != expected:
                at = bisect_left(names, (first, ""))
                inside = at < len(names) and names[at][0] < last
                what = f"tensor {quoted(names[at][1])}" if inside else "a part of the archive"
                self.problems.append(f"{file}: {what} does not have the archive's checksum; download the file again")
        if members:
            self.checked.append(f"{file.name}: CRC-32 of {len(members)} members")

    def compare_digests(self, file: Path, sums: Sequence[Checksum], digests: Sequence[Digest]) -> None:
        """Add a problem for each checksum that the file does not have."""
        for checksum, digest in zip(sums, digests, strict=True):
            name = f"{checksum.algorithm.upper()} by {checksum.source}"
            self.checked.append(f"{file.name}: {name}")
            if digest.hexdigest() != checksum.digest:
                self.problems.append(
                    f"{file}: {name} is {checksum.digest} and the file has {digest.hexdigest()}; download it again"
                )
