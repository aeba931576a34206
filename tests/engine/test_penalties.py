"""Penalties for what an answer has already, a bias of single ids, and grammars, in the choice of a token."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mistral.engine.distribution import FEW
from mistral.engine.sampling import SamplingRow, SamplingSettings, Wants, choose
from mistral.errors import InputError


def chosen(row: SamplingRow, *logits: float) -> int:
    choice = choose(np.array([logits], np.float32), [row], [Wants()])[0]
    assert choice.error is None
    return choice.id


@pytest.mark.parametrize(
    ("options", "answer", "logits", "expected"),
    [
        ({"presence_penalty": 1.0}, [], [2.0, 1.5], 0),
        ({"presence_penalty": 1.0}, [0], [2.0, 1.5], 1),  # 2 - 1 < 1.5
        ({"presence_penalty": 0.4}, [0, 0, 0], [2.0, 1.5], 0),  # once, however often: 1.6 > 1.5
        ({"frequency_penalty": 0.4}, [0], [2.0, 1.5], 0),  # 1.6 > 1.5
        ({"frequency_penalty": 0.4}, [0, 1, 0], [2.0, 1.7], 1),  # 2 - 0.8 < 1.7 - 0.4
        ({"frequency_penalty": 0.2, "presence_penalty": 0.2}, [0, 0], [2.0, 1.5], 1),  # 2 - 0.2 - 0.4 < 1.5
        ({"presence_penalty": -1.0}, [1], [2.0, 1.5], 1),  # below 0 it rewards
        ({"repetition_penalty": 2.0, "presence_penalty": 0.6}, [0], [2.0, 0.5], 1),  # 2 / 2 - 0.6 < 0.5
        ({"logit_bias": {1: 0.6}}, [], [2.0, 1.5], 1),
        ({"logit_bias": {0: -0.4}}, [], [2.0, 1.5], 0),
        ({"logit_bias": {0: -100, 1: -99.0}}, [], [2.0, 1.5, -200.0], 1),
        ({"logit_bias": {0: 100}}, [], [-math.inf, -50.0], 1),  # what is impossible stays so
    ],
)
def test_what_is_added_to_logits(
    options: dict[str, Any], answer: list[int], logits: list[float], expected: int
) -> None:
    row = SamplingRow(SamplingSettings(**options), [0, 1])  # ids of the prompt do not count for OpenAI's penalties
    row.seen = row.seen[:0]
    for token in answer:
        row.append(token)
    assert chosen(row, *logits) == expected


def test_log_probabilities_are_those_of_the_model() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.2]], np.float32))
    row = SamplingRow(SamplingSettings(logit_bias={2: 50.0}, presence_penalty=1.0), [])
    (choice,) = choose(logits, [row], [Wants(logprob=True, top=2)])
    assert choice.id == 2 and choice.logprob == pytest.approx(math.log(0.2), abs=1e-6)
    assert [token for token, _ in choice.top] == [0, 1]


def test_huge_logits_stay_finite() -> None:
    row = SamplingRow(SamplingSettings(logit_bias={0: 100}, presence_penalty=-2.0), [])
    row.append(1)
    assert chosen(row, 3.4e38, 3.3e38, 0.0) == 0


@pytest.mark.parametrize("size", [6, FEW + 100])
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.3}, {"min_p": 0.5}])
def test_ends_wait_for_the_least_number_of_tokens(size: int, options: dict[str, Any]) -> None:
    logits = np.zeros((1, size), np.float32)
    logits[0, [2, 4]] = 30
    for seed in range(5):
        row = SamplingRow(SamplingSettings(temperature=1.0, seed=seed, **options), [], (), (2, 4), 3)
        ids = []
        for _ in range(4):
            (choice,) = choose(logits, [row], [Wants()])
            ids.append(choice.id)
            row.append(choice.id)
        assert not {2, 4} & set(ids[:3]) and ids[3] in (2, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"presence_penalty": 3}, "presence_penalty must be a number from -2 to 2, not 3"),
        ({"frequency_penalty": True}, "frequency_penalty must be a number"),
        ({"logit_bias": None}, "logit_bias must be a table"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias must have ids as its keys, not -1"),
        ({"logit_bias": {"1": 1.0}}, "logit_bias must have ids as its keys, not '1'"),
        ({"logit_bias": {1: "x"}}, "logit_bias must have numbers from -100 to 100, not 'x' for id 1"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias must have numbers"),
        ({"logit_bias": dict.fromkeys(range(1 << 15), 1.0)}, "logit_bias must be a table of at most"),
    ],
)
def test_settings_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamplingSettings(**options)
