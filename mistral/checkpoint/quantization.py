"""The quantized form of a model: its architecture, and what its tensors are made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.errors import InputError
from mistral.model.args import ModelArgs, Quantization
from mistral.model.parameters import EMBEDDING, HEAD
from mistral.ops.quantized import stored_shapes


def model_args(checkpoint: Checkpoint, bits: int) -> ModelArgs:
    """The architecture as it is used with weights of 16 (as in the file), 8 or 4 bits.

    Raises InputError where the checkpoint is quantized to another number of bits.
    """
    quantization = checkpoint.args.quantization
    if bits == 16 or (quantization and quantization.bits == bits):
        return checkpoint.args
    if quantization:
        raise InputError(
            f"{checkpoint.folder} has {quantization.bits} bits; leave it out, or name the original",
            option="bits",
            value=bits,
        )
    return quantized_args(checkpoint.args, bits)


def quantized_nbytes(bits: int, shape: tuple[int, ...]) -> int:
    """Bytes of a matrix (out, in) in 8 or 4 bits: values, scales and exponents."""
    values, scales = stored_shapes(bits, *shape)
    return int(np.prod(values) + np.prod(scales)) + shape[0]


def quantized_args(args: ModelArgs, bits: int, output_bits: int = 8) -> ModelArgs:
    """The architecture with quantized matrices; a tied head becomes a matrix of its own."""
    return replace(args, tied_embeddings=False, quantization=Quantization(bits, output_bits))


def source_of(name: str, checkpoint: Checkpoint) -> str:
    """The tensor of an unquantized checkpoint that `name` of the quantized model is made of."""
    return EMBEDDING if name == HEAD and checkpoint.args.tied_embeddings else name
