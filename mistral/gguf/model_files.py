"""The GGUF files that make up one model: a single one, or a set NAME-0000x-of-0000N.gguf."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mistral.errors import InputError
from mistral.gguf.header import GgufFile, TensorPlace, read_gguf
from mistral.gguf.value import Metadata
from mistral.mapped_file import quoted

PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
MOST_FILES = 4096


@dataclass(frozen=True)
class GgufModel:
    """The mapped files of a model; `metadata` is that of the first. `tensors`: the file and location of each."""

    files: tuple[GgufFile, ...]
    metadata: Metadata
    tensors: Mapping[str, tuple[GgufFile, TensorPlace]]

    @property
    def path(self) -> Path:
        """The first file."""
        return self.files[0].path


def model_paths(path: Path) -> tuple[Path, ...]:
    """The files of the model that a file belongs to, by their names. Raises InputError for a missing one."""
    match = PART.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count <= MOST_FILES:
        raise InputError(f"{path}: its number is not in the set; rename it as it was called")
    found = [path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    if missing := [each for each in found if not each.exists()]:
        raise InputError(f"{missing[0]}: missing, {len(missing)} of {count} files are; download it")
    return tuple(found)


def read_metadata(path: Path) -> Metadata:
    """The metadata of the model that a file belongs to."""
    return read_gguf(model_paths(path)[0]).metadata


def read_model(path: Path) -> GgufModel:
    """Read the headers of a model's files. Raises InputError for files that are not those of one model."""
    files = tuple(read_gguf(each) for each in model_paths(path))
    tensors: dict[str, tuple[GgufFile, TensorPlace]] = {}
    for number, file in enumerate(files):
        count = file.metadata.number(COUNT) or 1
        if count != len(files):
            ways = "name it NAME-00001-of-0000N.gguf with its parts beside it" if len(files) == 1 else "rename it"
            raise InputError(f"{file.path}: is one of {count} files by its {COUNT}; {ways}, or download it again")
        if len(files) > 1 and (file.metadata.number(NUMBER) or 0) != number:
            raise InputError(f"{file.path}: is not part {number + 1} by its {NUMBER}; download it again")
        for name, place in file.tensors.items():
            if name in tensors:
                raise InputError(
                    f"{file.path}: tensor {quoted(name)} is in {tensors[name][0].path.name} too; download both again"
                )
            tensors[name] = (file, place)
    expected = files[0].metadata.number(TENSORS)
    if len(files) > 1 and expected is not None and expected != len(tensors):
        raise InputError(f"{files[0].path}: its files have {len(tensors)} tensors and should have {expected};"
                         " download them again")  # fmt: skip
    return GgufModel(files, files[0].metadata, tensors)
