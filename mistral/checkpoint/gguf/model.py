"""The tensors of a GGUF file matched against what its model needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np

from mistral.checkpoint.formats.stored_tensor import StoredTensor, row_major
from mistral.checkpoint.gguf.names import ROPE_FACTORS, gguf_name, is_ignored, merged_name, reason
from mistral.checkpoint.gguf.stored_blocks import StoredBlocks
from mistral.errors import InputError
from mistral.gguf.header import GgufFile, TensorPlace, read_gguf
from mistral.gguf.model_files import GgufModel
from mistral.mapped_file import quoted
from mistral.model.args import ModelArgs
from mistral.model.parameters import Parameter, parameters
from mistral.ops.blocks.block_quantized import byte_shape
from mistral.ops.blocks.kind import PLAIN, SUPPORTED

GgufTensor = StoredTensor | StoredBlocks


def match_gguf(model: GgufModel, args: ModelArgs) -> dict[str, GgufTensor]:
    """Every tensor of the model by its name in Mistral's files.

    Rows of wq and wk are in Mistral's order in files of the supported architectures. Raises InputError for a tensor
    that is missing, not expected, of the wrong shape, or of an unsupported type.
    """
    left = set(model.tensors) - {ROPE_FACTORS}
    found: dict[str, GgufTensor] = {}
    for name, parameter in parameters(args).items():
        in_file, merged = name_in_file(model, parameter, args), merged_name(parameter)
        file, place = model.tensors[in_file]
        shape = parameter.shape
        if in_file == merged:
            assert args.moe
            shape = (args.moe.num_experts, *shape)
        require_fit(file.path, in_file, place, shape)
        found[name] = taken(file, place, parameter, in_file == merged)
        left.discard(in_file)
    for name in sorted(left):
        if not is_ignored(name):
            file = model.tensors[name][0]
            raise InputError(
                f"{file.path}: tensor {quoted(name)} is not part of the model that its values describe{reason(name)}"
            )
    return found


def name_in_file(model: GgufModel, parameter: Parameter, args: ModelArgs) -> str:
    """The tensor that holds a parameter: its own, or for an expert that of all experts of its layer.

    Raises InputError if both exist, or neither.
    """
    own, merged = gguf_name(parameter), merged_name(parameter)
    there = [name for name in (own, merged) if name is not None and name in model.tensors]
    if len(there) > 1:
        raise InputError(
            f"{model.path}: tensors {quoted(own)} and {quoted(there[1])} hold the same expert; download the file again"
        )
    if there:
        return there[0]
    experts = (replace(parameter, expert=number) for number in range(args.moe.num_experts if args.moe else 0))
    is_split = merged is None or any(gguf_name(each) in model.tensors for each in experts)
    raise InputError(f"{model.path}: tensor {quoted(own if is_split else merged or own)} is missing; download the file"
                     " again")  # fmt: skip


def require_fit(path: Path, name: str, place: TensorPlace, shape: tuple[int, ...]) -> None:
    """Raise InputError for a tensor of the wrong shape, or of an unsupported type."""
    if not place.kind.is_supported:
        raise InputError(
            f"{path}: tensor {quoted(name)} is of type {place.kind.name}, which is not read ({', '.join(SUPPORTED)}"
            " are); use a file of another type"
        )
    if place.shape != shape:
        raise InputError(
            f"{path}: tensor {quoted(name)} has shape {place.shape} and its values ask for {shape};"
            " download the file again"
        )


def taken(file: GgufFile, place: TensorPlace, parameter: Parameter, merged: bool) -> GgufTensor:
    """A parameter from a file's tensor, or one expert's part of a tensor of all experts."""
    whole = stored(file, place)
    if not merged:
        return whole
    assert parameter.expert is not None
    rows = parameter.shape[0]
    return whole.rows(parameter.expert * rows, (parameter.expert + 1) * rows)


def stored(file: GgufFile, place: TensorPlace) -> GgufTensor:
    """A tensor as stored in the file; the experts of a layer are stacked, (E * out, in)."""
    shape = place.shape if len(place.shape) < 3 else (place.shape[0] * place.shape[1], place.shape[2])
    if place.kind.is_plain:
        name = PLAIN[place.kind.name]
        dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
        return StoredTensor(file.path, file.buffer, place.start, dtype, shape, row_major(shape))
    bytes_shape = byte_shape(place.kind, shape)
    values = StoredTensor(file.path, file.buffer, place.start, np.dtype(np.uint8), bytes_shape, row_major(bytes_shape))
    return StoredBlocks(values, place.kind, shape)


def read_gguf_tensors(path: Path) -> dict[str, GgufTensor]:
    """Every tensor of a file by its name there, without those of unsupported types."""
    file = read_gguf(path)
    return {name: stored(file, place) for name, place in file.tensors.items() if place.kind.is_supported}
