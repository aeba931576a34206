"""The scripts of `examples/` run, and show what they say."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from mistral.cli.model_options import shipped_checkpoint

pytestmark = pytest.mark.usefixtures("all_compiled")
EXAMPLES = Path(__file__).parents[2] / "examples"
SHOWN = {
    "generate": r"(.+\|.+\n    12 tokens, ended by length\n){3}",
    "chat": r"The bell was green\.\nTom .+\nThe bell was green\.\n",
    "stream": r" .+\n It .+\n",
    "many_at_once": r"red: .*red\.\ngreen: .*green\.\nblue: .*blue\.\nyellow: .*yellow\.\n",
    "best_of_n": r"( +-\d\.\d\d .+\n){5}",
    "choose": r" +-\d+\.\d\d  red\.\n +-\d+\.\d\d  green\.\n +-\d+\.\d\d  a boy\.\n",
}


def test_every_example_is_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_runs(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = EXAMPLES / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), str(shipped_checkpoint())])
    runpy.run_path(str(path), run_name="__main__")
    out = capsys.readouterr().out
    assert re.fullmatch(SHOWN[name], out), out
    assert f"python -m examples.{name} [CKPT]" in path.read_text()
