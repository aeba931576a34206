"""The names of parameters in GGUF files."""

from __future__ import annotations

from mistral.model.parameters import Parameter

ROPE_FACTORS = "rope_freqs.weight"
_OUTSIDE_LAYERS = {"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output"}
_IN_A_LAYER = {
    "wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output", "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm", "w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up", "gate": "ffn_gate_inp",
}  # fmt: skip


def gguf_name(parameter: Parameter) -> str:
    """The name of a parameter in a file in which each expert has tensors of its own."""
    if parameter.layer is None:
        return f"{_OUTSIDE_LAYERS[parameter.weight]}.weight"
    expert = "" if parameter.expert is None else f".{parameter.expert}"
    return f"blk.{parameter.layer}.{_IN_A_LAYER[parameter.weight]}{expert}.weight"


def merged_name(parameter: Parameter) -> str | None:
    """The name of the tensor (E, out, in) of all experts of a layer, for an expert's parameter; None for any other."""
    if parameter.expert is None:
        return None
    return f"blk.{parameter.layer}.{_IN_A_LAYER[parameter.weight]}_exps.weight"


def is_ignored(name: str) -> bool:
    """Whether a tensor is a table that no model needs: old files have the rotary frequencies of each layer."""
    return name.endswith(".attn_rot_embd.weight") or name.endswith(".rope_freqs.weight")


def reason(name: str) -> str:
    """The end of an error about a tensor that is not part of the model: what its name means."""
    if name.endswith(".bias"):
        return ": biases are not supported"
    if "_norm." in name and ("attn_q" in name or "attn_k" in name):
        return ": norms of queries and keys are not supported"
    return ": experts that all tokens share are not supported" if "shexp" in name else ""
