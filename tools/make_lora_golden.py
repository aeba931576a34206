"""Write the golden figures of tests/data/lora: what Hugging Face's PEFT makes of adapters for the golden models.

    python -m tools.make_lora_golden [folder]

Needs torch, transformers and peft (made with 2.13, 5.24 and 0.21), which neither the project nor its tests do. Each
case is a folder: adapter_config.json and adapter_model.safetensors as `save_pretrained` writes them, and golden.json:
the golden model that the adapter is for, and entries like those of `tools/make_golden.py`.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tools.make_golden import BASE, GOLDEN, greedy, watch_routers

ADAPTERS = GOLDEN.parent / "lora"
PROMPT_LENGTHS = (1, 9)
STD = 0.2  # of both matrices of an adapter
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
# name: (golden model, seed, settings)
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "patterns": (
        "head_dim",
        21,
        {
            "r": 3,
            "lora_alpha": 6,
            "target_modules": [*ATTENTION, "gate_proj", "up_proj", "down_proj", "lm_head"],
            "rank_pattern": {"model.layers.1.self_attn.q_proj": 2, "down_proj": 1},
            "alpha_pattern": {r".*\.2\.mlp\.up_proj": 1, "k_proj": 9},
        },
    ),
    "rslora": ("moe_windowed", 22, {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ATTENTION}),
}


def write_case(name: str, folder: Path) -> None:
    """Write the adapter and golden.json of one case."""
    shutil.rmtree(folder, ignore_errors=True)
    base, seed, settings = CASES[name]
    plain = AutoModelForCausalLM.from_pretrained(GOLDEN / base, dtype="float32", attn_implementation="eager")
    model = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter, weight in sorted(model.named_parameters()):
            if "lora_" in parameter:
                weight.copy_(torch.randn(weight.shape, generator=generator) * STD)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    watch_routers(plain)
    prompts = [torch.randint(BASE["vocab_size"], (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]
    lines = ",\n".join(json.dumps(greedy(model, prompt)) for prompt in prompts)
    (folder / "golden.json").write_text(f'{{"model": "{base}", "entries": [\n{lines}\n]}}\n', encoding="utf-8")


def main(folder: Path) -> None:
    """Write every case below `folder`."""
    for name in CASES:
        write_case(name, folder / name)
        print(f"{name}: {sum(file.stat().st_size for file in (folder / name).iterdir())} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ADAPTERS)
