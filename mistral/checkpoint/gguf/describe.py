"""The metadata of a GGUF file for a model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.checkpoint.quantization import MIXTURES
from mistral.errors import InputError
from mistral.gguf.value import Metadata
from mistral.gguf.write import Plain
from mistral.model.args import ModelArgs
from mistral.model.rope import FactorScaling, LinearScaling, Llama3Scaling, YarnScaling, yarn_sharpness

LONG = 32768  # the context that is written where the model's files do not say one
QUANTIZATION_VERSION = 2  # of llama.cpp's block formats
OWN_KEYS = ("general.architecture", "general.file_type", "general.quantization_version", "general.alignment")


def model_values(checkpoint: Checkpoint, mixture: str) -> dict[str, Plain]:
    """The metadata that describes a model and its file, by key.

    Raises InputError for an architecture that GGUF files cannot describe.
    """
    args = checkpoint.args
    name = "mistral3" if needs_mistral3(args) else "llama"
    values: dict[str, Plain] = {
        "general.architecture": name,
        "general.type": "model",
        **described(checkpoint.gguf, checkpoint.name),
        "general.file_type": MIXTURES[mixture],
        "general.quantization_version": QUANTIZATION_VERSION,
    }
    for key, value in architecture(args).items():
        values[f"{name}.{key}"] = value
    return values


def needs_mistral3(args: ModelArgs) -> bool:
    """Whether a model needs the architecture mistral3 of llama.cpp: for query scaling, and YaRN's own bounds."""
    scaling = args.rope_scaling
    bounds = (scaling.beta_fast, scaling.beta_slow) if isinstance(scaling, YarnScaling) else (32, 1)
    return args.llama_4_scaling is not None or bounds != (32, 1)


def described(source: Metadata | None, name: str) -> dict[str, Plain]:
    """The name of a model, and other general metadata of the GGUF file that it comes from."""
    if source is None:
        return {"general.name": name}
    kept = {key: value for key, value in source.values.items() if key.startswith("general.") and key not in OWN_KEYS}
    return {"general.name": name, **kept}


def architecture(args: ModelArgs) -> dict[str, Plain]:
    """Dimensions, RoPE, windows and experts, by keys without the architecture's name."""
    values: dict[str, Plain] = {
        "context_length": args.max_seq_len or LONG,
        "embedding_length": args.dim,
        "block_count": args.n_layers,
        "feed_forward_length": args.hidden_dim,
        "attention.head_count": args.n_heads,
        "attention.head_count_kv": args.n_kv_heads,
        "attention.key_length": args.head_dim,
        "attention.value_length": args.head_dim,
        "attention.layer_norm_rms_epsilon": float(args.norm_eps),
        "rope.dimension_count": args.head_dim,
        "rope.freq_base": float(args.rope_theta),
        "vocab_size": args.vocab_size,
    }
    if args.moe:
        values |= {"expert_count": args.moe.num_experts, "expert_used_count": args.moe.num_experts_per_tok}
    return values | window_values(args) | scaling_values(args)


def window_values(args: ModelArgs) -> dict[str, Plain]:
    """The sliding window, and the layers that have it if not all do. Raises InputError for different windows."""
    sizes = {window for window in args.sliding_windows if window is not None}
    if not sizes:
        return {}
    if len(sizes) > 1:
        raise InputError(f"GGUF files have one window and this model {len(sizes)}; use the model as it is")
    values: dict[str, Plain] = {"attention.sliding_window": sizes.pop()}
    if None in args.sliding_windows:
        has = np.array([window is not None for window in args.sliding_windows])
        values["attention.sliding_window_pattern"] = has
    return values


def scaling_values(args: ModelArgs) -> dict[str, Plain]:
    """RoPE scaling and query scaling; factors by pair are a tensor, see `rope_factors`."""
    scaling, values = args.rope_scaling, dict[str, Plain]()
    if isinstance(scaling, LinearScaling):
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling.factor)}
    if isinstance(scaling, YarnScaling):
        if not scaling.truncate:
            raise InputError("GGUF files have no YaRN without truncation; use the model as it is")
        values |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(scaling.factor),
            "rope.scaling.original_context_length": scaling.original_max_position_embeddings,
            "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
            "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
            # llama.cpp multiplies this by what YaRN's own formula gives
            "rope.scaling.attn_factor": scaling.attention_factor / yarn_sharpness(scaling.factor),
        }
    if args.llama_4_scaling:
        origin = args.llama_4_scaling.original_max_position_embeddings
        if values.setdefault("rope.scaling.original_context_length", origin) != origin:
            raise InputError(
                "GGUF has one original context length for YaRN and query scaling, this model two; use its own files"
            )
        values |= {
            "attention.temperature_scale": float(args.llama_4_scaling.beta),
            "attention.temperature_length": origin,
        }
    return values


def rope_factors(args: ModelArgs) -> NDArray[np.float32] | None:
    """The divisors of the frequencies (d / 2,), for scalings that are written as a tensor; None for others."""
    scaling = args.rope_scaling
    if not isinstance(scaling, Llama3Scaling | FactorScaling):
        return None
    frequencies = args.rope_theta ** (-np.arange(0, args.head_dim, 2) / args.head_dim)
    return (frequencies / scaling.applied(frequencies, args.rope_theta)).astype(np.float32)
