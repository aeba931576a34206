"""Write a model's tensors, quantized, as safetensors files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.checkpoint.formats.safetensors_file import stored_nbytes, write_header
from mistral.checkpoint.quantization import source_of
from mistral.checkpoint.quantized_tensor import part_names
from mistral.errors import InputError
from mistral.memory import gigabytes
from mistral.model.args import ModelArgs
from mistral.model.parameters import Parameter, parameters
from mistral.ops.quantize import quantize_array
from mistral.ops.quantized import part_forms

ReportBytes = Callable[[int, int], None]  # bytes written so far, bytes to write in all
SHARD = 4 * 10**9  # bytes of tensors in a file, at most, as long as one tensor is not larger


@dataclass(frozen=True)
class Planned:
    """A parameter to write, and dtype and shape of each tensor that the file has for it, by their names."""

    parameter: Parameter
    parts: dict[str, tuple[str, tuple[int, ...]]]

    @property
    def nbytes(self) -> int:
        """Bytes of all these tensors together."""
        return sum(stored_nbytes(dtype, shape) for dtype, shape in self.parts.values())


def planned(checkpoint: Checkpoint, args: ModelArgs) -> Iterator[Planned]:
    """What to write for each parameter of the quantized model, in the order of a checkpoint."""
    for name, parameter in parameters(args).items():
        if parameter.bits is None:
            dtype = str(checkpoint.dtype(source_of(name, checkpoint)))
            yield Planned(parameter, {name: (dtype, parameter.shape)})
        else:
            forms = part_forms(parameter.bits, parameter.shape)
            yield Planned(parameter, dict(zip(part_names(name), forms, strict=True)))


def write_model(checkpoint: Checkpoint, args: ModelArgs, folder: Path, progress: ReportBytes) -> int:
    """Write all tensors of the quantized model into safetensors files in the folder; returns their bytes.

    `progress` is called after each tensor. Raises InputError where the disk is too full or a weight is not finite.
    """
    shards: list[list[Planned]] = [[]]
    for tensor in planned(checkpoint, args):
        if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > SHARD:
            shards.append([])
        shards[-1].append(tensor)
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise InputError(f"{folder.parent}: needs {gigabytes(total)} and has {gigabytes(free)} free; free some space")
    done = 0
    for number, shard in enumerate(shards, 1):
        name = "consolidated.safetensors"
        if len(shards) > 1:
            name = f"consolidated-{number:05}-of-{len(shards):05}.safetensors"
        with (folder / name).open("wb") as out:
            write_header(out, {part: form for tensor in shard for part, form in tensor.parts.items()})
            for tensor in shard:
                for part in quantized_parts(checkpoint, tensor.parameter):
                    out.write(part)
                checkpoint.release(source_of(tensor.parameter.name, checkpoint))
                done += tensor.nbytes
                progress(done, total)
            out.flush()
            os.fsync(out.fileno())
    return total


def quantized_parts(checkpoint: Checkpoint, parameter: Parameter) -> Iterator[memoryview]:
    """The bytes of each tensor that the file has for a parameter of the quantized model."""
    source = source_of(parameter.name, checkpoint)
    array, bits = checkpoint.get(source), parameter.bits
    if bits is None:
        yield np.ascontiguousarray(array).view(np.uint8).data
        return
    found = quantize_array(array, bits, f"{checkpoint.file_of(source)}: tensor {source}")
    yield from (part.data for part in (found.values, found.scales, found.exponents))
