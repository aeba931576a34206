"""Which weight files of a folder make up the model.

Official files come first: `params.json` with, in this order, consolidated.safetensors,
consolidated-0000x-of-0000N.safetensors, consolidated.NN.pth, consolidated.NN.pt. Otherwise Hugging Face's:
`config.json` with model.safetensors, the files that an index lists, model-0000x-of-0000N.safetensors, and the same of
pytorch_model.bin. The weights of the two are never mixed; official weights that came with a `config.json` alone, as the
first Mixtral release did, are read by that.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from mistral.checkpoint.formats.stored_tensor import quoted
from mistral.errors import InputError, setting
from mistral.places import ADAPTERS, WEIGHTS, contents_of, how_to_get
from mistral.text import read_json

_SHARD = re.compile(r"(?P<set>consolidated|model|pytorch_model)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<kind>\w+)")
_NUMBERED = re.compile(r"consolidated\.(?P<number>\d\d)\.(?P<kind>pth|pt)")


@dataclass(frozen=True)
class Form:
    """A file format found in a folder, and the files to read.

    `name` is for messages. `weight_map` is the table of an index file `index`, if there is one: tensor name to file
    name. It may list files that are not in the folder; whether they are needed is checked later.
    """

    name: str
    args_file: Path
    files: tuple[Path, ...]
    hugging_face: bool
    weight_map: Mapping[str, str] | None = None
    index: Path | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Files:
    name: str
    files: list[str]
    weight_map: Mapping[str, str] | None = None
    index: str | None = None


def find_form(folder: Path, elsewhere: Collection[str] = ()) -> Form:
    """The format to read in a folder; `elsewhere` are names of files that other ranks have, which count as present.

    Raises InputError if the folder holds no model or a set of files is incomplete.
    """
    names = _file_names(folder) | set(elsewhere)
    official = _official_files(folder, names)
    if official and "params.json" in names:
        return _form(folder, names, official, "params.json")
    hugging_face = _hugging_face_files(folder, names)
    if hugging_face and "config.json" in names:
        return _form(folder, names, hugging_face, "config.json")
    if official and "config.json" in names:
        return _form(folder, names, official, "config.json")
    if official or hugging_face:
        weights, needed = (official, "params.json") if official else (hugging_face, "config.json")
        assert weights
        raise InputError(f"{folder}: has {weights.name} but no {needed}; {how_to_get(folder, needed)} too")
    if not names.isdisjoint(ADAPTERS):
        remedy = f"name the model's folder, and this one with {setting('lora')}"
        raise InputError(f"{folder}: holds an adapter; {remedy}")
    if instead := contents_of(folder, names):
        raise InputError(f"{folder}: {instead}")
    present = [name for name in ("params.json", "config.json") if name in names]
    beside = f" beside {present[0]}" if present else ""
    raise InputError(
        f"{folder}: no weights{beside} (consolidated.*.pth, consolidated*.safetensors, model*.safetensors, "
        f"pytorch_model*.bin or one *.gguf); {how_to_get(folder).replace('it', 'them', 1)} or name another folder"
    )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Every file that could be part of a model's weights by its name, in complete sets or not."""
    return tuple(folder / name for name in sorted(_file_names(folder)) if WEIGHTS.fullmatch(name))


def _form(folder: Path, names: set[str], found: _Files, args_file: str) -> Form:
    files = tuple(folder / name for name in found.files)
    others = sorted(name for name in names - set(found.files) if WEIGHTS.fullmatch(name))
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    warnings = (f"{found.name} is read, and {others[0]}{more} beside it is not",) if others else ()
    hugging_face = not found.files[0].startswith("consolidated")
    index = folder / found.index if found.index else None
    return Form(found.name, folder / args_file, files, hugging_face, found.weight_map, index, warnings)


def _file_names(folder: Path) -> set[str]:
    try:
        names = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        raise InputError(f"{folder}: no such folder; name the folder of a downloaded model") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from None
    if not names:
        raise InputError(f"{folder}: is empty; download a model into it or name another folder")
    return names


def _official_files(folder: Path, names: set[str]) -> _Files | None:
    if "consolidated.safetensors" in names:
        return _Files("consolidated.safetensors", ["consolidated.safetensors"])
    return _shards(folder, names, "consolidated", "safetensors") or _numbered(folder, names)


def _hugging_face_files(folder: Path, names: set[str]) -> _Files | None:
    for stem, kind in (("model", "safetensors"), ("pytorch_model", "bin")):
        whole, index = f"{stem}.{kind}", f"{stem}.{kind}.index.json"
        if whole in names:
            return _Files(f"Hugging Face {whole}", [whole])
        if index in names:
            return _indexed(folder, names, index, kind)
        if shards := _shards(folder, names, stem, kind):
            return shards
    return None


def _shards(folder: Path, names: set[str], stem: str, kind: str) -> _Files | None:
    """The files of a set NAME-0000x-of-0000N, None without one. Raises InputError unless all N are there."""
    matches = [match for name in names if (match := _SHARD.fullmatch(name))]
    matches = [match for match in matches if match["set"] == stem and match["kind"] == kind]
    if not matches:
        return None
    counts = sorted({match["count"] for match in matches})
    if len(counts) > 1:
        raise InputError(f"{folder}: files of two sets, -of-{counts[0]} and -of-{counts[1]}; remove one of the sets")
    wanted = [f"{stem}-{number:05}-of-{counts[0]}.{kind}" for number in range(1, int(counts[0]) + 1)]
    if missing := [name for name in wanted if name not in names]:
        count = f"{len(missing)} of {len(wanted)} files are"
        raise InputError(f"{folder / missing[0]}: missing, {count}; {how_to_get(folder, missing[0])}")
    if strange := sorted({match[0] for match in matches} - set(wanted)):
        raise InputError(f"{folder / strange[0]}: its number is not in the set; remove it or download the set again")
    family = "consolidated" if stem == "consolidated" else "Hugging Face"
    return _Files(f"{family} {kind} ({len(wanted)} files)", wanted)


def _numbered(folder: Path, names: set[str]) -> _Files | None:
    """consolidated.00.pth and the files that follow it, None without any. Raises InputError for a gap."""
    for kind in ("pth", "pt"):
        matches = [match for name in names if (match := _NUMBERED.fullmatch(name)) and match["kind"] == kind]
        if not matches:
            continue
        last = max(int(match["number"]) for match in matches)
        wanted = [f"consolidated.{number:02}.{kind}" for number in range(last + 1)]
        if missing := [name for name in wanted if name not in names]:
            raise InputError(
                f"{folder / missing[0]}: missing, and {wanted[-1]} is there; {how_to_get(folder, missing[0])}"
            )
        return _Files(wanted[0] if last == 0 else f"{wanted[0]} ({len(wanted)} files)", wanted)
    return None


def _indexed(folder: Path, names: set[str], index: str, kind: str) -> _Files:
    """The files here that an index lists. Raises InputError if there are none, or for an invalid index."""
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or any(type(name) is not str for name in weight_map.values()):
        raise InputError(f"{folder / index}: no weight_map from tensors to files in it; download it again")
    listed = sorted(set(weight_map.values()))
    if strange := next((name for name in listed if Path(name).name != name), None):  # a path would lead elsewhere
        raise InputError(f"{folder / index}: {quoted(strange)} is not a plain file name; download it again")
    files = [name for name in listed if name in names]
    if not files:
        raise InputError(missing_file(folder, listed[0], index))
    count = "1 file" if len(files) == 1 else f"{len(files)} files"
    return _Files(f"Hugging Face {kind} ({count})", files, weight_map, index)


def missing_file(folder: Path, name: str, index: str) -> str:
    """The message for a needed file that an index lists and that is missing."""
    return f"{folder}: {quoted(name)} is missing, and {index} lists it; {how_to_get(folder, quoted(name))}"
