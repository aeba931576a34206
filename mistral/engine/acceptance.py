"""The recent share of accepted draft tokens of one drafter. Pure functions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

AGREEING = (0, 1, 2, 3, 5, 8, 13, 21)  # tokens that agree with where a draft comes from: the first of each class
LIKELIEST = 0.98  # a draft is never taken to be surer
TRIED = 2.0  # drafts that what is expected at first counts for
FADING = 0.01  # of what is known, with each step that nothing was offered for
MEMORY = 0.95  # of what came before, with each draft that was tried
OTHERS = 20.0  # drafts that what other rows found counts for
ALL_TRIED, ALL_MEMORY, ALL_FADING = 4.0, 0.995, 0.004  # the same of what all rows found


class Acceptance:
    """How often the drafts of one drafter have been right lately in one row, by how many tokens before agreed."""

    def __init__(
        self, expected: Sequence[float] = (0.6,), counts: float = TRIED, memory: float = MEMORY, fading: float = FADING
    ) -> None:
        """`expected`: the share thought to be right before any was tried: one, or one for each of `AGREEING`.

        `counts`: as so many drafts that were tried. `memory` and `fading`: see the constants above.
        """
        self._counts, self._memory, self._fading = counts, memory, fading
        self._first = [each * counts for each in expected]
        self._right, self._tried = list(self._first), [counts] * len(expected)

    def _class(self, agreed: int) -> int:
        return min(len(self._first), bisect_right(AGREEING, agreed)) - 1

    def fade(self) -> None:
        """Nothing was tried: what was known matters less, and it may be tried again after a while."""
        for each, first in enumerate(self._first):
            self._right[each] += (first - self._right[each]) * self._fading
            self._tried[each] += (self._counts - self._tried[each]) * self._fading

    def add(self, right: int, wrong: bool, agreed: int = 0) -> None:
        """So many were right, one after the other, and perhaps the next was wrong; `agreed` tokens before the first."""
        for place in range(right + wrong):
            each = self._class(agreed + place)
            self._right[each] = self._right[each] * self._memory + (place < right)
            self._tried[each] = self._tried[each] * self._memory + 1

    def share(self, agreed: int = 0) -> float:
        """How likely one draft is right after so many tokens that agreed."""
        each = self._class(agreed)
        return self._right[each] / self._tried[each]

    def chances(self, count: int, agreed: int = 0) -> list[float]:
        """For each of so many drafts, how likely it and all before it are right; `agreed` tokens before the first."""
        found, chance = list[float](), 1.0
        for place in range(count):
            chance *= min(LIKELIEST, self.share(agreed + place))
            found.append(chance)
        return found


class SharedAcceptance(Acceptance):
    """That of a drafter whose rows are alike: a model's. What all of its rows have found counts in each of them."""

    def __init__(self, all_rows: Acceptance) -> None:
        super().__init__((0.0,))
        self._all, self._tried = all_rows, [0.0]

    @classmethod
    def of_all(cls, expected: Sequence[float]) -> Acceptance:
        """What all rows of a drafter have found; nothing yet."""
        return Acceptance(expected, ALL_TRIED, ALL_MEMORY, ALL_FADING)

    def fade(self) -> None:
        """See `Acceptance.fade`."""
        self._all.fade()
        self._right[0] *= 1 - FADING
        self._tried[0] *= 1 - FADING

    def add(self, right: int, wrong: bool, agreed: int = 0) -> None:
        """See `Acceptance.add`."""
        self._all.add(right, wrong)
        super().add(right, wrong)

    def share(self, agreed: int = 0) -> float:
        """See `Acceptance.share`."""
        return (self._right[0] + OTHERS * self._all.share()) / (self._tried[0] + OTHERS)
