"""Write the small `.pth` files in tests/data/pth with the real torch.save (torch 2.13). Needs torch; the tests do not.

Every file that holds a model holds the same one: 1 layer, dim 8, 2 heads of 4, 1 kv head, hidden 12, vocabulary 16.
Element i of its tensor number t is ((7 i + 11 t) mod 251 - 125) / 16, exact in every dtype.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent.parent / "tests" / "data" / "pth"
SHAPES = {
    "tok_embeddings.weight": (16, 8),
    "layers.0.attention.wq.weight": (8, 8),
    "layers.0.attention.wk.weight": (4, 8),
    "layers.0.attention.wv.weight": (4, 8),
    "layers.0.attention.wo.weight": (8, 8),
    "layers.0.attention_norm.weight": (8,),
    "layers.0.ffn_norm.weight": (8,),
    "layers.0.feed_forward.w1.weight": (12, 8),
    "layers.0.feed_forward.w2.weight": (8, 12),
    "layers.0.feed_forward.w3.weight": (12, 8),
    "norm.weight": (8,),
    "output.weight": (16, 8),
}


def model(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors, each with a storage of its own."""
    tensors = {}
    for t, (name, shape) in enumerate(SHAPES.items()):
        numbers = (7 * torch.arange(math.prod(shape)) + 11 * t) % 251 - 125
        tensors[name] = (numbers / 16).to(dtype).reshape(shape)
    return tensors


def in_one_storage(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors as views, at offsets, of one storage; `w2` and `wo` with transposed strides."""
    turned = {name: ".w2." in name or ".wo." in name for name in tensors}
    flat = torch.cat([(t.t() if turned[name] else t).flatten() for name, t in tensors.items()])
    views, start = {}, 0
    for name, tensor in tensors.items():
        part = flat[start : start + tensor.numel()]
        views[name] = part.view(tensor.shape[::-1]).t() if turned[name] else part.view(tensor.shape)
        start += tensor.numel()
    return views


def as_state_dict(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An OrderedDict with `_metadata`, as torch.nn.Module.state_dict returns it; one entry is still a Parameter."""
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        module = root
        *path, leaf = name.split(".")
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, torch.nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(leaf, torch.nn.Parameter(tensor))
    state: dict[str, Any] = root.state_dict()
    state["norm.weight"] = root.get_parameter("norm.weight")
    return state


def main() -> None:
    """Write every file."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        torch.save(model(dtype), FOLDER / f"{name}.pth")
    bf16 = model(torch.bfloat16)
    torch.save(in_one_storage(bf16), FOLDER / "one_storage.pth")
    torch.save(as_state_dict(bf16), FOLDER / "state_dict.pth")
    torch.save(bf16 | {"output.weight": bf16["tok_embeddings.weight"]}, FOLDER / "tied.pth")
    torch.save(bf16, FOLDER / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": bf16}, FOLDER / "nested.pth")
    torch.save(bf16 | {"norm.weight": torch.arange(8)}, FOLDER / "int64.pth")
    torch.save(bf16 | {"norm.weight": torch.ones(8, dtype=torch.float8_e4m3fn)}, FOLDER / "float8.pth")
    torch.save(bf16, FOLDER / "protocol4.pth", pickle_protocol=4)
    torch.serialization.set_crc32_options(False)
    torch.save(bf16, FOLDER / "no_checksum.pth")


if __name__ == "__main__":
    main()
