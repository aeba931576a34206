"""What rounding costs the native backend on trained weights: those of the checkpoint that ships with the project."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mistral import Tokenizer, Transformer, generate
from mistral.cli.model_options import shipped_checkpoint
from tools import corpus, evaluate


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    """Stories that the checkpoint was not trained on, as ids."""
    return evaluate.encoded(Tokenizer.from_folder(shipped_checkpoint()), corpus.HELD_OUT_SEED, 60)


@pytest.fixture(scope="module")
def load(ops: object) -> Callable[..., Transformer]:
    """A function that loads the checkpoint with options of Transformer.from_folder."""
    return lambda **options: Transformer.from_folder(shipped_checkpoint(), device="CPU", **options)


@pytest.fixture(scope="module")
def exact(load: Callable[..., Transformer], texts: list[list[int]]) -> float:
    """The loss of the checkpoint in float32, in nats per token."""
    return evaluate.model_loss(load(backend="portable"), texts)


@pytest.mark.parametrize(("options", "share"), [({}, 0.001), ({"bits": 8}, 0.002), ({"bits": 4}, 0.004)])
def test_perplexity(
    load: Callable[..., Transformer], texts: list[list[int]], exact: float, options: dict[str, int], share: float
) -> None:
    assert abs(np.expm1(evaluate.model_loss(load(backend="native", **options), texts) - exact)) <= share


@pytest.mark.parametrize("precise", [False, True])
def test_batch_and_chunk_change_not_one_bit(
    load: Callable[..., Transformer], texts: list[list[int]], precise: bool
) -> None:
    """Alone, in chunks of any size or in company, in prefill as in decode."""
    model, prompts = load(backend="native", precise=precise), [text[:90] for text in texts[:12]]
    tokens, logprobs = generate(prompts, model, 6)
    for chunk_size in (1, 5, 32, None):
        for index, prompt in enumerate(prompts):
            alone = generate([prompt], model, 6, chunk_size=chunk_size)
            assert alone[0][0] == tokens[index]
            assert np.array_equal(alone[1][0], logprobs[index])
