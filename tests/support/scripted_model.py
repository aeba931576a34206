"""A checkpoint that writes what it is told: after each token the one that a chain of ids has next."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from tests.support.checkpoint_forms import DENSE, random_tensors, write_checkpoint

ARGS = replace(DENSE, dim=64, vocab_size=3000, sliding_windows=(None, None))
CERTAINTY = 40  # logits of what comes next; all others are near 0


def write_scripted(folder: Path, tokenizer: Path, *chains: Sequence[int]) -> Path:
    """A checkpoint whose layers add nothing, so that each token alone says what follows; no id may have two sequels."""
    tensors = random_tensors(ARGS)
    for layer in range(ARGS.n_layers):
        tensors[f"layers.{layer}.attention.wo.weight"][:] = 0
        tensors[f"layers.{layer}.feed_forward.w2.weight"][:] = 0
    embeddings = np.random.default_rng(1).standard_normal((ARGS.vocab_size, ARGS.dim)).astype(np.float32)
    embeddings *= np.sqrt(ARGS.dim) / np.linalg.norm(embeddings, axis=1, keepdims=True)
    tensors["tok_embeddings.weight"], tensors["norm.weight"][:], output = embeddings, 1, tensors["output.weight"]
    output[:] = 0
    sequels = dict[int, int]()
    for chain in chains:
        for token, sequel in pairwise(chain):
            assert sequels.setdefault(token, sequel) == sequel, f"{token} has two sequels"
    for token, sequel in sequels.items():
        output[sequel] += CERTAINTY / ARGS.dim * embeddings[token]
    write_checkpoint(folder, ARGS, tensors, "consolidated.safetensors")
    shutil.copy(tokenizer, folder / "tekken.json")
    return folder
