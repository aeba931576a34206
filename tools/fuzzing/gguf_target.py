"""GGUF files as inputs of the fuzzer: a small model with its tokenizer, changed anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.tokenizer.tokenizer import Tokenizer
from tests.support.checkpoint_forms import DENSE, random_tensors
from tests.support.gguf_files import scored, write_gguf

ARGS = replace(DENSE, dim=32, hidden_dim=32, head_dim=8, vocab_size=1024, n_layers=1, sliding_windows=(None,))


def gguf_seed(folder: Path, tokenizer: Path) -> bytes:
    """A sound file, with the tokenizer of a SentencePiece model."""
    folder.mkdir(parents=True)
    path = folder / "model.gguf"
    write_gguf(path, ARGS, random_tensors(ARGS), "Q4_0", spoil=scored(tokenizer))
    return path.read_bytes()


def gguf_reader(folder: Path) -> Callable[[bytes], object]:
    """Opens the file, widens some tensors, and loads the tokenizer."""
    path = folder / "model.gguf"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        checkpoint = open_checkpoint(path)
        for name in list(checkpoint.shapes)[:3]:
            checkpoint.get(name)
        Tokenizer.from_folder(path).encode("Tom had a ball")

    return run
