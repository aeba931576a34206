"""The models since October 2024: params.json and config.json as they are published, and each as a small model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mistral.checkpoint.args_file import args_from_params, params_of, read_args
from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.checkpoint.config_file import args_from_config
from mistral.errors import InputError
from mistral.generate import generate
from mistral.load import Transformer
from mistral.model.args import ModelArgs
from mistral.model.parameters import parameters
from mistral.model.rope import Llama4Scaling, YarnScaling
from mistral.ops.interface import Ops
from tests.support.checkpoint_forms import float8_tensors, random_tensors, tower_tensors, write_checkpoint
from tests.support.oracle import oracle_greedy

MODELS = json.loads((Path(__file__).parents[1] / "data" / "published_models.json").read_text())
READ, REFUSED = MODELS["read"], MODELS["refused"]
IMAGES, AUDIO = ("images",), ("audio",)
YARN_16 = YarnScaling(16.0, 16384, 32.0, 1.0, 1.0)
YARN_64 = YarnScaling(64.0, 4096, 4.0, 1.0, 1.4158883083359672)
STEPS = Llama4Scaling(16384, 0.1)
# By the beginning of the name: parameters of the decoder, rope_theta, context, towers, tied, the scaling of frequencies
# with the pairs where its ramp begins and ends, and that of queries
EXPECTED: dict[str, tuple[Any, ...]] = {
    "Mistral Small 2409": (22_247_282_688, 1e6, 32768, (), False, None, None, None),
    "Mistral Large 2411": (122_610_069_504, 1e6, 131072, (), False, None, None, None),
    "Mistral Small 3 (2501)": (23_572_403_200, 1e8, 32768, (), False, None, None, None),
    "Devstral Small 2505": (23_572_403_200, 1e9, 131072, (), False, None, None, None),
    "Magistral Small 2506": (23_572_403_200, 1e9, 40960, (), False, None, None, None),
    "Pixtral 12B, Hugging Face": (12_247_782_400, 1e9, 1024000, IMAGES, False, None, None, None),
    "Pixtral 12B": (12_247_782_400, 1e9, 131072, IMAGES, False, None, None, None),
    "Pixtral Large": (122_610_069_504, 1e6, 131072, IMAGES, False, None, None, None),
    "Mistral Small 3.1": (23_572_403_200, 1e9, 131072, IMAGES, False, None, None, None),
    "Ministral 3 3B": (3_429_006_336, 1e6, 262144, IMAGES, True, YARN_16, (20, 37), STEPS),
    "Ministral 3 8B": (8_489_553_920, 1e6, 262144, IMAGES, False, YARN_16, (20, 37), STEPS),
    "Ministral 3 14B": (13_506_073_600, 1e9, 262144, IMAGES, False, YARN_16, (13, 25), STEPS),
    "Shieldstral": (3_429_006_336, 1e6, None, (), True, YARN_16, (20, 37), STEPS),
    "Devstral Small 2": (23_572_403_200, 1e8, 262144, IMAGES, False, YarnScaling(48.0, 8192, 32.0, 1.0, 1.0), (12, 25),
                         Llama4Scaling(8192, 0.1)),
    "Devstral 2 123B": (125_025_988_608, 1e6, 262144, (), False, YARN_64, (23, 31), None),
    "Mistral Medium 3.5": (125_025_988_608, 1e6, 262144, IMAGES, False, YARN_64, (23, 31), None),
    "Voxtral Mini 3B, Hugging Face": (4_014_136_320, 1e8, 131072, AUDIO, False, None, None, None),
    "Voxtral Mini 3B": (4_014_136_320, 1e8, None, AUDIO, False, None, None, None),
    "Voxtral Small": (23_572_403_200, 1e8, None, AUDIO, False, None, None, None),
}  # fmt: skip


def read(name: str) -> ModelArgs:
    table = READ[name]["table"]
    return args_from_config(table) if READ[name]["file"] == "config.json" else args_from_params(table)


@pytest.mark.parametrize("name", READ)
def test_every_published_file_is_read(name: str) -> None:
    args, expected = read(name), next(EXPECTED[start] for start in EXPECTED if name.startswith(start))
    size, rope_theta, limit, towers, tied, scaling, ramp, queries = expected
    assert sum(each.size for each in parameters(args).values()) == size
    assert (args.rope_theta, args.max_seq_len, args.towers, args.tied_embeddings) == (rope_theta, limit, towers, tied)
    assert (args.head_dim, args.n_kv_heads, args.norm_eps, set(args.sliding_windows)) == (128, 8, 1e-5, {None})
    assert args.rope_scaling == scaling and args.llama_4_scaling == queries
    if isinstance(args.rope_scaling, YarnScaling):
        assert args.rope_scaling.ramp(args.head_dim, args.rope_theta) == ramp
    assert args.ignored_keys == () and args.moe is None
    assert args_from_params(json.loads(json.dumps(params_of(args)))) == args


def test_both_files_of_a_model_say_the_same() -> None:
    pairs = [(name, name.removesuffix(", Hugging Face")) for name in READ if name.endswith(", Hugging Face")]
    assert len(pairs) == 7
    for one, other in pairs:
        limit = read(other).max_seq_len  # Pixtral's and Voxtral's files differ in it
        assert replace(read(one), max_seq_len=limit) == read(other)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_this_decoder_is_refused_with_a_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / REFUSED[name]["file"]
    path.write_text(json.dumps(REFUSED[name]["table"]))
    with pytest.raises(InputError) as caught:
        read_args(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and REFUSED[name]["says"] in line and len(line.splitlines()) == 1
    assert "support" in line


SIZES = {"dim": 16, "n_layers": 2, "head_dim": 8, "hidden_dim": 20, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 40}
NAMES = {
    "hidden_size": "dim", "num_hidden_layers": "n_layers", "head_dim": "head_dim", "intermediate_size": "hidden_dim",
    "num_attention_heads": "n_heads", "num_key_value_heads": "n_kv_heads", "vocab_size": "vocab_size",
}  # fmt: skip


def shrunk(name: str) -> dict[str, Any]:
    """A published file with small sizes, all its other keys as they are."""
    table = READ[name]["table"]
    if READ[name]["file"] == "params.json":
        return {**table, **SIZES}
    sizes = {key: SIZES[ours] for key, ours in NAMES.items()}
    return {**table, **sizes} if "text_config" not in table else {**table, "text_config": table["text_config"] | sizes}


@pytest.mark.parametrize("name", READ)
def test_a_small_model_of_the_same_keys_runs_as_the_oracle_says(name: str, tmp_path: Path, ops: Ops) -> None:
    """With towers where the file tells of one, and in FP8 where it says so."""
    table, file = shrunk(name), READ[name]["file"]
    path = tmp_path / file
    path.write_text(json.dumps(table))
    args, hugging_face = read_args(path), file == "config.json"
    is_float8 = bool(table.get("quantization") or table.get("quantization_config"))
    tensors = random_tensors(args, seed=len(name), dtype=np.float32 if is_float8 else ml_dtypes.bfloat16)

    def change(stored: dict[str, Any]) -> dict[str, Any]:
        stored = float8_tensors(stored) if is_float8 else stored
        if hugging_face and "text_config" in table:
            stored = {f"language_model.{each}": tensor for each, tensor in stored.items()}
        return stored | (tower_tensors(hugging_face) if args.towers else {})

    plain = replace(args, rope_scaling=None, llama_4_scaling=None, max_seq_len=64)  # the test's own writer of settings
    write_checkpoint(tmp_path, plain, tensors, "hf" if hugging_face else "consolidated.safetensors", change)
    path.write_text(json.dumps(table))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.args == args
    assert {checkpoint.dtype(each).name for each in checkpoint.shapes if "w1" in each} == {
        "float8_e4m3fn" if is_float8 else "bfloat16"
    }
    told = [line for line in checkpoint.warnings if line.endswith("not read; text only")]
    assert bool(told) == bool(args.towers) and bool(checkpoint.towers) == bool(args.towers)
    prompt = [5, 9, 30, 2]
    model = Transformer.from_folder(tmp_path, device="CPU", backend="portable")
    tokens, logprobs = generate([prompt], model, max_tokens=3)
    used = {each: checkpoint.get(each) for each in checkpoint.shapes}
    wanted = oracle_greedy(used, args, prompt, 3)
    assert tokens[0] == wanted[0]
    np.testing.assert_allclose(logprobs[0], wanted[1], rtol=0, atol=1e-4)
