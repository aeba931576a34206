"""The block format of each parameter of a quantized model: llama.cpp's mixtures, by its names."""

from __future__ import annotations

from mistral.errors import InputError
from mistral.model.args import ModelArgs
from mistral.model.parameters import HEAD, Parameter
from mistral.ops.blocks.kind import BY_NAME, Kind

# The mixtures that can be made, and their numbers in a file's general.file_type
MIXTURES = {"Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q4_K_M": 15, "Q4_0": 2, "IQ4_XS": 30, "BF16": 32, "F16": 1}
MIXTURE_OF_BITS = {8: "Q8_0", 4: "Q4_K_M"}
# What takes the place of blocks of 256 weights where these do not divide a row
FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}


def check_mixture(option: str, name: str) -> None:
    """Raise InputError, naming the option, for an unknown mixture."""
    if name not in MIXTURES:
        raise InputError(f"must be one of {', '.join(MIXTURES)}", option=option, value=name)


def kind_of(parameter: Parameter, args: ModelArgs, mixture: str, weighted: bool = False) -> Kind:
    """The type of a parameter in a file of this mixture; `weighted`: importances are known.

    Norms and routers stay float32. If 32 does not divide the row length, the type is float16.
    """
    if not parameter.is_matrix or parameter.part == "router":
        return BY_NAME["F32"]
    kind = BY_NAME[_wanted(parameter, args, mixture, weighted)]
    if parameter.shape[-1] % kind.weights and kind.name in FALLBACKS:
        kind = BY_NAME[FALLBACKS[kind.name]]
    return BY_NAME["F16"] if parameter.shape[-1] % kind.weights else kind


def block_kind(parameter: Parameter, args: ModelArgs, bits: int) -> Kind | None:
    """The block format of a parameter of a model that is loaded with `bits`; None if it is not quantized."""
    if bits not in MIXTURE_OF_BITS:
        return None
    kind = kind_of(parameter, args, MIXTURE_OF_BITS[bits])
    return None if kind.is_plain else kind


def _wanted(parameter: Parameter, args: ModelArgs, mixture: str, weighted: bool) -> str:
    """The type of a matrix in a mixture, if its row length allows it."""
    base = mixture.removesuffix("_M")
    if base in ("F16", "BF16", "Q8_0"):
        return base
    if parameter.name == HEAD or (parameter.part == "embedding" and args.tied_embeddings):
        return "Q8_0" if parameter.shape[-1] % BY_NAME[base].weights else "Q6_K"
    if parameter.layer is None:
        return base
    if parameter.part == "attention":
        return _wanted_in_attention(parameter, args, mixture)
    n, layer = args.n_layers, parameter.layer
    if parameter.weight == "w2":
        if mixture.endswith("_K_M") and _more_bits(layer, n):
            return "Q6_K"
        if mixture == "IQ4_XS" and layer < n // 8 and not weighted:
            return "Q5_K"
        if mixture == "Q4_0" and layer < n // 8 and weighted:
            return "Q4_1"
    return base


def _wanted_in_attention(parameter: Parameter, args: ModelArgs, mixture: str) -> str:
    base, eight_experts = mixture.removesuffix("_M"), args.moe is not None and args.moe.num_experts == 8
    assert parameter.layer is not None
    if parameter.weight in ("wk", "wv") and eight_experts:
        return "Q8_0"
    if parameter.weight == "wo" and eight_experts and mixture in ("Q4_K_M", "IQ4_XS"):
        return "Q5_K"
    if parameter.weight != "wv":
        return base
    if mixture == "IQ4_XS" and args.n_heads // args.n_kv_heads >= 4:
        return "Q5_K"
    if mixture.endswith("_K_M") and _more_bits(parameter.layer, args.n_layers):
        return "Q6_K"
    return "Q5_K" if base == "Q4_K" and args.n_layers == 80 and args.n_heads != args.n_kv_heads else base


def _more_bits(layer: int, n_layers: int) -> bool:
    """Whether wv and w2 of a layer have more bits: in the first and last eighth, and in every third layer between."""
    return layer < n_layers // 8 or layer >= 7 * n_layers // 8 or (layer - n_layers // 8) % 3 == 2
