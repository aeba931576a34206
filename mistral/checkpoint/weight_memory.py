"""Bytes of memory that weights take, by backend, bits and stage."""

from __future__ import annotations

import math

import numpy as np

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.checkpoint.quantization import quantized_nbytes, source_of
from mistral.model.args import ModelArgs
from mistral.model.parameters import needs, quantized_bits, tensor_shapes


def copied_nbytes(checkpoint: Checkpoint, args: ModelArgs, backend: str, layers: range | None = None) -> int:
    """Bytes of memory that the weights of `args` take beside the mapped file: not there, or not as they are used.

    Those of the stage that holds `layers`, or of all.
    """
    layers = range(args.n_layers) if layers is None else layers
    shapes = {name: shape for name, shape in tensor_shapes(args).items() if needs(name, args, layers)}
    return sum(copied_of(name, shape, checkpoint, args, backend) for name, shape in shapes.items())


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


def stage_nbytes(checkpoint: Checkpoint, layers: range) -> int:
    """Bytes in the file of the weights of a stage."""
    return sum(checkpoint.nbytes(name) for name in checkpoint.shapes if needs(name, checkpoint.args, layers))
