"""What is generated both in one process and on the ranks of an MPI job, and the checkpoints for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mistral.generate import generate
from mistral.load import Transformer
from mistral.model.args import ModelArgs, MoeArgs
from mistral.model.rope import Llama4Scaling, YarnScaling
from tests.support.checkpoint_forms import float8_tensors, random_tensors, write_checkpoint
from tests.support.generation import PROMPTS, Found
from tests.support.gguf_files import write_gguf
from tests.support.small_models import DENSE

DEEP = replace(DENSE, n_layers=4, sliding_windows=(None,) * 4)
WINDOWED = replace(DEEP, sliding_windows=(5,) * 4)
SHAPES = {
    "dense": DEEP,
    "windowed": WINDOWED,
    "interleaved": replace(DEEP, sliding_windows=(None, 3, 5, None)),
    "moe": replace(DEEP, moe=MoeArgs(4, 2)),
    "tied": replace(WINDOWED, tied_embeddings=True),
    "ministral3": replace(
        DEEP,
        head_dim=8,
        rope_theta=100.0,
        tied_embeddings=True,
        rope_scaling=YarnScaling(4.0, 64, 8.0, 1.0),
        llama_4_scaling=Llama4Scaling(3, 0.3),
    ),
}
MANY = [np.random.default_rng(100 + i).integers(0, DENSE.vocab_size, 1 + i * 7 % 11).tolist() for i in range(17)]
BLOCKS = "blocks"  # a shape whose checkpoint is a GGUF file
SHAPES[BLOCKS] = replace(DEEP, dim=64, head_dim=16, hidden_dim=96, max_seq_len=256)
FEW = ("interleaved", "moe", "ministral3")
FLOAT8 = ("ministral3",)  # shapes whose weights are 8-bit floats
DAMAGED = 9  # an id whose embedding is not a number, in one checkpoint
LONG = np.random.default_rng(9).integers(0, DENSE.vocab_size, 130).tolist()
SOUND = [token for token in LONG[:60] if token != DAMAGED]


@dataclass(frozen=True)
class Case:
    """One call of `generate`."""

    shape: str
    prompts: list[list[int]]
    options: dict[str, Any] = field(default_factory=dict)
    micro_batches: int | None = None

    def run(self, model: Transformer) -> Found:
        return generate(self.prompts, model, num_micro_batches=self.micro_batches, **self.options)


SHORT: dict[str, Any] = {"max_tokens": 6, "chunk_size": 4}
RANDOM: dict[str, Any] = {"temperature": 1.0, "seed": 5, "top_p": 0.95, "repetition_penalty": 1.1}
CASES = [
    *(Case(shape, PROMPTS, SHORT) for shape in SHAPES),
    *(
        Case(shape, [*PROMPTS, LONG[:40]], {"max_tokens": 3, "prompt_logprobs": False})
        for shape in ("dense", "interleaved", "moe")
    ),
    *(Case(shape, MANY, {"max_tokens": 5, "eos_id": 7, **RANDOM}) for shape in ("windowed", "moe")),
    *(Case("interleaved", MANY, {"max_tokens": 4, "eos_id": (3, 11), "excluded": (range(5),)}, n) for n in (1, 5)),
    Case("windowed", [LONG], {"max_tokens": 2, "chunk_size": 16}),
    Case("dense", [LONG, LONG[:90], [1]], {"max_tokens": 2, "chunk_size": 16}, 2),
    Case("dense", PROMPTS, {"max_tokens": 0}),
    Case("dense", [], {}),
]


def write_checkpoints(folder: Path) -> None:
    """One of each shape; the embeddings are wide enough that tokens differ before any layer."""
    for seed, (name, args) in enumerate(SHAPES.items()):
        if name == BLOCKS:
            (folder / name).mkdir()
            write_gguf(folder / name / "model.gguf", args, random_tensors(args, seed), "Q8_0")
        else:
            write_small(folder / name, args, seed, float8=name in FLOAT8)


def write_small(folder: Path, args: ModelArgs, seed: int = 0, damaged: int | None = None, float8: bool = False) -> None:
    """The embedding of the id `damaged` is not a number."""
    tensors = random_tensors(args, seed)
    wide = tensors["tok_embeddings.weight"].astype(np.float32) * 4
    if damaged is not None:
        wide[damaged] = np.nan
    tensors["tok_embeddings.weight"] = wide.astype(tensors["tok_embeddings.weight"].dtype)
    write_checkpoint(folder, args, tensors, "consolidated.safetensors", float8_tensors if float8 else dict)


def places(which: str) -> list[int]:
    """Of CASES: all; or one of each shape and every third of the others, "some"; or of two shapes, "few"."""
    shapes, others = list(range(len(SHAPES))), range(len(SHAPES), len(CASES))
    if which == "few":
        return [place for place in shapes if CASES[place].shape in FEW]
    return shapes + {"all": list(others), "some": list(others[::3])}[which]


def results(folder: Path, ranks: int, backend: str, which: str = "all") -> dict[int, Found]:
    """What each case of `places` gives; under mpirun, each rank calls this."""
    shapes = {CASES[place].shape for place in places(which)}
    models = {name: Transformer.from_folder(folder / name, ranks, backend, device="CPU") for name in sorted(shapes)}
    return {place: CASES[place].run(models[CASES[place].shape]) for place in places(which)}
