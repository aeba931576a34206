"""RoPE scaling and query scaling in the metadata of a GGUF file."""

from __future__ import annotations

import math

import numpy as np

from mistral.checkpoint.gguf.names import ROPE_FACTORS
from mistral.checkpoint.keys import Keys
from mistral.checkpoint.rotary_keys import LONGEST
from mistral.errors import InputError
from mistral.gguf.model_files import GgufModel
from mistral.mapped_file import quoted
from mistral.model.rope import (
    FactorScaling,
    LinearScaling,
    Llama4Scaling,
    RopeScaling,
    YarnScaling,
    yarn_sharpness,
)
from mistral.text import shown

YARN_KEYS = tuple(
    f"rope.scaling.{key}"
    for key in (
        "original_context_length", "attn_factor", "yarn_log_multiplier", "yarn_ext_factor", "yarn_attn_factor",
        "yarn_beta_fast", "yarn_beta_slow",
    )
)  # fmt: skip


def rope_scaling(keys: Keys, prefix: str, model: GgufModel, head_dim: int) -> RopeScaling | None:
    """The scaling of rotary frequencies, from the keys `rope.scaling` or the factors in a tensor.

    A factor without a type is linear, and 0 means none, as in llama.cpp. Raises InputError for an unsupported one.
    """
    kind = keys.take(f"{prefix}rope.scaling.type")
    old = keys.number(f"{prefix}rope.scale_linear", default=1.0, zero=True)  # what files of 2023 call the factor
    factor = keys.number(f"{prefix}rope.scaling.factor", default=old, zero=True) or 1.0
    for other in (*YARN_KEYS, "rope.scaling.finetuned"):
        keys.take(prefix + other)  # these change nothing for other kinds
    if kind not in (None, "none", "linear", "yarn"):
        raise InputError(
            f"{keys.source}: {prefix}rope.scaling.type {shown(kind)} is not supported (none, linear and yarn are, and"
            f" factors in {ROPE_FACTORS})"
        )
    named: RopeScaling | None = LinearScaling(factor) if kind in (None, "linear") and factor != 1 else None
    if kind == "yarn":
        named = yarn(keys, prefix, factor)
    factors = rope_factors(model, head_dim)
    if factors and named:
        raise InputError(f"{keys.source}: {ROPE_FACTORS} and {prefix}rope.scaling.type are both there; one must go")
    return factors or named


def yarn(keys: Keys, prefix: str, factor: float) -> YarnScaling:
    """YaRN in llama.cpp's keys: the attention factor follows from a weight, `yarn_log_multiplier`, and a factor."""
    scaling = f"{prefix}rope.scaling."
    if keys.number(f"{scaling}yarn_ext_factor", default=1.0) != 1:
        raise InputError(f"{keys.source}: {scaling}yarn_ext_factor is not supported")
    weight = keys.number(f"{scaling}yarn_log_multiplier", default=0.0, zero=True)
    sharpness = yarn_sharpness(factor) / (yarn_sharpness(factor, weight) if weight else 1.0)
    given = keys.number(f"{scaling}yarn_attn_factor", default=sharpness)
    if not math.isclose(given, sharpness, rel_tol=1e-4):  # which transformers obeys and llama.cpp passes over
        raise InputError(f"{keys.source}: {scaling}yarn_attn_factor {given} is not supported; {sharpness:.6g} follows"
                         " from the other keys")  # fmt: skip
    sharpness *= keys.number(f"{scaling}attn_factor", default=1.0)
    return YarnScaling(
        factor, keys.integer(f"{scaling}original_context_length", limit=LONGEST),
        keys.number(f"{scaling}yarn_beta_fast", default=32.0), keys.number(f"{scaling}yarn_beta_slow", default=1.0),
        sharpness,
    )  # fmt: skip


def growing_queries(keys: Keys, prefix: str) -> Llama4Scaling | None:
    """The scaling of queries by position: from `temperature_length` on, or the context before YaRN."""
    beta = keys.number(f"{prefix}attention.temperature_scale", default=0.0, zero=True)
    origin = keys.take(f"{prefix}attention.temperature_length")
    if not beta:
        return None
    key = "attention.temperature_length" if origin else "rope.scaling.original_context_length"
    return Llama4Scaling(keys.integer(prefix + key, limit=LONGEST), beta)


def rope_factors(model: GgufModel, head_dim: int) -> FactorScaling | None:
    """The divisors of the frequencies, a tensor in files of Llama 3.1 and later; None without it."""
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
