"""Small random adapters in both layouts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral.model.args import ModelArgs
from mistral.model.parameters import parameters
from tests.support.checkpoint_forms import HF_NAMES, Array, write_safetensors
from tests.support.torch_file import write_torch_file


@dataclass(frozen=True)
class Factors:
    """A and B by the names of the model's matrices, in Mistral's order, and what scales their product."""

    pairs: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    scale: float

    def merged(self, tensors: Mapping[str, Array]) -> dict[str, NDArray[np.float32]]:
        """The model's tensors with the adapter in them."""
        found = {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
        for name, (a, b) in self.pairs.items():
            found[name] = found[name] + np.float32(self.scale) * (b @ a)
        return found


def random_factors(args: ModelArgs, pattern: str = r"layers", rank: int = 3, scale: float = 1.25) -> Factors:
    """For all matrices whose names have the pattern in them."""
    random = np.random.default_rng(7)
    pairs = {}
    for name, each in parameters(args).items():
        if each.is_matrix and re.search(pattern, name):
            a, b = (random.standard_normal(s, np.float32) / 4 for s in ((rank, each.shape[1]), (each.shape[0], rank)))
            pairs[name] = (a.astype(np.float32), b.astype(np.float32))
    return Factors(pairs, scale)


def write_official(folder: Path, factors: Factors, dtype: Any = np.float32) -> Path:
    """lora.safetensors and params.json, as mistral-finetune leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    rank = next(iter(factors.pairs.values()))[0].shape[0]
    tensors = {
        f"{name.removesuffix('.weight')}.lora_{letter}.weight": factor.astype(dtype)
        for name, pair in factors.pairs.items()
        for letter, factor in zip("AB", pair, strict=True)
    }
    write_safetensors(folder / "lora.safetensors", tensors)
    lora = {"enable": True, "rank": rank, "dropout": 0.0, "scaling": factors.scale}
    (folder / "params.json").write_text(json.dumps({"dim": 1, "lora": lora}))
    return folder


def peft_tensors(args: ModelArgs, factors: Factors) -> dict[str, Array]:
    """Under PEFT's names, the rows of q's and k's B in Hugging Face's order."""
    tensors: dict[str, Array] = {}
    for name, (a, b) in factors.pairs.items():
        if re.search(r"attention\.w[qk]", name):
            heads = args.n_heads if "wq" in name else args.n_kv_heads
            b = b.reshape(heads, args.head_dim // 2, 2, -1).transpose(0, 2, 1, 3).reshape(b.shape)
        for pattern, replacement in HF_NAMES:
            name = re.sub(pattern, replacement, name)
        module = "base_model.model." + name.removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    return tensors


def write_peft(
    folder: Path, args: ModelArgs, factors: Factors, form: str = "adapter_model.safetensors", **settings: Any
) -> Path:
    """adapter_config.json, with `settings` put into it, and the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    rank = next(iter(factors.pairs.values()))[0].shape[0]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": factors.scale * rank, "bias": "none", "use_rslora": False}
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    write = write_safetensors if form.endswith(".safetensors") else write_torch_file
    write(folder / form, peft_tensors(args, factors))
    return folder
