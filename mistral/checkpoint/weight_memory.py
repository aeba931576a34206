"""Bytes of memory for weights, by backend, bits and stage."""

from __future__ import annotations

import math

import numpy as np

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.checkpoint.quantization import block_kind
from mistral.model.parameters import Parameter, owns, parameters
from mistral.ops.blocks.block_quantized import byte_shape


def copied_nbytes(checkpoint: Checkpoint, bits: int, backend: str, layers: range | None = None) -> int:
    """Bytes of memory beside the mapped file that the weights of a stage take: those not in the file as they are used.

    `bits`: those with which the model is loaded; `layers`: those of the stage (default: all).
    """
    args = checkpoint.args
    layers = range(args.n_layers) if layers is None else layers
    owned = (parameter for parameter in parameters(args).values() if owns(layers, parameter, args))
    return sum(copied_of(parameter, checkpoint, bits, backend) for parameter in owned)


def copied_of(parameter: Parameter, checkpoint: Checkpoint, bits: int, backend: str) -> int:
    """Bytes of memory that one weight, of a model as it is used, takes beside the mapped file."""
    name, kind = parameter.name, block_kind(parameter, checkpoint.args, bits)
    if backend == "native":
        if kind is not None:
            lies_so = checkpoint.type_name(name) == kind.name and not checkpoint.is_merged(name)
            return 0 if lies_so else math.prod(byte_shape(kind, parameter.shape))
        return 0 if checkpoint.in_place(name) else checkpoint.loaded_nbytes(name)
    stays = kind is None and checkpoint.dtype(name) == np.float32 and checkpoint.in_place(name)
    return 0 if stays else 4 * parameter.size


def used_in_place(checkpoint: Checkpoint, bits: int, backend: str, layers: range) -> list[str]:
    """Tensors of the checkpoint whose bytes in the file the backend goes on reading, of the stage that holds `layers`.

    `bits` of the model as it is used.
    """
    args = checkpoint.args
    owned = (parameter for parameter in parameters(args).values() if owns(layers, parameter, args))
    return [each.name for each in owned if not copied_of(each, checkpoint, bits, backend)]


def used_nbytes(checkpoint: Checkpoint, bits: int, backend: str) -> dict[str, int]:
    """Bytes of each weight as the backend reads it, in memory or in the mapped file, by the weight's name.

    `bits` of the model as it is used.
    """
    args = checkpoint.args
    if backend != "native":
        return {name: 4 * parameter.size for name, parameter in parameters(args).items()}
    kinds = {name: block_kind(parameter, args, bits) for name, parameter in parameters(args).items()}
    return {
        name: checkpoint.loaded_nbytes(name) if kind is None else math.prod(byte_shape(kind, checkpoint.shapes[name]))
        for name, kind in kinds.items()
    }


def stage_nbytes(checkpoint: Checkpoint, layers: range) -> int:
    """Bytes that the weights of the stage that holds `layers` have in the file."""
    args = checkpoint.args
    return sum(checkpoint.nbytes(name) for name, each in parameters(args).items() if owns(layers, each, args))
