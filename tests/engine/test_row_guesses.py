"""Which of a row's drafters is used, and how what it offered is judged."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mistral.engine.draft_depth import Acceptance, StepCosts, depths
from mistral.engine.drafter import Drafter
from mistral.engine.row_guesses import RowGuesses, promised


class Says(Drafter):
    """The same draft at all times."""

    def __init__(self, tokens: Sequence[int], computes: bool = False, expected: float = 0.6) -> None:
        self.tokens, self.computes, self.expected = tokens, computes, expected
        self.asked, self.closed = list[int](), 0

    def draft(self, answer: Sequence[int], most: int) -> Sequence[int]:
        self.asked.append(most)
        if not self.tokens:
            raise ValueError("nothing to say")
        return self.tokens

    def close(self) -> None:
        self.closed += 1


def test_a_draft_promises_what_is_expected_less_its_price() -> None:
    assert promised(0.5, 3, 0.0) == 0.875
    assert promised(0.5, 9, 0.2) == pytest.approx(0.5 - 0.2 + 0.25 - 0.2)  # two are best
    assert promised(0.3, 9, 0.3) == promised(0.9, 0, 0.0) == 0.0


def test_the_drafter_that_promises_most_is_used_and_models_are_not_asked_yet() -> None:
    short, long, computed = Says([1]), Says([1, 2, 3]), Says([1, 2], computes=True)
    guesses = RowGuesses([short, long, computed])
    guesses.choose([], 8, 40, price=0.9)  # of a step's time
    assert guesses.used and guesses.used.drafter is long and guesses.length == 3
    assert (short.asked, long.asked, computed.asked) == ([8], [8], [])
    guesses.choose([], 8, 40, price=0.01)
    assert guesses.used.drafter is computed and guesses.length == 8 and not computed.asked
    guesses.choose([], 0, 40, price=0.01)
    assert guesses.used is None and guesses.length == 0


def test_what_was_offered_is_judged_by_what_was_chosen_whether_it_was_used_or_not() -> None:
    used, other, silent = Says([1, 2, 3, 4]), Says([1, 9, 9]), Says([7], computes=True, expected=0.5)
    guesses = RowGuesses([used, other, silent])
    guesses.choose([], 8, 40, price=2.0)
    before = [source.acceptance.rate for source in guesses.sources]
    guesses.landed([1, 2, 3], 2, [1, 2, 8])
    rates = [source.acceptance.rate for source in guesses.sources]
    two_of_three, one_of_two = Acceptance(), Acceptance()
    two_of_three.add(2, wrong=True)
    one_of_two.add(1, wrong=True)
    assert rates == [two_of_three.rate, one_of_two.rate, before[2]]


def test_a_drafter_that_fails_is_asked_no_more_and_closed() -> None:
    broken, sound = Says([]), Says([1, 2])
    guesses = RowGuesses([broken, sound])
    for _ in range(2):
        guesses.choose([], 4, 40, 0.0)
        assert guesses.used and guesses.used.drafter is sound
    assert (broken.asked, broken.closed, sound.closed) == ([4], 1, 0)
    guesses.fail()
    guesses.choose([], 4, 40, 0.0)
    assert guesses.used is None and sound.asked == [4, 4]
    guesses.close()
    assert sound.closed == 2


def test_acceptance_begins_with_what_is_expected_and_fades_back_to_it() -> None:
    found = Acceptance(0.8)
    assert found.rate == pytest.approx(0.8)
    for _ in range(9):
        found.add(0, wrong=True)
    low = found.rate
    assert low < 0.2
    for _ in range(400):
        found.fade()
    assert low < found.rate and found.rate == pytest.approx(0.8, abs=0.05)


def test_the_time_that_drafts_are_made_in_counts() -> None:
    costs = StepCosts()
    for tokens, seconds in ((1, 1.0), (9, 1.2)):
        costs.add(tokens, seconds)
    assert depths([0.9], [8], 1, costs, [0.0]) == depths([0.9], [8], 1, costs) == [8]
    assert 0 < depths([0.9], [8], 1, costs, [0.3])[0] < 8
    assert depths([0.9], [8], 1, costs, [0.9]) == [0]
    assert depths([0.9, 0.9], [4, 4], 2, costs, [0.9, 0.0])[0] < 4
