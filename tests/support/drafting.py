"""Drafts in tests: requests, what is told of their answers, and drafters that know these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mistral.engine.active_row import ActiveRow
from mistral.engine.drafter import Drafter
from mistral.engine.requests import Generated, Request
from mistral.engine.sampling import SamplingSettings
from mistral.engine.speculation import Speculation
from tests.support.generation import lettered
from tests.support.small_models import DENSE

Found = list[tuple[Any, ...]]
TEXT = np.random.default_rng(8).integers(0, DENSE.vocab_size, 90).tolist()
HOW = {
    "greedy": SamplingSettings(),
    "sampled": SamplingSettings(temperature=0.9, seed=5),
    "filtered": SamplingSettings(temperature=1.4, top_p=0.8, top_k=20, min_p=0.01, seed=2),
    "penalties": SamplingSettings(
        temperature=0.7, repetition_penalty=1.3, presence_penalty=0.6, frequency_penalty=0.4, seed=9
    ),
    "greedy penalties": SamplingSettings(repetition_penalty=1.5, frequency_penalty=1.0, logit_bias={3: 2.0}),
}


@dataclass
class Oracle(Drafter):
    """Guesses what the answer is known to be, each token rightly with a probability; and as many as are asked for."""

    answer: Sequence[int]
    right: float
    random: np.random.Generator
    lengths: list[int] = field(default_factory=list)

    def draft(self, answer: Sequence[int], most: int) -> list[int]:
        count = int(self.random.integers(0, most + 1))
        known = [*self.answer[len(answer) :], *[0] * count][:count]
        found = [t if self.random.random() < self.right else (t + 1) % DENSE.vocab_size for t in known]
        self.lengths.append(len(found))
        return found


def told(events: Iterator[Any]) -> dict[int, Found]:
    """All that is said of each answer, step by step, but for the drafts."""
    found: dict[int, Found] = {}
    for event in events:
        if isinstance(event, Generated):
            assert event.error is None
            step = (event.id, event.logprob, event.top, event.text, event.finish_reason)
            found.setdefault(event.index, []).append(step)
    return found


def ids_of(found: Found) -> list[int]:
    return [step[0] for step in found if step[0] is not None]


def guessing(answers: dict[int, Found], right: float, seed: int = 0) -> Speculation:
    """Drafts by who knows the answers of requests by their index."""

    def drafter(row: ActiveRow) -> Drafter:
        return Oracle(ids_of(answers[row.index]), right, np.random.default_rng((seed, row.index)))

    return Speculation([drafter], always=True)


def asked(how: str, number: int = 0, **more: Any) -> Request:
    return Request(
        TEXT[number : 18 + 7 * number], 24, replace(HOW[how], sample=number), None, lettered(), top=2, **more
    )
