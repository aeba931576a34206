"""A row's cache in a file, with a text: the format of prompt caches and saved conversations.

The file is safetensors. Its metadata names the checkpoint that computed the cache, by a fingerprint; its tensors are
`ids` (n,), `text` (bytes of UTF-8) and, for each layer, `layers.N.keys` and `layers.N.values` (KV, slots, d). It is the
same for any number of ranks.
"""

from __future__ import annotations

import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mistral.atomic_files import replaced
from mistral.checkpoint.formats.safetensors_file import read_metadata, read_safetensors, write_header
from mistral.checkpoint.formats.stored_tensor import StoredTensor
from mistral.errors import InputError, setting
from mistral.model.args import ModelArgs
from mistral.model.kv_cache import Snapshot, Stored, can_rewind, full_slots, wraps

KIND = "mistral-mindspore cache "
FORMAT = KIND + "2"  # 1 had no spare slots
ADVICE = re.compile(r"; (download|use) .*$")  # the remedy in errors of checkpoint readers, which does not apply here


@dataclass(frozen=True)
class Saved:
    """The contents of a file: a text, and a snapshot of the cache unless nothing had been computed."""

    text: str
    snapshot: Snapshot | None


def write_saved(path: Path, saved: Saved, checkpoint: str) -> None:
    """Write a file atomically; `checkpoint` is the model's fingerprint.

    Only a file of the same kind is overwritten. Raises InputError if it cannot be written.
    """
    if "\0" in str(path):
        raise InputError(f"{str(path)!r}: a file name cannot contain a zero character; name another file")
    path = Path(os.path.realpath(path))
    if os.path.exists(path) and not is_saved(path):
        raise InputError(f"{path}: exists and is not a saved cache; name another file")
    tensors: dict[str, Stored] = {"text": np.frombuffer(saved.text.encode(), np.uint8)}
    written = 0
    if saved.snapshot:
        written = saved.snapshot.written
        tensors["ids"] = np.array(saved.snapshot.ids, np.int64)
        for layer, (keys, values) in saved.snapshot.layers.items():
            tensors[f"layers.{layer}.keys"], tensors[f"layers.{layer}.values"] = keys, values
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    metadata = {"format": FORMAT, "checkpoint": checkpoint, "written": str(written), "crc32": str(checksum(tensors))}
    with replaced(path) as file:
        write_header(file, {name: (array.dtype.name, array.shape) for name, array in tensors.items()}, metadata)
        for array in tensors.values():
            file.write(array.view(np.uint8).data)


def is_saved(path: Path) -> bool:
    """Whether `write_saved` has written this file, for any checkpoint and in any version."""
    try:
        return read_metadata(path).get("format", "").startswith(KIND)
    except InputError:
        return False


def checksum(tensors: dict[str, Stored]) -> int:
    """CRC-32 of names and bytes, in order."""
    found = 0
    for name, array in tensors.items():
        found = zlib.crc32(array.view(np.uint8).data, zlib.crc32(name.encode(), found))
    return found


def open_saved(path: Path, checkpoint: str) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """Metadata and tensors of a file; reads only its header.

    Raises InputError for another kind of file, an incomplete one, or one of another checkpoint.
    """
    try:
        metadata, tensors = read_metadata(path), read_safetensors(path)
    except InputError as error:
        raise InputError(ADVICE.sub("; name another file", str(error))) from None
    kind = metadata.get("format", "")
    if kind.startswith(KIND) and kind != FORMAT:
        which = "an earlier" if kind == KIND + "1" else "another"
        raise InputError(f"{path}: was saved by {which} version of this program; delete it, or name another file")
    if kind != FORMAT:
        raise InputError(f"{path}: no saved cache of this program; name another file")
    if metadata.get("checkpoint") != checkpoint:
        other = f"another checkpoint or other {setting('bits')}"
        raise InputError(f"{path}: was saved with {other}; use these, or another file")
    return metadata, tensors


def read_saved(path: Path, checkpoint: str, args: ModelArgs, slot_bytes: int) -> Saved:
    """The contents of a file, read into memory and checked.

    `checkpoint`: the fingerprint of this model; `slot_bytes`: bytes of each element of the backend's cache. Raises
    InputError for another kind of file, a damaged one, or one of another model.
    """
    metadata, stored = open_saved(path, checkpoint)
    tensors = {name: _in_memory(tensor.array()) for name, tensor in stored.items()}
    if metadata.get("crc32") != str(checksum(tensors)):
        raise _damaged(path, "its checksum is wrong")
    text = _text(path, tensors.pop("text", None))
    if not tensors:
        return Saved(text, None)
    snapshot = _snapshot(path, tensors, metadata.get("written", ""), args)
    if any(part.itemsize != slot_bytes for layer in snapshot.layers.values() for part in layer):
        given = f"another {setting('backend')} or {setting('precise')}"
        raise InputError(f"{path}: was saved with {given}; use these, or another file")
    return Saved(text, snapshot)


def _in_memory(array: Stored) -> Stored:
    """A copy of a mapped array, whose file may change; bfloat16 as its bits."""
    bits = array.view(np.uint16) if array.dtype.name == "bfloat16" else array
    return np.array(bits, order="C")


def _text(path: Path, array: Stored | None) -> str:
    try:
        if array is not None and array.dtype == np.uint8:
            return array.tobytes().decode()
    except UnicodeDecodeError:
        pass
    raise _damaged(path, "its text cannot be read")


def _snapshot(path: Path, tensors: dict[str, Stored], written: str, args: ModelArgs) -> Snapshot:
    """The snapshot, with exactly the layers and slots of a row of a model with these `args`."""
    ids = tensors.pop("ids", np.zeros(0))
    if ids.dtype != np.int64 or ids.ndim != 1 or not ids.size or ids.min() < 0 or ids.max() >= args.vocab_size:
        raise _damaged(path, "its ids are not the model's")
    seen = int(written) if written.isascii() and written.isdigit() and len(written) < 16 else -1
    wrapped = any(wraps(seen, window) for window in args.sliding_windows)
    possible = seen >= ids.size if wrapped else seen == ids.size
    if not possible or not can_rewind(args.sliding_windows, seen, ids.size):
        raise _damaged(path, "its tokens and its cache do not belong together")
    layers = {}
    for layer, window in enumerate(args.sliding_windows):
        slots = full_slots(window) if window is not None and wraps(seen, window) else ids.size
        shape = (args.n_kv_heads, slots, args.head_dim)
        parts = [tensors.pop(f"layers.{layer}.{name}", None) for name in ("keys", "values")]
        for part in parts:
            if part is None or part.shape != shape or part.dtype.name not in ("float32", "uint16"):
                raise _damaged(path, f"layer {layer} is not the model's")
        layers[layer] = parts[0], parts[1]
    if tensors:
        raise _damaged(path, "it holds more than a cache")
    return Snapshot(tuple(ids.tolist()), seen, layers)  # type: ignore[arg-type]  # none is None


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path}: damaged: {reason}; name another file")
