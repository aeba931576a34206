"""What steps take is learnt from steps that follow one another, on a clock that is disturbed as real ones are."""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import median

import pytest

from mistral.engine.acceptance import Acceptance
from mistral.engine.draft_depth import PERIOD, DraftDepth
from mistral.engine.step_costs import KEPT, StepCosts

Cost = Callable[[int], float]


def stairs(tokens: int) -> float:
    """As on a processor with vectors: 4, 12 and 24 tokens are the ends of stairs."""
    return next(taken for end, taken in ((1, 1.0), (4, 1.1), (12, 1.5), (24, 2.4), (99, 4.0)) if tokens <= end)


def steep(tokens: int) -> float:
    """As weights of 4 bits, which are soon as dear to compute with as to read."""
    ends = ((1, 1.0), (2, 1.1), (3, 1.2), (4, 1.4), (6, 1.8), (8, 2.1), (12, 3.2), (16, 4.0), (24, 6.0), (99, 8.0))
    return next(taken for end, taken in ends if tokens <= end)


def dear(tokens: int) -> float:
    """As a mixture of experts: each token takes as long as a step."""
    return float(tokens)


def near(tokens: int) -> float:
    """A second token takes most of a step, more of them little."""
    return 1.0 if tokens == 1 else 1.8 + 0.05 * tokens


class Clock:
    """Steps take what they should, times a speed that changes at once and for long; and some are held up."""

    def __init__(self, seed: int) -> None:
        self.random, self.speed = random.Random(seed), 1.0

    def __call__(self) -> float:
        if self.random.random() < 0.05:
            self.speed = self.random.choice([1.0, 1.3, 2.0])
        held_up = 3.0 if self.random.random() < 0.03 else 1.0
        return self.speed * held_up * self.random.lognormvariate(0, 0.08)


class Run:
    """An answer with drafts that are right with a chance."""

    def __init__(self, cost: Cost, right: float, seed: int) -> None:
        self.cost, self.right, self.clock = cost, right, Clock(seed)
        self.random, self.costs, self.depth = random.Random(seed + 1000), StepCosts(), DraftDepth()
        self.acceptance = Acceptance((right,), counts=1e9, memory=1.0)  # known

    def gain(self, steps: int) -> float:
        """Tokens of some steps, by what as many take without drafts."""
        tokens = taken = 0.0
        for _ in range(steps):
            (count,) = self.depth.choose([self.acceptance.chances(32)], 1, self.costs)
            self.costs.add(1 + count, self.cost(1 + count) * self.clock())
            taken += self.cost(1 + count)
            found = next((n for n in range(count) if self.random.random() >= self.right), count)
            self.acceptance.add(found, found < count)
            tokens += 1 + found
        return tokens * self.cost(1) / taken


def best(cost: Cost, right: float) -> float:
    """Of all numbers of drafts."""
    return max(sum(right**place for place in range(n + 1)) / cost(1 + n) for n in range(33)) * cost(1)


@pytest.mark.parametrize(
    ("cost", "right"), [(stairs, 0.8), (stairs, 0.95), (stairs, 0.3), (near, 0.9), (near, 0.3), (dear, 0.9)]
)
def test_the_best_depth_is_found_and_kept_on_a_disturbed_clock(cost: Cost, right: float) -> None:
    runs = [Run(cost, right, seed) for seed in range(16)]
    first, later = [run.gain(60) for run in runs], [run.gain(250) for run in runs]
    most = best(cost, right)
    assert median(first) > 0.7 * most
    assert median(later) > 0.85 * most
    assert min(later) > 0.7 * most, "nothing that was held up ends drafts for ever, or keeps them"


def test_a_first_short_answer_gains_most_of_what_it_may_though_nothing_is_known() -> None:
    """Sizes that were never tried are not taken to be cheap when a few drafts were right."""
    gains = list[float]()
    for seed in range(48):
        run = Run(steep, 0.9, seed)
        run.acceptance = Acceptance((0.9,))
        gains.append(run.gain(60) / best(steep, 0.9))
    assert sum(gains) / len(gains) > 0.89
    assert min(gains) > 0.65


def test_a_step_is_compared_with_the_one_before_it_alone() -> None:
    found = StepCosts()
    assert found.share(4) == found.seconds(4) == 0.0
    found.add(1, 1.0)
    assert found.share(4) == pytest.approx(1.18), "a guess"
    found.add(4, 1.5)
    assert [found.share(n) for n in (1, 2, 4)] == pytest.approx([1.0, 1 + 0.5 / 3, 1.5])
    found.add(4, 3.0)  # the machine has become slower
    found.add(1, 2.0, follows=False)  # and faster, or not: nobody knows
    assert found.share(4) == pytest.approx(1.5)
    found.add(4, 2.8)
    assert found.share(4) == pytest.approx(1.4), "of two the less"
    assert found.seconds(1) == pytest.approx(2.0) and found.seconds(4) == pytest.approx(2.8)


@pytest.mark.parametrize("wrong", [5.0, 0.3])
def test_what_was_wrong_at_first_is_corrected_in_both_directions(wrong: float) -> None:
    found = StepCosts()
    for number in range(2 + KEPT):
        found.add(1, 1.0)
        found.add(8, 1.6 * (wrong if number < 2 else 1.0))
    assert found.share(8) == pytest.approx(1.6)


def test_more_tokens_never_take_less() -> None:
    found = StepCosts()
    for tokens, seconds in ((1, 1.0), (4, 2.0), (1, 1.0), (8, 1.5), (1, 1.0), (2, 0.4)):
        found.add(tokens, seconds)
    assert [found.share(n) for n in (1, 2, 4, 8)] == pytest.approx([1.0, 1.0, 1.5, 1.5])
    assert found.share(16) == pytest.approx(1.5 + 8 * 0.5 / 7), "beyond, as from the first to the last"


def test_what_seems_too_dear_is_tried_again_and_what_cannot_pay_is_not() -> None:
    def tried(chance: float) -> list[int]:
        costs, depth, found = StepCosts(), DraftDepth(), list[int]()
        for seconds in (9.0, 9.0):  # held up
            costs.add(1, 1.0)
            costs.add(2, seconds)
        for _ in range(24 * PERIOD):
            (count,) = depth.choose([[chance]], 1, costs)
            costs.add(1 + count, 1.0 + 0.1 * count)
            found.append(count)
        return found

    often = tried(0.9)
    assert sum(often[: 2 * PERIOD]) <= 3 and sum(often[-PERIOD:]) > 0.9 * PERIOD
    assert sum(tried(0.1)) == 0
