"""Which of a row's drafters is used, and how what it offered is judged."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from mistral.engine.acceptance import Acceptance, SharedAcceptance
from mistral.engine.active_row import ActiveRow
from mistral.engine.draft_depth import DraftDepth
from mistral.engine.drafter import Drafter
from mistral.engine.row_guesses import RowGuesses, Source, promised
from mistral.engine.speculation import ASKED, LEAST_RESTED, RESTED, Speculation
from mistral.engine.step_costs import StepCosts


class Says(Drafter):
    """The same draft at all times."""

    def __init__(self, tokens: Sequence[int], computes: bool = False, expected: float = 0.6) -> None:
        self.tokens, self.computes, self.expected = tokens, computes, (expected,)
        self.asked, self.closed = list[int](), 0

    def draft(self, answer: Sequence[int], most: int) -> Sequence[int]:
        self.asked.append(most)
        if not self.tokens:
            raise ValueError("nothing to say")
        return self.tokens

    def close(self) -> None:
        self.closed += 1


def test_a_draft_promises_what_is_expected_less_its_price() -> None:
    halves = [0.5**place for place in range(1, 10)]
    assert promised(halves[:3], 0.0) == 0.875
    assert promised(halves, 0.2) == pytest.approx(0.5 - 0.2 + 0.25 - 0.2)  # two are best
    assert promised([0.3, 0.09], 0.3) == promised([], 0.0) == 0.0


def test_the_drafter_that_promises_most_is_used_and_models_are_not_asked_yet() -> None:
    short, long, computed = Says([1]), Says([1, 2, 3]), Says([1, 2], computes=True)
    guesses = RowGuesses(map(Source, [short, long, computed]))
    guesses.choose([], 8, 40, price=0.9)  # of a step's time
    assert guesses.used and guesses.used.drafter is long and len(guesses.chances) == 3
    assert (short.asked, long.asked, computed.asked) == ([8], [8], [])
    guesses.choose([], 8, 40, price=0.01)
    assert guesses.used.drafter is computed and len(guesses.chances) == 8 and not computed.asked
    guesses.choose([], 0, 40, price=0.01)
    assert guesses.used is None and len(guesses.chances) == 0


def test_what_was_offered_is_judged_by_what_was_chosen_whether_it_was_used_or_not() -> None:
    used, other, silent = Says([1, 2, 3, 4]), Says([1, 9, 9]), Says([7], computes=True, expected=0.5)
    guesses = RowGuesses(map(Source, [used, other, silent]))
    guesses.choose([], 8, 40, price=2.0)
    before = [source.acceptance.chances(1)[0] for source in guesses.sources]
    guesses.landed([1, 2, 3], 2, [1, 2, 8])
    rates = [source.acceptance.chances(1)[0] for source in guesses.sources]
    two_of_three, one_of_two = Acceptance(), Acceptance()
    two_of_three.add(2, wrong=True)
    one_of_two.add(1, wrong=True)
    assert rates == [two_of_three.chances(1)[0], one_of_two.chances(1)[0], before[2]]


def test_a_drafter_that_fails_is_asked_no_more_and_closed() -> None:
    broken, sound = Says([]), Says([1, 2])
    guesses = RowGuesses(map(Source, [broken, sound]))
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
    found = Acceptance((0.8,))
    assert found.chances(3) == pytest.approx([0.8, 0.64, 0.512])
    for _ in range(9):
        found.add(0, wrong=True)
    (low,) = found.chances(1)
    assert low < 0.2
    for _ in range(500):
        found.fade()
    assert low < found.chances(1)[0] and found.chances(1) == pytest.approx([0.8], abs=0.05)


def test_a_row_begins_with_what_all_rows_found_and_differs_as_far_as_it_was_tried() -> None:
    everything = SharedAcceptance.of_all((0.8,))
    one, other = SharedAcceptance(everything), SharedAcceptance(everything)
    assert one.chances(2) == pytest.approx([0.8, 0.64])
    for _ in range(200):
        one.add(3, wrong=True)
    assert SharedAcceptance(everything).chances(1) == other.chances(1) == pytest.approx([0.75], abs=0.01)
    for _ in range(20):
        other.add(0, wrong=True)
    assert other.chances(1)[0] < 0.45 and one.chances(1)[0] > 0.7
    for _ in range(999):
        other.fade()
    assert min(other.chances(1)[0], one.chances(1)[0]) > 0.7, "it may be tried again"


def test_the_more_tokens_agreed_the_likelier() -> None:
    """Each class learns by itself, and a draft goes through several."""
    found = Acceptance((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8))
    assert found.chances(3, 3) == pytest.approx([0.4, 0.4 * 0.4, 0.4 * 0.4 * 0.5])
    assert found.chances(1, 500) == pytest.approx([0.8])
    for _ in range(60):
        found.add(3, wrong=True, agreed=0)
    assert found.chances(3) == pytest.approx([0.98, 0.98**2, 0.98**3], rel=0.02)
    assert found.chances(1, 3)[0] < 0.05 and found.chances(1, 5) == pytest.approx([0.5])


def test_the_time_that_drafts_are_made_in_counts() -> None:
    def chosen(chances: list[list[float]], rows: int, *prices: float) -> list[int]:
        costs = StepCosts()
        for _ in range(3):
            costs.add(rows, 1.0)
            costs.add(rows + 8, 1.2)
        costs.steps = 0  # nothing is tried yet
        return DraftDepth().choose(chances, rows, costs, prices)

    likely = [0.9**place for place in range(1, 9)]
    assert chosen([likely], 1, 0.0) == chosen([likely], 1) == [8]
    assert 0 < chosen([likely], 1, 0.3)[0] < 8
    assert chosen([likely], 1, 0.9) == [0]
    assert chosen([likely[:4], likely[:4]], 2, 0.9, 0.0)[0] < 4


def test_where_drafts_rest_for_long_drafters_are_asked_less_often() -> None:
    """And as ever once a draft is worth it again."""
    drafter, made = Says([1, 2, 3]), Speculation([lambda row: drafter])
    row = cast(ActiveRow, SimpleNamespace(index=0, answer=[5], draft_room=3))
    for _ in range(RESTED + 10 * ASKED):  # nothing is known of what steps take
        assert made.drafts([row], 40) == [[]]
    assert len(drafter.asked) == RESTED + 10
    made.measured(1, 1.0)
    made.measured(1, 1.0)
    for _ in range(ASKED):
        made.drafts([row], 40)
    assert [len(made.drafts([row], 40)[0]) for _ in range(5)] == [3] * 5


def test_many_rows_rest_after_fewer_steps_and_their_drafts_must_promise_more() -> None:
    drafter, made = Says([1, 2, 3]), Speculation([lambda row: drafter])
    rows = [cast(ActiveRow, SimpleNamespace(index=i, answer=[5], draft_room=3)) for i in range(16)]
    for _ in range(LEAST_RESTED + 10 * ASKED):
        assert made.drafts(rows, 40) == [[]] * 16
    assert len(drafter.asked) == (LEAST_RESTED + 10) * 16

    def chosen(count: int, costs_more: float) -> int:
        costs = StepCosts()
        for _ in range(8):
            costs.add(count, 1.0)
            costs.add(2 * count, costs_more)
        costs.steps = 0  # nothing is tried yet
        return sum(DraftDepth().choose([[1.0]] * count, count, costs))

    assert (chosen(1, 2 / 1.02), chosen(1, 2 / 1.05)) == (0, 1)
    assert (chosen(16, 2 / 1.09), chosen(16, 2 / 1.12)) == (0, 16)
