"""How many drafts a model computes, by what its steps and the checks take on a clock that is disturbed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from mistral.engine.active_row import ActiveRow
from mistral.engine.drafter import Drafter
from mistral.engine.speculation import Speculation
from mistral.engine.work import Outcome, Work

TOKENS = 120
FAST, SLOW = (41.0, 57.0, 0.4, 15.0), (60.0, 68.0, 0.3, 20.0)
"""Milliseconds, of a 7B model's layers where memory gives much or little: a step, one of two tokens, what each more
adds, and a step of the copy in 4 bits."""
Machine = tuple[float, float, float, float]


class Run(Drafter):
    """Answers of one process, with drafts that are right with a chance; the drafter's own time goes by, too."""

    computes, expected = True, (0.8,)

    def __init__(self, machine: Machine, right: float, seed: int) -> None:
        self.machine, self.right, self.random, self.now = machine, right, random.Random(seed), 0.0
        self.speculation = Speculation([lambda row: self], clock=lambda: self.now)

    def spend(self, milliseconds: float) -> None:
        held_up = 1.5 if self.random.random() < 0.03 else 1.0
        self.now += milliseconds * held_up * self.random.lognormvariate(0, 0.03)

    def step(self, tokens: int) -> None:
        base, two, more, _ = self.machine
        self.spend(base if tokens == 1 else two + more * (tokens - 2))

    def draft(self, answer: Sequence[int], most: int) -> list[int]:
        for _ in range(most):
            self.spend(self.machine[3])
        return [int(self.random.random() < self.right) for _ in range(most)]

    def answer(self, number: int) -> float:
        """What an answer takes, as a share of what it would without drafts."""
        answer, begun = [1], self.now
        row = SimpleNamespace(index=number, answer=answer, draft_room=0, handle=SimpleNamespace(space=""))
        while len(answer) < TOKENS:
            before, row.draft_room = self.now, TOKENS - len(answer) - 1
            (drafts,) = self.speculation.drafts([cast(ActiveRow, row)], 2)
            self.step(1 + len(drafts))
            right = drafts.index(0) if 0 in drafts else len(drafts)
            work = Work(0, [1], sample=True, drafts=drafts)
            self.speculation.landed(cast(ActiveRow, row), work, Outcome(id=1, more=(Outcome(id=1),) * right))
            self.speculation.measured(1 + len(drafts), self.now - before)
            answer += [1] * (1 + right)
        self.speculation.ended(cast(ActiveRow, row))
        plain = self.machine[0] * (TOKENS - 1) * (1 + 0.03 / 2)
        return (self.now - begun) / plain


def best(machine: Machine, right: float) -> float:
    """Of all numbers of drafts."""
    base, two, more, copy = machine
    speeds = [
        base * sum(right**place for place in range(count + 1)) / (count * copy + two + more * (count - 1))
        for count in range(1, 12)
    ]
    return max(1.0, *speeds)


@pytest.mark.parametrize("machine", [FAST, SLOW])
@pytest.mark.parametrize("right", [0.95, 0.9, 0.8, 0.5, 0.2])
def test_most_of_what_a_copy_can_gain_is_gained_and_a_bad_one_costs_little(machine: Machine, right: float) -> None:
    runs, most = [Run(machine, right, seed) for seed in range(24)], best(machine, right)
    answers = [[run.answer(number) for number in range(4)] for run in runs]
    first, later = [sum(some) / len(some) for some in zip(*((a[0], sum(a[1:]) / 3) for a in answers), strict=True)]
    assert 1 / first > 0.87 * most
    assert 1 / later > 0.94 * most
    if right < 0.6:
        assert max(map(sum, answers)) < 1.15 * len(answers[0]), "no run is slowed by much"
