"""Small random models of every shape, built without a file: what the tests of the arithmetic run on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mistral.load import Transformer
from mistral.model.args import ModelArgs, MoeArgs
from mistral.model.rope import Llama4Scaling, YarnScaling
from mistral.ops.interface import Ops
from tests.support.checkpoint_forms import random_tensors

WINDOW = 5  # of every windowed shape, but for the interleaved one
DENSE = ModelArgs(
    dim=16, n_layers=2, head_dim=4, hidden_dim=20, n_heads=4, n_kv_heads=2, vocab_size=40, norm_eps=1e-5,
    rope_theta=1e4, sliding_windows=(None, None),
)  # fmt: skip
WINDOWED = replace(DENSE, sliding_windows=(WINDOW, WINDOW))
SHAPES = {
    "dense": DENSE,
    "windowed": WINDOWED,
    "interleaved": replace(DENSE, n_layers=3, sliding_windows=(None, 3, 5)),
    "moe": replace(DENSE, moe=MoeArgs(4, 2)),
    "moe_windowed": replace(WINDOWED, moe=MoeArgs(5, 3)),
    "tied": replace(WINDOWED, tied_embeddings=True),
    "head_dim": replace(WINDOWED, head_dim=10, n_heads=3, n_kv_heads=1),
    "ministral3": replace(
        DENSE,
        head_dim=8,
        rope_theta=100.0,
        tied_embeddings=True,
        sliding_windows=(None, WINDOW),
        rope_scaling=YarnScaling(4.0, 64, 8.0, 1.0, attention_factor=1.2),
        llama_4_scaling=Llama4Scaling(3, 0.3),
    ),
}


@dataclass(frozen=True)
class SmallModel:
    """A model and, for the oracle, the arrays that it was built from."""

    args: ModelArgs
    tensors: Mapping[str, NDArray[np.float32]]
    transformer: Transformer

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """Logits (T, V) after each of the ids of one sequence, without a cache."""
        return np.asarray(self.transformer.forward(ids, [len(ids)]).asnumpy(), np.float32)


def build(args: ModelArgs, ops: Ops, seed: int = 0) -> SmallModel:
    """A model of random weights; the embeddings are wide enough that tokens differ before any layer."""
    tensors = {name: array.astype(np.float32) for name, array in random_tensors(args, seed).items()}
    tensors["tok_embeddings.weight"] *= 4
    return SmallModel(args, tensors, Transformer(args, lambda name: ops.weight(tensors[name]), ops))
