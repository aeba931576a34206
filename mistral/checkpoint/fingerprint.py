"""What tells one model's weights from another's."""

from __future__ import annotations

import hashlib

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.checkpoint.quantized_tensor import QuantizedTensor
from mistral.model.args import ModelArgs

SAMPLE = 256  # bytes of each tensor that tell one checkpoint from another


def fingerprint(checkpoint: Checkpoint, args: ModelArgs) -> str:
    """What tells this model from others, such as another training of the same architecture; `args` as it is used.

    Its architecture, the shape and dtype of every tensor, and some bytes out of the middle of each.
    """
    digest = hashlib.sha256(repr(args).encode())
    for name in sorted(checkpoint.shapes):
        tensor = checkpoint.tensors[name]
        digest.update(repr((name, tensor.shape, tensor.dtype.name)).encode())
        for part in tensor.parts if isinstance(tensor, QuantizedTensor) else (tensor,):
            middle = part.start + part.nbytes // 2
            digest.update(part.buffer[middle : middle + SAMPLE] if part.buffer else b"")
    if checkpoint.adapter:  # merged into the weights, it makes another model
        digest.update(checkpoint.adapter.identity().encode())
    return digest.hexdigest()
