"""The command line in this process, and small random checkpoints to give it."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mistral.cli.main import main
from mistral.cli.model_options import shipped_checkpoint
from mistral.model.args import ModelArgs
from tests.support.checkpoint_forms import DENSE, random_tensors, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = shipped_checkpoint() / "tokenizer.model.v3"
ARGS = replace(DENSE, vocab_size=1024, sliding_windows=(5, 7))  # windows throughout: answers may be of any length
EOS = 2


def write_model(folder: Path, args: ModelArgs = ARGS, tokenizer: Path = TOKENIZER) -> Path:
    """A random checkpoint with a tokenizer; its greedy answers never end by themselves."""
    tensors = random_tensors(args)
    if not args.tied_embeddings:
        tensors["output.weight"][EOS] = 0
    write_checkpoint(folder, args, tensors, "consolidated.safetensors")
    shutil.copy(tokenizer, folder)
    return folder


@dataclass(frozen=True)
class Outcome:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a refusal."""
        assert (self.code, self.out) == (2, ""), self
        assert self.err.startswith("error: ") and self.err.count("\n") == 1 and self.err.endswith("\n"), self
        return self.err.removeprefix("error: ").removesuffix("\n")


class CommandLine:
    """Runs `main` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: object, stdin: bytes = b"") -> Outcome:
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = main([str(argument) for argument in arguments])
        out, err = self.capsys.readouterr()
        assert "Traceback" not in err
        return Outcome(code, out, err)


PORTABLE = {"MISTRAL_BACKEND": "portable"}  # of a program that does not say: whatever kernels have been built before


def run_program(*arguments: object, shell: str = "{}", **environment: str) -> Outcome:
    """Runs `python -m main` as a shell does; `shell` is the shell's line, with the program in place of {}."""
    program = shlex.join([sys.executable, "-m", "main", *map(str, arguments)])
    done = subprocess.run(
        ["bash", "-c", shell.format(program)],
        capture_output=True,
        cwd=ROOT,
        env=os.environ | PORTABLE | environment,
        timeout=60,
    )
    err = done.stderr.decode()
    assert "Traceback" not in err and "Exception" not in err
    return Outcome(done.returncode, done.stdout.decode(), err)
