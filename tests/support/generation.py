"""Prompts to generate for, and what to look at while that happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from mistral.engine.requests import Generated, Prefilled
from mistral.load import Transformer
from mistral.tokenizer.streaming import TextStream
from tests.support.pieces import PieceDecoder
from tests.support.small_models import DENSE

MAX_TOKENS = 6
LENGTHS = (3, 18, 1, 9)  # the second wraps around the window several times; the third runs out at once
PROMPTS = [np.random.default_rng(length).integers(0, DENSE.vocab_size, length).tolist() for length in LENGTHS]
Found = tuple[list[list[int]], list[list[float]]]  # tokens and logprobs of each prompt


class Spy:
    """Counts what a model is asked to compute: the rows of each step, and the tokens that its head serves."""

    def __init__(self, model: Transformer, patch: pytest.MonkeyPatch) -> None:
        self.rows: list[list[int]] = []
        self.tokens: list[int] = []
        self.head: list[int] = []
        run_blocks, head = model.run_blocks, model.head

        def spied_blocks(x, metadata, *more):  # type: ignore[no-untyped-def]
            self.rows.append(list(metadata.rows))
            self.tokens.append(sum(metadata.seqlens))
            return run_blocks(x, metadata, *more)

        def spied_head(x):  # type: ignore[no-untyped-def]
            self.head.append(x.shape[0])
            return head(x)

        patch.setattr(model, "run_blocks", spied_blocks)
        patch.setattr(model, "head", spied_head)


def close(found: Sequence[Sequence[float]], wanted: Sequence[Sequence[float]], within: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=within)


def answers(events: Iterator[Prefilled | Generated]) -> dict[int, list[Generated]]:
    """The Generated events of each request, in order; asserts that each request ends once and is then silent."""
    found: dict[int, list[Generated]] = {}
    for event in events:
        if isinstance(event, Generated):
            found.setdefault(event.index, []).append(event)
    for steps in found.values():
        assert [step.finish_reason is not None for step in steps] == [False] * (len(steps) - 1) + [True]
    return found


def ids_in(steps: list[Generated]) -> list[int]:
    return [step.id for step in steps if step.id is not None]


def lettered(stop: Sequence[str] = (), rest: str = "") -> TextStream:
    """Each id as three characters of its own: 07 and a comma."""
    return TextStream(PieceDecoder([f"{i:02}," for i in range(DENSE.vocab_size)], rest), stop)
