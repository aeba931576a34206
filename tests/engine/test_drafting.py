"""What is guessed, and how much of it: suffixes that came before, predictions, and what steps take."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral.engine.draft_depth import MOST, REMEMBERED, Acceptance, StepCosts, depths
from mistral.engine.drafter import sound
from mistral.engine.speculation import Speculation
from mistral.engine.suffix_drafter import SPACES, PastAnswers, SuffixDrafter
from mistral.engine.suffix_index import BREAK, ORDERS, SuffixIndex
from mistral.errors import InputError


def costs(**seconds: float) -> StepCosts:
    """Steps that took so long: t1=1.0, t4=1.2."""
    found = StepCosts()
    for name, taken in seconds.items():
        found.add(int(name[1:]), taken)
    return found


def test_what_followed_the_last_time_is_found() -> None:
    index = SuffixIndex(100)
    index.extend([1, 2, 3, 4, 5, 9, 1, 2, 3, 6, 7, 9, 1, 2, 3])
    assert index.find([1, 2, 3], 3) == (3, [6, 7, 9])
    assert index.find([8, 9, 1, 2, 3], 2) == (3, [6, 7])
    assert index.find([2, 3, 4], 5) == (3, [5, 9, 1, 2, 3])
    assert index.find([1, 2, 4], 3) == (0, [])
    assert index.find([2, 3], 3) == (0, [])


def test_what_repeats_itself_goes_on_so() -> None:
    index = SuffixIndex(100)
    index.extend([1, 2, 1, 2, 1, 2])
    assert index.find([2, 1, 2], 5) == (3, [1, 2, 1, 2, 1])


def test_a_draft_ends_where_a_text_does() -> None:
    index = SuffixIndex(100)
    index.extend([1, 2, 3, 4, BREAK, 5, 6, 7])
    assert index.find([1, 2, 3], 9) == (3, [4])


@given(st.lists(st.integers(0, 3), max_size=120), st.integers(8, 40), st.integers(1, 9))
def test_whatever_comes_the_index_is_bounded_and_right(ids: list[int], limit: int, most: int) -> None:
    """What is found did follow the same tokens, the last time that these came."""
    index = SuffixIndex(limit)
    index.extend(ids)
    assert len(index.ids) <= limit and index.ids == ids[len(ids) - len(index.ids) :]
    assert len(index._ends) <= len(ORDERS) * limit
    same, found = index.find(ids, most)
    tail = ids[len(ids) - same :]
    held = index.ids
    ends = [end for end in range(3, len(held)) if held[end - 3 : end] == ids[-3:]]
    assert bool(same) == bool(ends) and len(found) == (most if same else 0)
    if same:
        last = max(end for end in range(same, len(held)) if held[end - same : end] == tail)
        assert found[: len(held) - last] == held[last : last + most]


def test_a_row_is_guessed_from_itself_and_from_answers_before_of_its_space() -> None:
    past = PastAnswers()
    past.add("a", [11, 12, 13, 14, 15])
    other = SuffixDrafter([1, 2, 3], past.of("b"))
    drafter = SuffixDrafter([1, 2, 3, 4, 9, 1], past.of("a"))
    assert drafter.draft([2, 3], 2) == [4, 9]
    assert drafter.draft([2, 3, 11, 12, 13], 2) == [14, 15]
    assert other.draft([11, 12, 13], 2) == []
    for space in range(SPACES + 3):
        past.add(str(space), [1, 2, 3, 4])
    assert past.of("a").ids == []


def test_a_prediction_is_followed_and_found_again_after_a_change() -> None:
    drafter = SuffixDrafter([7, 7], SuffixIndex(9), [1, 2, 3, 4, 5, 6])
    assert drafter.draft([], 3) == [1, 2, 3]
    assert drafter.draft([1, 2], 3) == [3, 4, 5]
    assert drafter.draft([1, 2, 8], 3) == []
    assert drafter.draft([1, 2, 8, 3, 4], 3) == []
    assert drafter.draft([1, 2, 8, 3, 4, 5], 3) == [6]


def test_only_ids_of_the_model_are_computed() -> None:
    assert sound([1, 2, 40, 3], 9, 40) == [1, 2]
    assert sound([1, -1], 9, 40) == [1]
    assert sound([1, 2, 3], 2, 40) == [1, 2]
    assert sound(cast(Any, np.array([1, 2])), 2, 40) == [1, 2]


def test_acceptance_follows_what_happens() -> None:
    found = Acceptance()
    assert found.rate == pytest.approx(0.6)
    for _ in range(30):
        found.add(4, wrong=False)
    assert found.rate > 0.95
    for _ in range(40):
        found.add(0, wrong=True)
    assert found.rate < 0.08


def test_costs_are_medians_and_lines_between_them() -> None:
    found = costs(t1=1.0, t5=2.0)
    assert [found.seconds(n) for n in (1, 3, 5, 9)] == [1.0, 1.5, 2.0, 3.0]
    found.add(1, 50.0)
    found.add(1, 1.0)  # one slow step changes nothing
    assert found.seconds(1) == 1.0
    assert StepCosts().seconds(3) == 0.0
    busy = costs(t1=1.0, t3=9.0, t6=1.5)
    assert busy.seconds(3) == 1.5  # more tokens took less: something else went on
    assert costs(t1=1.0, t3=9.0).seconds(3) == 9.0
    for _ in range(REMEMBERED):
        busy.add(1, 1.0)
    assert busy.seconds(6) == pytest.approx(1.5)
    busy.add(1, 1.0)
    assert busy.seconds(6) == pytest.approx(1.3)  # forgotten, and guessed
    assert costs(t2=1.0).seconds(4) == pytest.approx(1.12)  # a guess, until it is measured


def test_depth_follows_acceptance_and_what_steps_take() -> None:
    cheap, dear = costs(t1=1.0, t9=1.2), costs(t1=1.0, t2=1.9, t9=8.0)
    assert depths([0.9], [8], 1, cheap) == [8]
    assert 1 <= depths([0.4], [8], 1, cheap)[0] < 5
    assert depths([0.01], [8], 1, cheap) == [0]
    assert depths([0.9], [8], 1, dear) == [0]  # as with most mixtures
    assert depths([0.9], [8], 1, StepCosts()) == [0]  # nothing is known
    full = costs(t16=1.0, t20=1.3, t32=2.0)
    assert depths([0.6] * 16, [8] * 16, 16, full) == [0] * 16
    found = depths([0.9, 0.1], [8, 8], 2, costs(t2=1.0, t18=1.5))
    assert found[0] == 8 and found[1] == 0
    assert sum(depths([0.97] * 4, [32] * 4, 4, costs(t4=1.0, t68=1.01))) <= MOST


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9)), min_size=1, max_size=6),
    st.lists(st.floats(0.1, 3), min_size=8, max_size=8),
)
def test_a_step_never_promises_less_than_one_without_drafts(rows: list[tuple[float, int]], taken: list[float]) -> None:
    measured = StepCosts()
    for number, seconds in enumerate(taken):
        measured.add(1 + 3 * number, seconds)
    rates, drafts = [rate for rate, _ in rows], [count for _, count in rows]
    found = depths(rates, drafts, len(rows), measured)
    assert all(0 <= count <= most for count, most in zip(found, drafts, strict=True))
    expected = len(rows) + sum(rate**place for rate, n in zip(rates, found, strict=True) for place in range(1, n + 1))
    base = len(rows) / measured.seconds(len(rows))
    assert not any(found) or expected / measured.seconds(len(rows) + sum(found)) > base


def test_who_drafts_by_the_option() -> None:
    assert Speculation.of("auto", "native") and not Speculation.of("auto", "portable")
    assert Speculation.of("suffix", "portable") and not Speculation.of("off", "native")
    with pytest.raises(InputError, match="must be auto, suffix or off"):
        Speculation.of("yes", "native")
