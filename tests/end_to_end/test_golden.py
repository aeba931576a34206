"""Golden figures of Hugging Face transformers (made by tools/make_golden.py), reached from every file form.

Only the golden folders themselves go through generation token by token. The other forms are asked, in one pass over
prompt and answer, for the likeliest id at each place: greedy decoding is the sequence that agrees with that everywhere.
"""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mistral.checkpoint.checkpoint import Checkpoint, open_checkpoint
from mistral.engine.sampling import log_softmax
from mistral.generate import generate
from mistral.load import Transformer
from mistral.model.rope import LinearScaling, Llama3Scaling
from tests.support.checkpoint_forms import forms_of, write_checkpoint
from tests.support.oracle import oracle_logprobs

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CASES = sorted(folder.name for folder in GOLDEN.iterdir())
CHECKPOINTS: dict[str, Checkpoint] = {name: open_checkpoint(GOLDEN / name) for name in CASES}
pytestmark = pytest.mark.usefixtures("ops")
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


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("name", CASES)
def test_generation_gives_the_golden_tokens_and_logprobs(name: str, chunk_size: int | None) -> None:
    entries = entries_of(name)
    model = Transformer.from_folder(GOLDEN / name, device="CPU")
    tokens, logprobs = generate([e["prompt"] for e in entries], model, entries[0]["max_tokens"], chunk_size=chunk_size)
    assert tokens == [e["tokens"] for e in entries]
    for found, entry in zip(logprobs, entries, strict=True):
        np.testing.assert_allclose(found, entry["logprobs"], rtol=0, atol=1e-3)


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
