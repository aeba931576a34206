"""How far a model's predictions are from another's."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mistral.cli.divergence import compare
from mistral.engine.engine import Engine
from mistral.errors import InputError
from mistral.ops.interface import Ops
from tests.support.command_line import CommandLine, write_model
from tests.support.oracle import log_softmax
from tests.support.small_models import DENSE, WINDOWED, SmallModel, build

pytestmark = pytest.mark.usefixtures("all_compiled")
IDS = np.random.default_rng(2).integers(0, 40, 30).tolist()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


@pytest.mark.parametrize("chunk_size", [1, 7, 100])
def test_figures_are_those_of_the_definition(models: dict[str, SmallModel], ops: Ops, chunk_size: int) -> None:
    model, other = models["windowed"], build(WINDOWED, ops, seed=9)
    here, there = (
        np.stack([log_softmax(row) for row in each.logits(IDS).astype(np.float64)]) for each in (model, other)
    )
    for counted_from in (1, 12):
        prompts = [(IDS, counted_from), (IDS[:9], 1)]
        *_, found = compare(Engine(model.transformer), Engine(other.transformer), prompts, chunk_size)
        places = [*range(counted_from - 1, 29), *range(8)]
        kl = (np.exp(there) * (there - here)).sum(1)[places]
        assert found.tokens == len(places)
        assert found.mean_kl == pytest.approx(kl.mean(), rel=1e-3)
        assert found.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-3)
        assert found.same_top == np.mean(here.argmax(1)[places] == there.argmax(1)[places])
        targets = [IDS[place + 1] for place in places]
        assert found.logprob == pytest.approx(here[places, targets].mean(), abs=1e-4)
        assert found.reference_logprob == pytest.approx(there[places, targets].mean(), abs=1e-4)
        assert found.record()["perplexity"] == pytest.approx(math.exp(-found.logprob), abs=1e-3)


def test_a_model_is_no_way_from_itself(models: dict[str, SmallModel]) -> None:
    engines = [Engine(models["dense"].transformer) for _ in range(2)]
    *_, found = compare(engines[0], engines[1], [(IDS, 1)], 8)
    assert (found.mean_kl, found.kl_p99, found.same_top) == (0, 0, 1)
    assert not any(engine.cache.rows for engine in engines)


def test_models_of_other_vocabularies_are_not_compared(models: dict[str, SmallModel], ops: Ops) -> None:
    other = build(replace(DENSE, vocab_size=41), ops)
    with pytest.raises(InputError, match="reference: must have the same vocabulary: 40 ids here and 41 there"):
        next(compare(Engine(models["dense"].transformer), Engine(other.transformer), [(IDS, 1)], 8))


def test_the_command_compares_two_checkpoints(
    run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text = write_model(tmp_path / "model"), tmp_path / "text"
    text.write_text("Tom had a red ball.")
    found = run("score", model, text, f"--reference={model}", "--json", "--max_context=4")
    divergence = json.loads(found.out.splitlines()[0])["divergence"]
    assert (divergence["mean_kl"], divergence["same_top"], divergence["tokens"]) == (0, 1, 6)
    summary = json.loads(run("score", model, text, "--json", "--max_context=4").out.splitlines()[-2])["summary"]
    assert divergence["perplexity"] == pytest.approx(summary["perplexity"], rel=1e-4)
    assert "same likeliest token 100.00 %" in run("score", model, text, f"--reference={model}").out
    monkeypatch.setattr("mistral.cli.score.open_files", None)  # nothing is opened before it is known to be there
    assert run("score", model, text, "--reference=nowhere/at/all").error.startswith(
        "--reference: nowhere/at/all: no such"
    )
    assert run("score", model, text, "--reference=").error.startswith("--reference: '': is an empty name")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    assert "leave out --num_pipeline_ranks" in run("score", text, "--reference=x", "--num_pipeline_ranks=2").error
