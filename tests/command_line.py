"""The command line in this process, and small random checkpoints to give it."""

from __future__ import annotations

import io
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from mistral.args import ModelArgs
from mistral.cli import main
from mistral.session import shipped_checkpoint
from tests.checkpoint_forms import DENSE, random_tensors, write_checkpoint

TOKENIZER = shipped_checkpoint() / "tokenizer.model.v3"
ARGS = replace(DENSE, vocab_size=1024, sliding_windows=(5, 7))  # windows throughout: answers may be of any length
EOS = 2


def write_model(folder: Path, args: ModelArgs = ARGS, tokenizer: Path = TOKENIZER) -> Path:
    """A random checkpoint with a tokenizer; its greedy answers never end by themselves."""
    tensors = random_tensors(args)
    tensors["output.weight"][EOS] = 0
    write_checkpoint(folder, args, tensors, "consolidated.safetensors")
    shutil.copy(tokenizer, folder)
    return folder


def write_ending_model(folder: Path) -> Path:
    """A random checkpoint whose answers end at once: the end of a sequence is as likely as anything can be."""
    tensors = random_tensors(ARGS)
    tensors["output.weight"] = np.zeros_like(tensors["output.weight"])  # all logits 0
    tensors["layers.1.feed_forward.w2.weight"][:] = 0
    tensors["layers.1.attention.wo.weight"][:] = 0
    tensors["layers.0.feed_forward.w2.weight"][:] = 0
    tensors["layers.0.attention.wo.weight"][:] = 0
    tensors["tok_embeddings.weight"] = np.abs(tensors["tok_embeddings.weight"])
    tensors["norm.weight"][:] = 1
    tensors["output.weight"][EOS] = 1  # every state is positive, so this logit is
    write_checkpoint(folder, ARGS, tensors, "consolidated.safetensors")
    shutil.copy(TOKENIZER, folder)
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
        return Outcome(code, out, err)
