"""A checkpoint folder, as it is downloaded, opened as named, memory-mapped tensors."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np

from mistral.checkpoint.args_file import read_args
from mistral.checkpoint.file_sets import find_form
from mistral.checkpoint.foreign_names import neighbouring_pairs
from mistral.checkpoint.formats.stored_tensor import Array, StoredTensor, quoted
from mistral.checkpoint.lora import Adapter, open_adapter
from mistral.checkpoint.matching import Found, match_names, read_files
from mistral.model.args import ModelArgs
from mistral.model.parameters import parameters
from mistral.ops.float8 import FLOAT8, Float8
from mistral.ops.quantized import Quantized
from mistral.places import find_checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """A model's tensors by the names of Mistral's own files, whatever form the files have.

    `shapes` has exactly the tensors of a model of these `args`. Files stay mapped for as long as the checkpoint or an
    array out of it lives. `towers`: bytes of what the files hold beside the decoder and is not loaded, by what it
    reads. `warnings` are lines that a user may want to see.
    """

    folder: Path
    args: ModelArgs
    form: str
    files: tuple[Path, ...]
    warnings: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    tensors: Mapping[str, Found] = field(repr=False)
    rotary_halves: bool  # the rows of wq and wk lie in Hugging Face's order
    adapter: Adapter | None = None
    towers: Mapping[str, int] = field(default_factory=dict)

    def get(self, name: str) -> Array:
        """One tensor, read-only, of shape `shapes[name]`: bfloat16 (ml_dtypes), float16 or float32.

        A view of the mapped file, possibly strided; wq and wk of a Hugging Face file are copied into Mistral's order,
        what an adapter changes is a copy, and a matrix of 8 or 4 bits or of 8-bit floats is widened to float32. Of
        8-bit floats, what an adapter changes is rounded to bfloat16.
        """
        found = self.packed(name)
        if isinstance(found, Quantized):
            return found.dense()
        array = found.dense() if isinstance(found, Float8) else found
        if not self.adapter or not self.is_merged(name):
            return array
        return self.adapter.deltas[name].added_to(array, self.loaded_dtype(name))

    def is_merged(self, name: str) -> bool:
        """Whether an adapter changes the tensor."""
        return self.adapter is not None and name in self.adapter.deltas

    def packed(self, name: str) -> Array | Quantized | Float8:
        """One tensor as it lies in the file, without an adapter: `Quantized` and `Float8` are not widened.

        Views of the mapped file, but for wq and wk of a Hugging Face file, which are copied into Mistral's order.
        """
        found = self.tensors[name].array()
        heads = parameters(self.args)[name].heads if self.rotary_halves else None
        if heads is None or isinstance(found, Quantized):
            return found
        values = neighbouring_pairs(found.values if isinstance(found, Float8) else found, heads)
        values.flags.writeable = False
        return Float8(values, found.scale) if isinstance(found, Float8) else values

    def loaded_dtype(self, name: str) -> np.dtype[np.generic]:
        """The dtype in which a tensor is used as it lies or, where an adapter changes it, as a copy."""
        dtype = self.dtype(name)
        return np.dtype(ml_dtypes.bfloat16) if dtype == FLOAT8 and self.is_merged(name) else dtype

    def loaded_nbytes(self, name: str) -> int:
        """Bytes that the tensor takes as `loaded_dtype`."""
        tensor, dtype = self.tensors[name], self.loaded_dtype(name)
        return tensor.nbytes if dtype == tensor.dtype else int(np.prod(tensor.shape)) * dtype.itemsize

    def missing(self, name: str) -> Path | None:
        """The file that holds the tensor, where that file is on another rank only; None where it is here."""
        return next((part.path for part in self.tensors[name].parts if part.buffer is None), None)

    def release(self, name: str) -> None:
        """Tell the system that the pages of the tensor's file, once read, need not stay in memory."""
        for part in self.tensors[name].parts:
            part.release()

    def in_place(self, name: str) -> bool:
        """Whether `get` gives the file's own bytes in row-major order, so that using them copies nothing."""
        tensor = self.tensors[name]
        reordered = self.rotary_halves and parameters(self.args)[name].heads is not None
        return tensor.is_contiguous and not reordered and not self.is_merged(name)

    def mapped(self, names: Iterable[str], adapted: bool = True) -> dict[Path, mmap.mmap]:
        """The mapped files, by their paths, that hold these tensors; `adapted`: also those of an adapter."""
        parts = [part for name in names for part in self.tensors[name].parts]
        if self.adapter and adapted:
            parts += [part for delta in self.adapter.deltas.values() for part in delta.stored]
        return {part.path: part.buffer for part in parts if part.buffer is not None}

    def nbytes(self, name: str) -> int:
        """Bytes that the tensor takes in the file."""
        return self.tensors[name].nbytes

    def dtype(self, name: str) -> np.dtype[np.generic]:
        """The tensor's dtype in the file."""
        return self.tensors[name].dtype

    def place(self, name: str) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Where the tensor lies in its file: first byte and strides, in elements, of each of its parts."""
        return tuple((part.start, part.strides) for part in self.tensors[name].parts)

    def file_of(self, name: str) -> Path:
        """The file that holds the tensor."""
        return self.tensors[name].path


def open_checkpoint(
    folder: str | Path,
    lora: str | Path | None = None,
    elsewhere: Mapping[str, Mapping[str, StoredTensor]] | None = None,
) -> Checkpoint:
    """Open a folder of official or Hugging Face files; only headers are read, and all that they show is checked.

    `folder` may be all that `find_checkpoint` finds: also a weight file, or org/name in the local Hugging Face cache.
    `lora`: the folder of an adapter, which is merged into the tensors that it changes when they are asked for.
    `elsewhere`: files that are not in the folder, by name, and the tensors in them; these have a shape and no values.
    Raises InputError, one line with the file and the tensor, for anything that does not make up one whole model. With
    tied embeddings a separate output matrix is accepted if it is the embeddings again (compared in 64 rows).
    """
    folder = find_checkpoint(folder)
    elsewhere = elsewhere or {}
    form = find_form(folder, elsewhere)
    args = read_args(form.args_file)
    contents = read_files(form, elsewhere)
    tensors, warnings = match_names(form, args, contents.tensors), contents.warnings
    unread = dict.fromkeys((*args.towers, *contents.towers))
    warnings = (*(f"{what} {'is' if what == 'audio' else 'are'} not read; text only" for what in unread), *warnings)
    adapter = None if lora is None else open_adapter(lora, args)
    if args.ignored_keys:
        keys = ", ".join(quoted(key) for key in args.ignored_keys[:20])
        warnings = (f"{form.args_file.name}: keys not known, ignored: {keys}", *warnings)
    return Checkpoint(
        folder=folder,
        args=args,
        form=form.name,
        files=form.files,
        warnings=form.warnings + warnings,
        shapes={name: tensor.shape for name, tensor in tensors.items()},
        tensors=tensors,
        rotary_halves=form.hugging_face,
        adapter=adapter,
        towers=contents.towers,
    )
