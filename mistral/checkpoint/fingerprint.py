"""A digest that differs between models, also between two trainings of one architecture."""

from __future__ import annotations

import hashlib

from mistral.checkpoint.checkpoint import Checkpoint

SAMPLE = 256  # bytes from the middle of each tensor in the digest


def fingerprint(checkpoint: Checkpoint, bits: int = 16) -> str:
    """The digest of a model, 64 hexadecimal digits; `bits` are those with which it is loaded.

    It is the SHA-256 of the architecture, the shape and dtype of every tensor, some bytes from the middle of each, and
    the identity of an adapter.
    """
    digest = hashlib.sha256(repr((checkpoint.args, bits)).encode())
    for name in sorted(checkpoint.shapes):
        tensor = checkpoint.tensors[name]
        digest.update(repr((name, tensor.shape, checkpoint.type_name(name))).encode())
        for part in tensor.parts:
            first = part.start + (part.nbytes // 2 if part.nbytes > SAMPLE else 0)
            last = min(first + SAMPLE, part.start + part.nbytes)  # what lies behind it may be no part of the model
            digest.update(part.buffer[first:last] if part.buffer else b"")
    if checkpoint.adapter:  # merged into the weights, it makes another model
        digest.update(checkpoint.adapter.identity().encode())
    return digest.hexdigest()
