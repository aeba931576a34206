"""The cost of a step by its number of tokens, measured by comparing successive decode steps. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from itertools import accumulate
from statistics import median, median_low

KEPT = 7  # comparisons of a size, of which the median counts
FIRST_GUESS = 0.06  # of a step's time, for each token more, while nothing is known; and at least, beyond what is
APART = 4  # tokens from the first size to the last, from which on these say what more tokens take
LEAST = 0.04  # of a step's time, for each token more, which a size that was not tried lately may take
SURE = 3  # comparisons that are enough if the last was as expected
UNEXPECTED = 1.25  # times as long as expected, or so many times less
LATEST = 7  # steps, which say how fast the machine is now


class StepCosts:
    """What steps of so many tokens take, rows and drafts together, as shares of what the first size took.

    A machine's speed changes from one second to the next. So a step is compared with the one right before it alone,
    where that had another number of tokens; the median of some such comparisons counts, and of two the less, since
    what disturbs a step makes it longer. Sizes that were not compared are on a line between those that were, or beyond
    them on one that is as steep as all of these together.
    """

    def __init__(self) -> None:
        self._ratios: dict[int, deque[float]] = {}  # by tokens
        self._medians: dict[int, float] = {}
        self._latest = deque[tuple[int, float]](maxlen=LATEST)  # tokens and seconds
        self._base = 0  # the size that all are compared with in the end
        self._known, self._shares = list[int](), list[float]()  # sizes in order, and what they take
        self.doubted = set[int]()
        """Sizes whose last comparison was not as expected."""
        self.steps = 0
        """Steps that were measured."""
        self.last: dict[int, int] = {}
        """By tokens, the number of the last of `steps` that had so many."""

    def add(self, tokens: int, seconds: float, follows: bool = True) -> None:
        """A step took so long; `follows`: right after the one before."""
        self.steps += 1
        before = self._latest[-1] if self._latest and follows else None
        if not self._base:
            self._base = tokens
            self._medians[tokens] = 1.0
            self._settle()
        elif before and before[0] != tokens and before[1] > 0 and seconds > 0:
            self._compare(*before, tokens, seconds)
        self._latest.append((tokens, seconds))
        self.last[tokens] = self.steps

    def _compare(self, one: int, one_seconds: float, other: int, other_seconds: float) -> None:
        """Two steps came one after the other: what is known of the one says something of the other."""
        known, unknown = self.compared(one), self.compared(other)
        expected = self.share(other) * one_seconds / self.share(one)
        if max(expected, other_seconds) > UNEXPECTED * min(expected, other_seconds):
            self.doubted |= {one, other}
        else:
            self.doubted -= {one, other}
        found = {}
        if other != self._base and known >= min(unknown, KEPT):
            found[other] = self.share(one) * other_seconds / one_seconds
        if one != self._base and unknown >= min(known, KEPT):
            found[one] = self.share(other) * one_seconds / other_seconds
        for tokens, ratio in found.items():
            ratios = self._ratios.setdefault(tokens, deque(maxlen=KEPT))
            ratios.append(ratio)
            self._medians[tokens] = median_low(ratios)
        self._settle()

    def _settle(self) -> None:
        """What took longer than more tokens was held up by something else."""
        self._known = sorted(self._medians)
        found = list(accumulate((self._medians[each] for each in reversed(self._known)), min))[::-1]
        self._shares = [max(1.0, s) if each >= self._base else s for each, s in zip(self._known, found, strict=True)]

    def is_sure(self, tokens: int) -> bool:
        """Whether steps of so many tokens were compared often enough to have several in a row."""
        return self.compared(tokens) >= (KEPT if tokens in self.doubted else SURE)

    def least(self, tokens: int) -> float:
        """What so many tokens take at least, by what fewer do, as far as these were compared more than once."""
        each, pairs = LEAST * self.share(self._base), zip(self._known, self._shares, strict=True)
        sure = ((size, share) for size, share in pairs if size < tokens and self.compared(size) > 1)
        return max((share + each * (tokens - size) for size, share in sure), default=0.0)

    def reach(self, tokens: int) -> int:
        """The most tokens of a step that one may have now: about twice as many as were compared, or as these."""
        return 2 * max(tokens, self._known[-1] if self._known else 1) + 6

    @property
    def latest(self) -> int:
        """Tokens of the last step that was measured; 0: none was."""
        return self._latest[-1][0] if self._latest else 0

    def compared(self, tokens: int) -> int:
        """How often steps of so many tokens were compared with others, of what counts."""
        return KEPT if tokens == self._base else len(self._ratios.get(tokens, ()))

    def share(self, tokens: int) -> float:
        """What a step takes, as a share of what the first size does; 0 while nothing is known."""
        known, shares = self._known, self._shares
        above = bisect_left(known, tokens)
        if above == len(known):
            return shares[-1] + self._slope() * (tokens - known[-1]) if known else 0.0
        if known[above] == tokens or not above:
            return shares[above]
        part = (tokens - known[above - 1]) / (known[above] - known[above - 1])
        return shares[above - 1] * (1 - part) + shares[above] * part

    def _slope(self) -> float:
        """What a token more takes beyond the sizes that are known: as much as on average from the first to the last.

        Where these are close together that says little, since a second token alone may take most of a step.
        """
        known, shares = self._known, self._shares
        more = known[-1] - known[0]
        return max(FIRST_GUESS * shares[0], (shares[-1] - shares[0]) / more if more >= APART else 0.0)

    def seconds(self, tokens: int) -> float:
        """What a step takes at the speed of the last few; 0 while nothing is known."""
        if not self._latest:
            return 0.0
        return self.share(tokens) * median(seconds / self.share(size) for size, seconds in self._latest)
