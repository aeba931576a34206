"""A checkpoint folder, a backend and a device -> a model."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mistral.args import ModelArgs
from mistral.checkpoint import Checkpoint, open_checkpoint
from mistral.checkpoint.names import quantized_bits, tensor_shapes
from mistral.checkpoint.tensor_file import Array
from mistral.device import check_device, start_device
from mistral.errors import InputError
from mistral.memory import available_memory, gigabytes, require_memory
from mistral.model import Transformer
from mistral.ops import WORTH_BUILDING, check_backend, choose_backend, load_backend
from mistral.quantize import quantize_array, quantized_args, quantized_nbytes, source_of
from mistral.quantized import Quantized

if TYPE_CHECKING:
    from mistral.ops.weight import Weight

Progress = Callable[[int, int], None]  # bytes of the checkpoint read so far, bytes to read


def check_options(num_pipeline_ranks: int = 1, backend: str = "auto", bits: int = 16, device: str = "auto") -> None:
    """Refuse, by name, what this program does not do. Needs nothing loaded."""
    if num_pipeline_ranks != 1:
        raise InputError(f"--num_pipeline_ranks {num_pipeline_ranks}: pipelines are not available yet; leave it at 1")
    if bits not in (16, 8, 4):
        raise InputError(f"--bits {bits}: must be 16 (as in the file), 8 or 4")
    check_device(device)
    check_backend(backend)


def copied_nbytes(checkpoint: Checkpoint, args: ModelArgs, backend: str) -> int:
    """Bytes of memory that the weights of `args` take beside the mapped file: not there, or not as they are used."""
    return sum(copied_of(name, shape, checkpoint, args, backend) for name, shape in tensor_shapes(args).items())


def copied_of(name: str, shape: tuple[int, ...], checkpoint: Checkpoint, args: ModelArgs, backend: str) -> int:
    """The same of one weight."""
    source, bits, size = source_of(name, checkpoint), quantized_bits(name, args), math.prod(shape)
    quantizes = bits is not None and checkpoint.args.quantization is None
    if backend == "native":
        if quantizes:
            return quantized_nbytes(bits or 16, shape)
        return 0 if checkpoint.in_place(source) else checkpoint.nbytes(source)
    stays = bits is None and checkpoint.dtype(source) == np.float32 and checkpoint.in_place(source)
    return 0 if stays else 4 * size


def used_nbytes(checkpoint: Checkpoint, args: ModelArgs, backend: str) -> dict[str, int]:
    """Bytes that each weight of `args` has as the backend reads it, wherever it lies."""
    found = {}
    for name, shape in tensor_shapes(args).items():
        bits = quantized_bits(name, args)
        stored = checkpoint.nbytes(source_of(name, checkpoint)) if bits is None else quantized_nbytes(bits, shape)
        found[name] = stored if backend == "native" else 4 * math.prod(shape)
    return found


def backend_for(checkpoint: Checkpoint, args: ModelArgs, backend: str, device: str) -> str:
    """The backend behind "auto" for this model; see `choose_backend`."""
    total = sum(checkpoint.nbytes(name) for name in checkpoint.shapes)
    return choose_backend(backend, device, WORTH_BUILDING if args.quantization else total)


def model_args(checkpoint: Checkpoint, bits: int) -> ModelArgs:
    """The model as it will be used. Raises InputError where a quantized checkpoint has other bits."""
    quantization = checkpoint.args.quantization
    if bits == 16 or (quantization and quantization.bits == bits):
        return checkpoint.args
    if quantization:
        raise InputError(
            f"--bits {bits}: {checkpoint.folder} has {quantization.bits} bits; leave it out, or name the original"
        )
    return quantized_args(checkpoint.args, bits)


def check_memory(checkpoint: Checkpoint, args: ModelArgs, backend: str) -> None:
    """Raise InputError where weights need more memory than is free; a note where the mapped file does."""
    needed, free = copied_nbytes(checkpoint, args, backend), available_memory()
    sizes = {bits: copied_nbytes(checkpoint, quantized_args(checkpoint.args, bits), "native") for bits in (8, 4)}
    smaller = [f"--bits {bits} needs {gigabytes(size)}" for bits, size in sizes.items() if size <= free]
    remedy = (
        " and ".join(smaller) if smaller and not args.quantization else "use a machine with more, or a smaller model"
    )
    form = " in float32" if backend == "portable" else ""
    require_memory(needed, free, f"{checkpoint.folder}: this model{form}", remedy)
    mapped = sum(checkpoint.nbytes(name) for name in checkpoint.shapes) - needed
    if backend == "native" and not needed and mapped > free:
        print(
            f"note: the weights take {gigabytes(mapped)} and {gigabytes(free)} are free: every token will wait for the"
            f" disk; {remedy}",
            file=sys.stderr,
        )


def load_model(
    folder: str | Path | Checkpoint,
    num_pipeline_ranks: int = 1,
    backend: str = "auto",
    bits: int = 16,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    precise: bool = False,
) -> Transformer:
    """The whole model of a checkpoint, or of a folder that holds one.

    `bits` 8 or 4 quantizes the matrices while loading; `precise` keeps activations and cache float32. Raises InputError
    for a folder that is no sound checkpoint, an option that is not available, or too little memory; then nothing stays
    loaded.
    """
    check_options(num_pipeline_ranks, backend, bits, device)
    checkpoint = folder if isinstance(folder, Checkpoint) else open_checkpoint(folder)
    args = model_args(checkpoint, bits)
    total = sum(checkpoint.nbytes(name) for name in checkpoint.shapes)
    backend = backend_for(checkpoint, args, backend, start_device(device, threads))
    check_memory(checkpoint, args, backend)
    ops = load_backend(backend, precise)
    done = 0

    def get(name: str) -> Weight:
        nonlocal done
        source, bits = source_of(name, checkpoint), quantized_bits(name, args)
        array: Array | Quantized | None = checkpoint.quantized(source)
        if array is None:
            array = checkpoint.get(source)
            if bits is not None:
                array = quantize_array(array, bits, f"{checkpoint.file_of(source)}: tensor {source}")
                checkpoint.release(source)
        done += checkpoint.nbytes(source)
        if progress:
            progress(min(done, total), total)
        return ops.weight(array)

    return Transformer(args, get, ops)
