"""A checkpoint written as a GGUF file, its matrices in block formats."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.checkpoint.gguf.describe import model_values, rope_factors
from mistral.checkpoint.gguf.importances import Importances
from mistral.checkpoint.gguf.names import ROPE_FACTORS, gguf_name, merged_name
from mistral.checkpoint.quantization import kind_of
from mistral.errors import InputError
from mistral.gguf.write import Plain, PlannedTensor, header, padding
from mistral.memory import gigabytes
from mistral.model.parameters import Parameter, parameters
from mistral.ops.blocks.block_quantized import BlockQuantized
from mistral.ops.blocks.kind import BY_NAME, PLAIN, Kind
from mistral.ops.blocks.quantize import quantize_blocks

ReportBytes = Callable[[int, int], None]  # bytes written so far, bytes to write in all


@dataclass(frozen=True)
class Planned:
    """A tensor to write, and its parameters: one, or those of all experts of a layer."""

    tensor: PlannedTensor
    parameters: tuple[Parameter, ...]


def planned(checkpoint: Checkpoint, mixture: str, weighted: bool) -> list[Planned]:
    """The tensors to write, in the order of a checkpoint."""
    args, parts = checkpoint.args, dict[str, list[Parameter]]()
    for parameter in parameters(args).values():
        parts.setdefault(merged_name(parameter) or gguf_name(parameter), []).append(parameter)
    found = []
    for name, members in parts.items():
        kind, shape = kind_of(members[0], args, mixture, weighted), members[0].shape
        whole = shape if members[0].expert is None else (len(members), *shape)
        found.append(Planned(PlannedTensor(name, kind, whole), tuple(members)))
    return found


def write_gguf(
    checkpoint: Checkpoint,
    path: Path,
    mixture: str,
    tokenizer: Mapping[str, Plain],
    progress: ReportBytes,
    importances: Importances | None = None,
) -> int:
    """Write a checkpoint to a new file; returns the bytes of its tensors.

    tokenizer: its metadata by key. `progress` is called after each parameter. Raises InputError if the disk is full, a
    weight is not finite, or GGUF cannot describe the model.
    """
    tensors = planned(checkpoint, mixture, importances is not None)
    factors = rope_factors(checkpoint.args)
    listed = [each.tensor for each in tensors]
    if factors is not None:
        listed.append(PlannedTensor(ROPE_FACTORS, BY_NAME["F32"], factors.shape))
    first = header(model_values(checkpoint, mixture) | dict(tokenizer), listed)
    total = sum(tensor.nbytes for tensor in listed)
    needed, free = len(first) + total, shutil.disk_usage(path.parent).free
    if needed > free:
        raise InputError(f"{path.name}: needs {gigabytes(needed)} and {gigabytes(free)} are free; free some space")
    done = 0
    with path.open("xb") as out:
        out.write(first)
        for each in tensors:
            for parameter in each.parameters:
                data = tensor_bytes(checkpoint, parameter, each.tensor.kind, importances)
                out.write(data)
                checkpoint.release(parameter.name)
                done += data.nbytes
                progress(done, total)
            out.write(padding(each.tensor.nbytes))
        if factors is not None:
            out.write(factors.astype("<f4").tobytes() + padding(factors.nbytes))
        out.flush()
        os.fsync(out.fileno())
    return total


def tensor_bytes(
    checkpoint: Checkpoint, parameter: Parameter, kind: Kind, importances: Importances | None
) -> memoryview:
    """The bytes of a parameter as `kind`. Raises InputError for weights that it cannot hold."""
    name = parameter.name
    if kind.is_plain:
        return plain_bytes(checkpoint, name, kind)
    return blocks_of(checkpoint, parameter, kind, importances).values.reshape(-1).data


def blocks_of(
    checkpoint: Checkpoint, parameter: Parameter, kind: Kind, importances: Importances | None = None
) -> BlockQuantized:
    """A parameter of a checkpoint in blocks of `kind`; those of the file if it has that kind there."""
    name = parameter.name
    if not checkpoint.is_merged(name):
        found = checkpoint.packed(name)
        if isinstance(found, BlockQuantized) and found.kind is kind:
            return found
    counts = None if importances is None else importances.of(parameter)
    return quantize_blocks(checkpoint.get(name), kind, counts, f"{checkpoint.file_of(name)}: tensor {name}")


def plain_bytes(checkpoint: Checkpoint, name: str, kind: Kind) -> memoryview:
    """The bytes of a parameter without blocks."""
    dtype = np.dtype(ml_dtypes.bfloat16) if kind.name == "BF16" else np.dtype(PLAIN[kind.name])
    array = checkpoint.get(name)
    with np.errstate(over="ignore"):
        made = np.ascontiguousarray(array.astype(dtype, copy=False))
    if dtype == np.float16 and not np.isfinite(made).all():
        lost = int(np.count_nonzero(~np.isfinite(made)))
        raise InputError(
            f"{checkpoint.file_of(name)}: tensor {name}: {lost} of its values are beyond float16, NaN or infinite;"
            " write BF16 instead"
        )
    return made.reshape(-1).view(np.uint8).data
