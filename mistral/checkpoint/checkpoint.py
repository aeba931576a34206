"""A downloaded checkpoint folder, opened as named, memory-mapped tensors."""

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
from mistral.checkpoint.gguf.args import read_gguf_args
from mistral.checkpoint.gguf.model import match_gguf
from mistral.checkpoint.gguf.stored_blocks import StoredBlocks
from mistral.checkpoint.lora import Adapter, open_adapter
from mistral.checkpoint.matching import Found, match_names, read_files, require_countable
from mistral.errors import InputError
from mistral.gguf.model_files import read_model
from mistral.gguf.value import Metadata
from mistral.model.args import ModelArgs
from mistral.model.parameters import parameters
from mistral.ops.blocks.block_quantized import BlockQuantized
from mistral.ops.float8 import FLOAT8, Float8
from mistral.places import find_checkpoint


@dataclass(frozen=True)
class Checkpoint:
    """A model's tensors by the names of Mistral's own files, whatever the file format.

    `shapes` has exactly the tensors of a model of these `args`. Files stay mapped for as long as the checkpoint or an
    array of it exists. `towers`: bytes of the encoders for "images" and "audio" in the files, which are not loaded.
    `warnings` are lines for the user. `gguf`: the metadata of a GGUF file, if it is one; `folder` is then the folder
    that contains it.
    """

    folder: Path
    args: ModelArgs
    form: str
    files: tuple[Path, ...]
    warnings: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    tensors: Mapping[str, Found | StoredBlocks] = field(repr=False)
    rotary_halves: bool  # the rows of wq and wk are in Hugging Face's order
    adapter: Adapter | None = None
    towers: Mapping[str, int] = field(default_factory=dict)
    gguf: Metadata | None = field(default=None, repr=False)

    @property
    def path(self) -> Path:
        """The checkpoint's path: its folder, or the GGUF file."""
        return self.gguf.path if self.gguf else self.folder

    @property
    def name(self) -> str:
        """The checkpoint's name: that of its folder, or of the GGUF file."""
        return self.gguf.path.stem if self.gguf else self.folder.resolve().name

    @property
    def has_blocks(self) -> bool:
        """Whether any tensor is in a block format of GGUF files."""
        return any(map(self.is_in_blocks, self.tensors))

    def get(self, name: str) -> Array:
        """One tensor, read-only, of shape `shapes[name]`: bfloat16 (ml_dtypes), float16 or float32.

        A view of the mapped file, possibly strided. Copies are: wq and wk of a Hugging Face file, in Mistral's order;
        tensors that an adapter changes (those of FP8 are rounded to bfloat16); FP8 and block-quantized matrices, as
        float32. Raises InputError for blocks whose scales are NaN or infinite.
        """
        found = self.packed(name)
        if isinstance(found, BlockQuantized):
            array = self._widened(name, found)
        else:
            array = found.dense() if isinstance(found, Float8) else found
        if not self.adapter or not self.is_merged(name):
            return array
        return self.adapter.deltas[name].added_to(array, self.loaded_dtype(name))

    def _widened(self, name: str, blocks: BlockQuantized) -> Array:
        if bad := blocks.bad_blocks():
            raise InputError(
                f"{self.file_of(name)}: tensor {quoted(name)}: {bad} of its blocks have a scale that is NaN or"
                " infinite; download the file again"
            )
        return blocks.dense()

    def is_merged(self, name: str) -> bool:
        """Whether an adapter changes the tensor."""
        return self.adapter is not None and name in self.adapter.deltas

    def is_in_blocks(self, name: str) -> bool:
        """Whether the tensor is stored in a block format of GGUF files; `get` dequantizes it to float32."""
        return isinstance(self.tensors[name], StoredBlocks)

    def packed(self, name: str) -> Array | Float8 | BlockQuantized:
        """One tensor as stored in the file, without an adapter: FP8 and blocks are not widened.

        A view of the mapped file, except wq and wk of a Hugging Face file, which are copied into Mistral's order.
        """
        found = self.tensors[name].array()
        heads = parameters(self.args)[name].heads if self.rotary_halves else None
        if heads is None or isinstance(found, BlockQuantized):
            return found
        values = neighbouring_pairs(found.values if isinstance(found, Float8) else found, heads)
        values.flags.writeable = False
        return Float8(values, found.scale) if isinstance(found, Float8) else values

    def loaded_dtype(self, name: str) -> np.dtype[np.generic]:
        """The dtype in which a tensor is used: that in the file (uint8 for blocks), or that of a merged copy."""
        if self.is_in_blocks(name) and self.is_merged(name):
            return np.dtype(np.float32)
        dtype = self.dtype(name)
        return np.dtype(ml_dtypes.bfloat16) if dtype == FLOAT8 and self.is_merged(name) else dtype

    def loaded_nbytes(self, name: str) -> int:
        """Bytes that the tensor takes as `loaded_dtype`."""
        tensor, dtype = self.tensors[name], self.loaded_dtype(name)
        return tensor.nbytes if dtype == tensor.dtype else int(np.prod(tensor.shape)) * dtype.itemsize

    def missing(self, name: str) -> Path | None:
        """The file that holds the tensor, if only another rank has that file; None if it is here."""
        return next((part.path for part in self.tensors[name].parts if part.buffer is None), None)

    def release(self, name: str) -> None:
        """Tell the system that the tensor's pages, which have been read, need not stay in memory."""
        for part in self.tensors[name].parts:
            part.release()

    def in_place(self, name: str) -> bool:
        """Whether `get` returns the file's own bytes in row-major order, which can be used without a copy."""
        tensor = self.tensors[name]
        reordered = self.rotary_halves and parameters(self.args)[name].heads is not None
        return tensor.is_contiguous and not reordered and not self.is_merged(name)

    def mapped(self, names: Iterable[str], adapted: bool = True) -> dict[Path, mmap.mmap]:
        """The mapped files, by path, that hold these tensors; `adapted`: also those of an adapter."""
        parts = [part for name in names for part in self.tensors[name].parts]
        if self.adapter and adapted:
            parts += [part for delta in self.adapter.deltas.values() for part in delta.stored]
        return {part.path: part.buffer for part in parts if part.buffer is not None}

    def nbytes(self, name: str) -> int:
        """Bytes of the tensor in the file."""
        return self.tensors[name].nbytes

    def dtype(self, name: str) -> np.dtype[np.generic]:
        """The tensor's dtype in the file; uint8 for blocks."""
        return self.tensors[name].dtype

    def type_name(self, name: str) -> str:
        """The name of the tensor's type: its dtype, or its block format."""
        tensor = self.tensors[name]
        return tensor.kind.name if isinstance(tensor, StoredBlocks) else tensor.dtype.name

    def place(self, name: str) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """The tensor's location in its file: first byte and strides, in elements, of each of its parts."""
        return tuple((part.start, part.strides) for part in self.tensors[name].parts)

    def file_of(self, name: str) -> Path:
        """The file that holds the tensor."""
        return self.tensors[name].path


def open_checkpoint(
    folder: str | Path,
    lora: str | Path | None = None,
    elsewhere: Mapping[str, Mapping[str, StoredTensor]] | None = None,
) -> Checkpoint:
    """Open a folder of official or Hugging Face files, or a GGUF file; only headers are read and checked.

    `folder` may be anything that `find_checkpoint` accepts: also a weight file, or org/name in the local Hugging Face
    cache. `lora`: the folder of an adapter, which is merged into a tensor when it is read. `elsewhere`: files of other
    ranks, by name, with their tensors, which have shapes and no values. Raises InputError, naming the file and the
    tensor, unless the files make up one whole model. With tied embeddings a separate output matrix is accepted if it
    equals the embeddings (64 rows are compared).
    """
    folder = find_checkpoint(folder)
    if folder.is_file():
        return _open_gguf(folder, lora)
    elsewhere = elsewhere or {}
    form = find_form(folder, elsewhere)
    args = read_args(form.args_file)
    contents = read_files(form, elsewhere)
    tensors, warnings = match_names(form, args, contents.tensors), contents.warnings
    unread = dict.fromkeys((*args.towers, *contents.towers))
    warnings = (*(f"{what} {'is' if what == 'audio' else 'are'} not read; text only" for what in unread), *warnings)
    adapter = None if lora is None else open_adapter(lora, args)
    if args.ignored_keys:
        warnings = (_ignored(form.args_file, args), *warnings)
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


def _open_gguf(path: Path, lora: str | Path | None) -> Checkpoint:
    model = read_model(path)
    args = read_gguf_args(model)
    require_countable(args, model.path)
    tensors = match_gguf(model, args)
    count = len(model.files)
    return Checkpoint(
        folder=path.parent,
        args=args,
        form=f"GGUF ({count} files)" if count > 1 else "GGUF",
        files=tuple(file.path for file in model.files),
        warnings=(_ignored(model.path, args),) if args.ignored_keys else (),
        shapes={name: tensor.shape for name, tensor in tensors.items()},
        tensors=tensors,
        rotary_halves=False,
        adapter=None if lora is None else open_adapter(lora, args),
        gguf=model.metadata,
    )


def _ignored(file: Path, args: ModelArgs) -> str:
    keys = ", ".join(quoted(key) for key in args.ignored_keys[:20])
    return f"{file.name}: keys not known, ignored: {keys}"
