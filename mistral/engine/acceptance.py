"""How often drafts of one drafter have been right lately. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

AGREEING = (0, 1, 2, 3, 5, 8, 13, 21)  # tokens that agree with where a draft comes from: the first of each class
LIKELIEST = 0.98  # a draft is never taken to be surer
TRIED = 2.0  # drafts that what is expected at first counts for
FADING = 0.01  # of what is known, with each step that nothing was offered for
MEMORY = 0.95  # of what came before, with each draft that was tried


class Acceptance:
    """How often the drafts of one drafter have been right lately in one row, by how many tokens before agreed."""

    def __init__(self, expected: Sequence[float] = (0.6,)) -> None:
        """`expected`: the share thought to be right before any was tried: one, or one for each of `AGREEING`."""
        self._first = [each * TRIED for each in expected]
        self._right, self._tried = list(self._first), [TRIED] * len(expected)

    def _class(self, agreed: int) -> int:
        return min(len(self._first), bisect_right(AGREEING, agreed)) - 1

    def fade(self) -> None:
        """Nothing was tried: what was known matters less, and it may be tried again after a while."""
        for each, first in enumerate(self._first):
            self._right[each] += (first - self._right[each]) * FADING
            self._tried[each] += (TRIED - self._tried[each]) * FADING

    def add(self, right: int, wrong: bool, agreed: int = 0) -> None:
        """So many were right, one after the other, and perhaps the next was wrong; `agreed` tokens before the first."""
        for place in range(right + wrong):
            each = self._class(agreed + place)
            self._right[each] = self._right[each] * MEMORY + (place < right)
            self._tried[each] = self._tried[each] * MEMORY + 1

    def chances(self, count: int, agreed: int = 0) -> list[float]:
        """For each of so many drafts, how likely it and all before it are right; `agreed` tokens before the first."""
        found, chance = list[float](), 1.0
        for place in range(count):
            each = self._class(agreed + place)
            chance *= min(LIKELIEST, self._right[each] / self._tried[each])
            found.append(chance)
        return found
