"""The benchmark that says what weights of fewer bits cost."""

import json
import math
import sys
from pathlib import Path

import pytest

from benchmarks import quality as benchmark
from mistral.cli.model_options import shipped_checkpoint
from tests.support.command_line import CommandLine


def test_losses_are_by_text_and_by_all_tokens() -> None:
    found = benchmark.losses({"a": -10.0, "b": -30.0}, {"a": -11.0, "b": -30.0}, {"a": 10, "b": 30})
    assert found == pytest.approx({"a": 100 * (math.exp(0.1) - 1), "b": 0.0, "all": 100 * (math.exp(1 / 40) - 1)})


def test_a_text_is_read_in_windows_and_the_first_checkpoint_is_the_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("This is a test. This is another test.\n" * 3)
    model, run = shipped_checkpoint(), CommandLine(capsys, monkeypatch)
    windows = ("--max_context", 13, "--stride", 12, "--backend", "portable")
    records = map(json.loads, run("score", model, text, *windows, "--json").out.splitlines())
    scored = next(record["summary"] for record in records if "summary" in record)
    models = ["--models", str(model), str(model), "--texts", str(text)]
    monkeypatch.setattr(sys, "argv", ["quality", *models, "--window", "12", "--backend", "portable", "--json"])
    benchmark.main()
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["tokens"] == {"text.txt": scored["tokens"]}
    assert first["logprob"]["text.txt"] == pytest.approx(scored["logprob"], abs=1e-2)
    assert first["logprob"] == second["logprob"]
    assert second["loss_percent"] == {"text.txt": 0.0, "all": 0.0}
