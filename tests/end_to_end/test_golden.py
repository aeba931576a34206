"""Golden figures of Hugging Face transformers (made by tools/make_golden.py), reached from every file form.

Only the golden folders themselves go through generation token by token. The other forms are asked, in one pass over
prompt and answer, for the likeliest id at each place: greedy decoding is the sequence that agrees with that everywhere.
"""

from __future__ import annotations

import json
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mistral.checkpoint.checkpoint import Checkpoint, open_checkpoint
from mistral.engine.sampling import log_softmax
from mistral.generate import generate
from mistral.load import Transformer
from mistral.model.rope import LinearScaling, Llama3Scaling, Llama4Scaling, YarnScaling, yarn_sharpness
from mistral.ops.float8 import FLOAT8, Float8
from tests.support.checkpoint_forms import (
    Array,
    forms_of,
    params_of,
    tower_tensors,
    write_checkpoint,
    write_safetensors,
)
from tests.support.oracle import oracle_logprobs

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CASES = sorted(folder.name for folder in GOLDEN.iterdir())
CHECKPOINTS: dict[str, Checkpoint] = {name: open_checkpoint(GOLDEN / name) for name in CASES}
pytestmark = pytest.mark.usefixtures("ops", "no_spare_slots")
PAIRS = [(name, form) for name in CASES for form in forms_of(CHECKPOINTS[name].args)]


def entries_of(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((GOLDEN / name / "golden.json").read_text())
    return found


def test_the_cases_cover_every_shape_of_model() -> None:
    args = {name: checkpoint.args for name, checkpoint in CHECKPOINTS.items()}
    assert args["dense"].moe is None
    assert set(args["dense"].sliding_windows) == {None}
    assert None not in args["windowed"].sliding_windows
    assert args["moe"].moe is not None
    assert args["moe_windowed"].moe is not None
    assert len(set(args["interleaved"].sliding_windows)) == 2
    assert args["head_dim"].head_dim * args["head_dim"].n_heads != args["head_dim"].dim
    assert args["tied"].tied_embeddings
    assert args["llama"].rope_scaling is None
    assert args["llama_linear"].rope_scaling == LinearScaling(2.5)
    assert args["llama3"].rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 32)
    assert args["ministral3"].rope_scaling == YarnScaling(4.0, 12, 1.5, 0.7, 1.0)
    assert args["ministral3"].llama_4_scaling == Llama4Scaling(12, 0.3)
    assert args["ministral3_tied"].tied_embeddings and args["ministral3_tied"].rope_scaling
    assert args["ministral3_scaled"].rope_scaling == YarnScaling(8.0, 12, 1.5, 0.7, yarn_sharpness(8.0))
    assert args["ministral3_scaled"].llama_4_scaling is None
    assert CHECKPOINTS["ministral3_float8"].dtype("layers.1.attention.wo.weight") == FLOAT8
    assert args["mistral3"].towers == ("images",) and CHECKPOINTS["mistral3"].towers["images"] > 0
    assert max(len(entry["prompt"]) for entry in entries_of("ministral3")) > 3 * 12


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("name", CASES)
def test_generation_gives_the_golden_tokens_and_logprobs(name: str, chunk_size: int | None) -> None:
    assert_golden(name, Transformer.from_folder(GOLDEN / name, device="CPU"), chunk_size)


def assert_golden(name: str, model: Transformer, chunk_size: int | None = None) -> None:
    """That a model generates what transformers does."""
    entries = entries_of(name)
    tokens, logprobs = generate([e["prompt"] for e in entries], model, entries[0]["max_tokens"], chunk_size=chunk_size)
    assert tokens == [e["tokens"] for e in entries]
    for found, entry in zip(logprobs, entries, strict=True):
        np.testing.assert_allclose(found, entry["logprobs"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("chunk_size", [None, 1, 5])
@pytest.mark.parametrize("name", [name for name in CASES if "istral3" in name])
def test_precise_kernels_give_the_golden_tokens_and_logprobs_in_any_chunks(name: str, chunk_size: int | None) -> None:
    model = Transformer.from_folder(GOLDEN / name, device="CPU", backend="native", precise=True)
    assert_golden(name, model, chunk_size)


@pytest.mark.parametrize("backend", ["portable", "native"])
def test_8_bit_floats_in_official_files_give_the_golden_tokens_and_logprobs(tmp_path: Path, backend: str) -> None:
    name = "ministral3_float8"
    checkpoint, tensors = CHECKPOINTS[name], dict[str, Array]()
    for each in checkpoint.shapes:
        found = checkpoint.packed(each)
        if isinstance(found, Float8):
            stem = each.removesuffix(".weight")
            tensors |= {each: found.values, f"{stem}.qscale_weight": np.array(found.scale)}
            tensors[f"{stem}.qscale_act"] = np.array(0.5, np.float32)
        else:
            assert not hasattr(found, "bits")
            tensors[each] = np.asarray(found)
    quantization = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
    (tmp_path / "params.json").write_text(json.dumps(params_of(checkpoint.args) | {"quantization": quantization}))
    write_safetensors(tmp_path / "consolidated.safetensors", tensors | tower_tensors(False))
    assert open_checkpoint(tmp_path).args == checkpoint.args
    assert_golden(name, Transformer.from_folder(tmp_path, device="CPU", backend=backend, precise=backend == "native"))


def test_the_other_spelling_of_a_wrapped_model_gives_the_golden_tokens_and_logprobs(tmp_path: Path) -> None:
    """transformers itself writes language_model.model.X; later files have model.language_model.X."""
    shutil.copytree(GOLDEN / "mistral3", tmp_path, dirs_exist_ok=True)
    stored, start = load_file(tmp_path / "model.safetensors"), "language_model.model."
    assert any(each.startswith(start) for each in stored)
    renamed = {
        f"model.language_model.{each.removeprefix(start)}" if each.startswith(start) else f"model.{each}": tensor
        for each, tensor in stored.items()
    }
    write_safetensors(tmp_path / "model.safetensors", renamed)
    assert_golden("mistral3", Transformer.from_folder(tmp_path, device="CPU"))


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_every_file_form_gives_the_golden_tokens_and_logprobs(tmp_path: Path, name: str, form: str) -> None:
    checkpoint = CHECKPOINTS[name]
    tensors = {tensor: checkpoint.get(tensor) for tensor in checkpoint.shapes}
    model = Transformer.from_folder(write_checkpoint(tmp_path / form, checkpoint.args, tensors, form), device="CPU")
    assert model.args == checkpoint.args
    entries = entries_of(name)
    sequences = [e["prompt"] + e["tokens"][:-1] for e in entries]
    logits = model.forward(list(chain(*sequences)), [len(ids) for ids in sequences]).asnumpy()
    for entry, part in zip(entries, np.split(logits, np.cumsum([len(ids) for ids in sequences])[:-1]), strict=True):
        first = len(entry["prompt"]) - 1
        assert part[first:].argmax(axis=1).tolist() == entry["tokens"]
        targets = (entry["prompt"] + entry["tokens"])[1:]
        logprobs = log_softmax(part)[np.arange(len(targets)), targets]
        np.testing.assert_allclose(logprobs, entry["logprobs"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_the_oracle_agrees_with_the_golden_figures(name: str) -> None:
    """Both were written from the papers by different hands: what one had wrong, the other would show."""
    checkpoint = CHECKPOINTS[name]
    tensors = {tensor: checkpoint.get(tensor) for tensor in checkpoint.shapes}
    for entry in entries_of(name)[1:4]:
        found = oracle_logprobs(tensors, checkpoint.args, entry["prompt"] + entry["tokens"])
        np.testing.assert_allclose(found, entry["logprobs"], rtol=0, atol=1e-4)
