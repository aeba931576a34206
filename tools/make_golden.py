"""Write the golden figures of tests/data/golden: what Hugging Face transformers computes for small random models.

    python tools/make_golden.py [folder [case ...]]

Needs torch and transformers (made with 2.13 and 5.23; llama, ministral3 and mistral3 with 5.24), which neither the
project nor its tests do. Each case is a folder: config.json and model.safetensors as `save_pretrained` writes them, and
golden.json: a list of prompts with the ids that greedy decoding adds and the log-probabilities of prompt ids 1.. and of
the added ids, in float32. Where matrices are 8-bit floats, they are those that the figures were computed with.
transformers keeps a layer's experts stacked in memory and writes them to disk under the names that hubs have,
`block_sparse_moe.experts.M.w1.weight`; the tool makes sure of it.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    MinistralConfig,
    MinistralForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "data" / "golden"
PROMPT_LENGTHS = (1, 2, 6, 17, 40)
MAX_TOKENS = 16
MARGIN = 1e-3  # between the likeliest id and the next, and between the last expert chosen and the next
STD = 0.3  # of the weights: wide enough that logits spread, attention is uneven and positions matter

BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
MISTRAL = (MistralConfig, MistralForCausalLM)
MIXTRAL = (MixtralConfig, MixtralForCausalLM)
MINISTRAL = (MinistralConfig, MinistralForCausalLM)
MINISTRAL3 = (Ministral3Config, Ministral3ForCausalLM)
LLAMA = (LlamaConfig, LlamaForCausalLM)
SMALL_EXPERTS = {"intermediate_size": 20, "num_hidden_layers": 2}
INTERLEAVED = ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# Origins that most prompts pass, several times; of 8 pairs the first stays, two are mixed and the others are slowed
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 12,
    "beta_fast": 1.5,
    "beta_slow": 0.7,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.3,
}
MINISTRAL3_SIZES = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 2}
FLOAT8_LARGEST = 448.0
FLOAT8_CONFIG = {
    "quant_method": "fp8",
    "activation_scheme": "static",
    "weight_block_size": None,
    "dequantize": False,
    "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector", "lm_head"],
}
VISION: dict[str, Any] = {
    "model_type": "pixtral",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "head_dim": 8,
    "image_size": 28,
    "patch_size": 14,
}
# name: (classes, rope_theta, seed of the weights and prompts, what differs from BASE)
CASES: dict[str, tuple[Any, float, int, dict[str, Any]]] = {
    "dense": (MISTRAL, 1e6, 1, {"sliding_window": None}),
    "windowed": (MISTRAL, 1e4, 2, {"sliding_window": 5, "num_key_value_heads": 4, "intermediate_size": 30}),
    "moe": (MIXTRAL, 1e6, 3, SMALL_EXPERTS | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "moe_windowed": (
        MIXTRAL,
        1e4,
        10,
        SMALL_EXPERTS | {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 7},
    ),
    "interleaved": (
        MINISTRAL,
        1e8,
        5,
        {"sliding_window": 4, "layer_types": INTERLEAVED, "num_hidden_layers": 4, "intermediate_size": 24},
    ),
    "head_dim": (
        MISTRAL,
        1e6,
        6,
        {
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "intermediate_size": 28,
            "sliding_window": None,
        },
    ),
    "llama": (LLAMA, 1e4, 8, {"num_key_value_heads": 4, "rms_norm_eps": 1e-6}),
    "llama_linear": (LLAMA, 1e4, 8, {"rope_parameters": {"rope_type": "linear", "factor": 2.5}}),
    "llama3": (
        LLAMA,
        1e3,
        8,
        {"num_attention_heads": 2, "head_dim": 16, "tie_word_embeddings": True, "rope_parameters": LLAMA3},
    ),
    "ministral3": (MINISTRAL3, 20.0, 11, MINISTRAL3_SIZES | {"rope_parameters": YARN}),
    "ministral3_tied": (
        MINISTRAL3,
        30.0,
        12,
        MINISTRAL3_SIZES | {"tie_word_embeddings": True, "rope_parameters": YARN | {"factor": 16.0}},
    ),
    "ministral3_scaled": (
        MINISTRAL3,
        20.0,
        13,
        MINISTRAL3_SIZES
        | {"rope_parameters": YARN | {"factor": 8.0, "mscale_all_dim": 0.0, "llama_4_scaling_beta": 0}},
    ),
    "ministral3_float8": (MINISTRAL3, 20.0, 14, MINISTRAL3_SIZES | {"rope_parameters": YARN}),
    "mistral3": (MINISTRAL3, 20.0, 15, MINISTRAL3_SIZES | {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "tied": (MISTRAL, 1e4, 7, {"tie_word_embeddings": True, "sliding_window": 16, "rms_norm_eps": 1e-6}),
}

FLOAT8 = ("ministral3_float8",)  # cases whose matrices are 8-bit floats on disk
WRAPPED = ("mistral3",)  # cases that are the decoder of a model with a vision tower


def make_model(name: str) -> Any:
    """The case's model: random weights in float32, eager attention."""
    (config_class, model_class), rope_theta, seed, changes = CASES[name]
    rope = {"rope_type": "default", "rope_theta": rope_theta} | changes.get("rope_parameters", {})
    config = config_class(**BASE | changes | {"rope_parameters": rope}, dtype="float32")
    if name in WRAPPED:
        outer = Mistral3Config(
            text_config=config.to_dict(), vision_config=VISION, spatial_merge_size=1, dtype="float32"
        )
        config, model_class = outer, Mistral3ForConditionalGeneration
    config._attn_implementation = "eager"
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            mean, std = (1.0, 0.2) if weight.ndim == 1 else (0.0, STD)  # norms have one dimension
            weight.copy_(torch.randn(weight.shape, generator=generator) * std + mean)
        if name in FLOAT8:
            for weight in float8_matrices(model).values():
                values, scale = as_float8(weight)
                weight.copy_(values.float() * scale)
    return model


def float8_matrices(model: Any) -> dict[str, Any]:
    """The matrices of the layers, by the names of their modules."""
    named = model.named_parameters()
    return {name.removesuffix(".weight"): weight for name, weight in named if ".layers." in name and weight.ndim == 2}


def as_float8(weight: Any) -> tuple[Any, Any]:
    """Values in 8 bits, and the scale that they are multiplied by; dividing again what they give changes nothing."""
    scale = weight.abs().max() / FLOAT8_LARGEST
    return (weight / scale).to(torch.float8_e4m3fn), scale


def store_float8(model: Any, folder: Path) -> None:
    """Write the matrices of the layers again as the files of FP8 models have them, with scales of activations."""
    tensors = load_file(folder / "model.safetensors")
    for name, weight in float8_matrices(model).items():
        values, scale = as_float8(weight.detach())
        assert torch.equal(values.float() * scale, weight), "not the weights that the figures are of"
        tensors |= {f"{name}.weight": values, f"{name}.weight_scale_inv": scale}
        tensors[f"{name}.activation_scale"] = torch.tensor(0.5)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps(config | {"quantization_config": FLOAT8_CONFIG}, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def assert_clear(scores: Any, chosen: int) -> None:
    """That no rounding can change which `chosen` entries of each row are the largest."""
    ranked = scores.sort(dim=-1, descending=True).values
    assert (ranked[..., chosen - 1] - ranked[..., chosen]).min() > MARGIN, "too close to call: choose another seed"


def greedy(model: Any, prompt: list[int]) -> dict[str, Any]:
    """One entry of golden.json, by recomputing the whole sequence for each id."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(MAX_TOKENS):
            last = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert_clear(last, 1)
            ids.append(int(last.argmax()))
        logprobs = model(torch.tensor([ids[:-1]]), use_cache=False).logits[0].log_softmax(-1)
    chosen = [float(f"{logprobs[t, token]:.7g}") for t, token in enumerate(ids[1:])]
    return {"prompt": prompt, "max_tokens": MAX_TOKENS, "tokens": ids[len(prompt) :], "logprobs": chosen}


def watch_routers(model: Any) -> None:
    """Have every router assert that its choice is clear."""
    for layer in model.modules():
        router = getattr(layer, "gate", None)
        if router is not None and hasattr(layer, "experts"):
            router.register_forward_hook(lambda module, _, output: assert_clear(output[0], module.top_k))


def write_case(name: str, folder: Path) -> None:
    """Write config.json, model.safetensors and golden.json of one case."""
    shutil.rmtree(folder, ignore_errors=True)
    model = make_model(name)
    model.save_pretrained(folder)
    if name in FLOAT8:
        store_float8(model, folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert not any("gate_up_proj" in stored for stored in names), "experts are stacked on disk"
    watch_routers(model)
    generator = torch.Generator().manual_seed(100 + CASES[name][2])
    prompts = [torch.randint(BASE["vocab_size"], (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]
    lines = ",\n".join(json.dumps(greedy(model, prompt)) for prompt in prompts)
    (folder / "golden.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def main(folder: Path, names: Sequence[str]) -> None:
    """Write the named cases, or every case, below `folder`."""
    for name in names or CASES:
        write_case(name, folder / name)
        print(f"{name}: {sum(file.stat().st_size for file in (folder / name).iterdir())} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN, sys.argv[2:])
