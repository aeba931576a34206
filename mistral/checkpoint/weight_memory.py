"""Bytes of memory that weights take, by backend, bits and stage."""

from __future__ import annotations

import numpy as np

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.checkpoint.quantization import quantized_nbytes, source_of
from mistral.model.args import ModelArgs
from mistral.model.parameters import Parameter, owns, parameters


def copied_nbytes(checkpoint: Checkpoint, args: ModelArgs, backend: str, layers: range | None = None) -> int:
    """Bytes of memory beside the mapped file that the weights of a stage take: those not in the file as they are used.

    `args` is the model as it is used; the stage holds `layers`, or all of them.
    """
    layers = range(args.n_layers) if layers is None else layers
    owned = (parameter for parameter in parameters(args).values() if owns(layers, parameter, args))
    return sum(copied_of(parameter, checkpoint, backend) for parameter in owned)


def copied_of(parameter: Parameter, checkpoint: Checkpoint, backend: str) -> int:
    """Bytes of memory that one weight, of a model as it is used, takes beside the mapped file."""
    source, bits = source_of(parameter.name, checkpoint), parameter.bits
    if backend == "native":
        if bits is not None and checkpoint.args.quantization is None:
            return quantized_nbytes(bits, parameter.shape)
        if checkpoint.is_widened(source):
            return 4 * parameter.size
        return 0 if checkpoint.in_place(source) else checkpoint.loaded_nbytes(source)
    stays = bits is None and checkpoint.dtype(source) == np.float32 and checkpoint.in_place(source)
    return 0 if stays else 4 * parameter.size


def used_in_place(checkpoint: Checkpoint, args: ModelArgs, backend: str, layers: range) -> list[str]:
    """Tensors of the checkpoint whose bytes in the file the backend goes on reading, of the stage that holds `layers`.

    `args` is the model as it is used.
    """
    owned = (parameter for parameter in parameters(args).values() if owns(layers, parameter, args))
    return [source_of(each.name, checkpoint) for each in owned if not copied_of(each, checkpoint, backend)]


def used_nbytes(checkpoint: Checkpoint, args: ModelArgs, backend: str) -> dict[str, int]:
    """Bytes of each weight as the backend reads it, in memory or in the mapped file, by the weight's name.

    `args` is the model as it is used.
    """
    if backend != "native":
        return {name: 4 * parameter.size for name, parameter in parameters(args).items()}
    return {
        name: checkpoint.loaded_nbytes(source_of(name, checkpoint))
        if parameter.bits is None
        else quantized_nbytes(parameter.bits, parameter.shape)
        for name, parameter in parameters(args).items()
    }


def stage_nbytes(checkpoint: Checkpoint, layers: range) -> int:
    """Bytes that the weights of the stage that holds `layers` have in the file."""
    args = checkpoint.args
    return sum(checkpoint.nbytes(name) for name, each in parameters(args).items() if owns(layers, each, args))
