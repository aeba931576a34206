"""The rotary embedding as a GGUF file's values describe it."""

from __future__ import annotations

import numpy as np

from mistral.checkpoint.gguf.names import ROPE_FACTORS
from mistral.checkpoint.keys import Keys
from mistral.errors import InputError
from mistral.gguf.model_files import GgufModel
from mistral.mapped_file import quoted
from mistral.model.rope import FactorScaling, LinearScaling, RopeScaling
from mistral.text import shown


def rope_scaling(keys: Keys, prefix: str, model: GgufModel, head_dim: int) -> RopeScaling | None:
    """The scaling of the rotary angles: of the keys `rope.scaling`, or by the factors in a tensor.

    Raises InputError for one that is not supported.
    """
    kind = keys.take(f"{prefix}rope.scaling.type")
    factor = keys.number(f"{prefix}rope.scaling.factor", default=1.0)
    for other in ("rope.scaling.original_context_length", "rope.scaling.finetuned"):
        keys.take(prefix + other)  # it changes nothing for the kinds below
    old = keys.take(f"{prefix}rope.scale_linear")
    if kind is None and old is not None:
        kind, factor = "linear", keys.number(f"{prefix}rope.scale_linear")
    if kind not in (None, "none", "linear"):
        raise InputError(
            f"{keys.source}: {prefix}rope.scaling.type {shown(kind)} is not supported (none and linear are, and factors"
            f" in {ROPE_FACTORS})"
        )
    linear = LinearScaling(factor) if kind == "linear" and factor != 1 else None
    factors = rope_factors(model, head_dim)
    if factors and linear:
        raise InputError(f"{keys.source}: {ROPE_FACTORS} and {prefix}rope.scaling.type are both there; one must go")
    return factors or linear


def rope_factors(model: GgufModel, head_dim: int) -> FactorScaling | None:
    """The factors by which pairs are slowed, which files of Llama 3.1 and later have in a tensor; None without it."""
    if ROPE_FACTORS not in model.tensors:
        return None
    file, place = model.tensors[ROPE_FACTORS]
    tensor = f"{file.path}: tensor {quoted(ROPE_FACTORS)}"
    if place.kind.name != "F32" or place.shape != (head_dim // 2,):
        raise InputError(
            f"{tensor} is {place.kind.name} of shape {place.shape} and must be F32 of shape {(head_dim // 2,)}"
        )
    values = np.frombuffer(file.buffer, "<f4", place.shape[0], place.start)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise InputError(f"{tensor} has factors that are not positive numbers; download the file again")
    return None if (values == 1).all() else FactorScaling(tuple(map(float, values)))
