"""What is guessed, and how much of it: suffixes that came before, predictions, and what steps take."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral.engine.acceptance import Acceptance
from mistral.engine.draft_depth import MOST, DraftDepth
from mistral.engine.drafter import sound
from mistral.engine.speculation import Speculation
from mistral.engine.step_costs import StepCosts
from mistral.engine.suffix_drafter import SPACES, PastAnswers, SuffixDrafter
from mistral.engine.suffix_index import BREAK, LEAST, LONGEST, TRIES, SuffixIndex
from mistral.errors import InputError


def found_in(index: SuffixIndex, tail: list[int], most: int) -> tuple[int, list[int]]:
    """How many tokens agree, and what followed."""
    same, place = index.find(tail)
    return same, index.after(place, most) if same else []


def test_what_followed_the_longest_run_is_found() -> None:
    index = SuffixIndex(100)
    index.extend([1, 2, 3, 4, 5, 9, 1, 2, 3, 6, 7, 9, 1, 2, 3])
    assert found_in(index, [1, 2, 3], 3) == (3, [6, 7, 9]), "the last of two that are as long"
    assert found_in(index, [9, 1, 2, 3], 2) == (4, [6, 7])
    assert found_in(index, [8, 1, 2, 3, 4], 5) == (4, [5, 9, 1, 2, 3])
    assert found_in(index, [5, 2, 4], 3) == (1, [5, 9, 1]), "what has always followed one token"
    assert found_in(index, [5, 2, 9], 3) == (1, [1, 2, 3]), "where it came last"
    assert found_in(index, [5, 2, 3], 3) == (2, [6, 7, 9])
    assert found_in(index, [5, 7, 3], 3) == found_in(index, [3], 3) == (0, []), "several have"
    index.extend([8, 8, 2, 3, 11])
    assert found_in(index, [1, 2, 3], 2) == (3, [8, 8]), "the longer one, though it came before"


def test_what_repeats_itself_goes_on_so() -> None:
    index = SuffixIndex(100)
    index.extend([1, 2, 1, 2, 1, 2])
    assert found_in(index, [2, 1, 2], 5) == (3, [1, 2, 1, 2, 1])


def test_a_draft_ends_where_a_text_does() -> None:
    index = SuffixIndex(100)
    index.extend([1, 2, 3, 4, BREAK, 5, 6, 7])
    assert found_in(index, [1, 2, 3], 9) == (3, [4])


@given(st.lists(st.integers(0, 3), max_size=120), st.integers(8, 40), st.integers(1, 9))
def test_whatever_comes_the_index_is_bounded_and_right(ids: list[int], limit: int, most: int) -> None:
    """What is found did follow the same tokens, and none of the last places follows more of them."""
    index = SuffixIndex(limit)
    index.extend(ids)
    held = index.ids
    assert len(held) <= limit and held == ids[len(ids) - len(held) :]
    assert len(index._before) == len(held) and len(index._last) <= limit
    same, place = index.find(ids)

    def agree(end: int) -> int:
        pairs = zip(reversed(held[:end]), reversed(ids), strict=False)
        return next((n for n, (one, other) in enumerate(pairs) if one != other), min(end, len(ids)))

    lengths = [min(LONGEST, agree(end)) for end in range(LEAST, len(held))]
    last = [length for length in lengths if length >= LEAST][-TRIES:]
    followers = {held[end] for end in range(1, len(held)) if ids and held[end - 1] == ids[-1]}
    assert same == max(last, default=int(len(ids) > 1 and len(followers) == 1))
    if same:
        assert agree(place) >= same and index.after(place, most)[: len(held) - place] == held[place : place + most]


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


def test_a_prediction_is_followed_and_taken_up_again_after_a_change() -> None:
    drafter = SuffixDrafter([7, 7], SuffixIndex(9), [1, 2, 3, 4, 5, 6])
    assert drafter.draft([], 3) == [1, 2, 3]
    assert drafter.draft([1, 2], 3) == [3, 4, 5]
    assert drafter.agreed > 8
    assert drafter.draft([1, 2, 8], 3) == [3, 4, 5] and drafter.agreed == 0, "put in"
    assert drafter.draft([1, 2, 8, 3], 3) == [4, 5, 6] and drafter.agreed == 3
    other = SuffixDrafter([7, 7], SuffixIndex(9), [1, 2, 3, 4, 5, 6])
    assert other.draft([1, 2, 5], 3) == [6], "left out, as it seems"
    assert other.draft([1, 2, 5, 4], 3) == [5, 6], "no: it was replaced"


def test_only_ids_of_the_model_are_computed() -> None:
    assert sound([1, 2, 40, 3], 9, 40) == [1, 2]
    assert sound([1, -1], 9, 40) == [1]
    assert sound([1, 2, 3], 2, 40) == [1, 2]
    assert sound(cast(Any, np.array([1, 2])), 2, 40) == [1, 2]


def test_acceptance_follows_what_happens() -> None:
    found = Acceptance()
    assert found.chances(1) == pytest.approx([0.6])
    for _ in range(30):
        found.add(4, wrong=False)
    assert found.chances(1)[0] > 0.95
    for _ in range(60):
        found.add(0, wrong=True)
    assert found.chances(1)[0] < 0.08


def costs(*taken: tuple[int, float]) -> StepCosts:
    """Steps of so many tokens that took so long, several times in turns with the first."""
    found = StepCosts()
    for _ in range(4):
        for tokens, seconds in taken[1:]:
            found.add(taken[0][0], taken[0][1])
            found.add(tokens, seconds)
    if len(taken) == 1:
        found.add(*taken[0])
    found.steps = 0  # nothing is tried yet
    return found


def depths(rates: list[float], drafts: list[int], rows: int, known: StepCosts) -> list[int]:
    """What is chosen for drafts that are right at each place with the same chance."""
    chances = [[rate**place for place in range(1, n + 1)] for rate, n in zip(rates, drafts, strict=True)]
    return DraftDepth().choose(chances, rows, known)


def test_depth_follows_acceptance_and_what_steps_take() -> None:
    cheap, dear = costs((1, 1.0), (9, 1.2)), costs((1, 1.0), (2, 1.9), (9, 8.0))
    assert depths([0.9], [8], 1, cheap) == [8]
    assert 1 <= depths([0.4], [8], 1, cheap)[0] <= 5
    assert depths([0.01], [8], 1, cheap) == [0]
    assert depths([0.9], [8], 1, dear) == [0]  # as with most mixtures
    assert depths([0.9], [8], 1, StepCosts()) == [0]  # nothing is known
    assert depths([0.92], [32], 1, costs((1, 1.0), (4, 1.4), (8, 2.6), (12, 3.2))) == [3]  # more: as steep
    full = costs((16, 1.0), (20, 1.3), (32, 2.0))
    assert depths([0.6] * 16, [8] * 16, 16, full) == [0] * 16
    found = depths([0.9, 0.1], [8, 8], 2, costs((2, 1.0), (10, 1.2), (18, 1.5)))
    assert found[0] == 8 and found[1] <= 2
    assert sum(depths([0.97] * 4, [32] * 4, 4, costs((4, 1.0), (68, 1.01)))) <= MOST


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9)), min_size=1, max_size=6),
    st.lists(st.floats(0.1, 3), min_size=8, max_size=8),
)
def test_a_step_never_promises_less_than_one_without_drafts(rows: list[tuple[float, int]], taken: list[float]) -> None:
    measured = costs(*[(1 + 3 * number, seconds) for number, seconds in enumerate(taken)])
    rates, drafts = [rate for rate, _ in rows], [count for _, count in rows]
    found = depths(rates, drafts, len(rows), measured)
    assert all(0 <= count <= most for count, most in zip(found, drafts, strict=True))
    expected = len(rows) + sum(rate**place for rate, n in zip(rates, found, strict=True) for place in range(1, n + 1))
    base = len(rows) / measured.share(len(rows))
    assert not any(found) or expected / measured.share(len(rows) + sum(found)) > base


def test_who_drafts_by_the_option() -> None:
    assert Speculation.of("auto", "native") and not Speculation.of("auto", "portable")
    assert Speculation.of("suffix", "portable") and not Speculation.of("off", "native")
    with pytest.raises(InputError, match="must be auto, suffix or off"):
        Speculation.of("yes", "native")
