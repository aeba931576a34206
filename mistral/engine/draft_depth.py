"""How many drafts a step should have, by what steps take and how often drafts were right. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import median

KEPT = 5  # measurements of steps with so many tokens, of which the median counts
REMEMBERED = 500  # steps, for which a measurement counts
FIRST_GUESS = 0.06  # of a step's time, for each token more, while nothing is known
MARGIN = 1.03  # drafts must promise so much, lest noise decide
MOST = 64  # drafts of a step
LIKELIEST = 0.98  # a draft is never taken to be surer
TRIED = 2.0  # drafts that what is expected at first counts for
FADING = 0.01  # of what is known, with each step that nothing was offered for
MEMORY = 0.93  # of what came before, with each draft that was tried


class Acceptance:
    """How often the drafts of one drafter have been right lately in one row."""

    def __init__(self, expected: float = 0.6) -> None:
        """`expected`: the share that is thought to be right before any was tried."""
        self._first = expected * TRIED, TRIED
        self._right, self._tried = self._first

    def fade(self) -> None:
        """Nothing was tried: what was known matters less, and it may be tried again after a while."""
        self._right += (self._first[0] - self._right) * FADING
        self._tried += (self._first[1] - self._tried) * FADING

    def add(self, right: int, wrong: bool) -> None:
        """So many were right, one after the other, and perhaps the next was wrong."""
        for each in (*[True] * right, *[False] * wrong):
            self._right = self._right * MEMORY + each
            self._tried = self._tried * MEMORY + 1

    @property
    def rate(self) -> float:
        """The share that is expected to be right of those whose draft before was."""
        return min(LIKELIEST, self._right / self._tried)


class StepCosts:
    """What steps of so many tokens take, rows and drafts together, as they were measured.

    What was measured long ago is forgotten, lest a moment in which the machine was busy ends drafts for ever. Steps
    that were only tried say how the time goes with the number of tokens, and those of answers how long it is.
    """

    def __init__(self) -> None:
        self._measured: dict[int, deque[float]] = {}
        self._medians: dict[int, float] = {}
        self._last: dict[int, int] = {}  # the step in which each was measured last
        self._steps = 0
        self._known, self._seconds = list[int](), list[float]()  # numbers of tokens in order, and what they take
        self._sizes, self._tried = list[int](), list[float]()  # as these, of steps that were tried
        self._ratios = list[float]()  # of what each of the known takes to what the trial says

    def start(self, tried: Mapping[int, float]) -> None:
        """Steps that were tried took so long, by their tokens; two sizes or more say something."""
        if len(tried) > 1 and min(tried.values()) > 0:
            self._sizes = sorted(tried)
            self._tried = _rising([tried[size] for size in self._sizes])
            self._compare()

    def add(self, tokens: int, seconds: float) -> None:
        """A step took so long."""
        self._steps += 1
        self._measured.setdefault(tokens, deque(maxlen=KEPT)).append(seconds)
        self._medians[tokens], self._last[tokens] = median(self._measured[tokens]), self._steps
        for old in [each for each, step in self._last.items() if self._steps - step > REMEMBERED]:
            del self._measured[old], self._last[old], self._medians[old]
        self._known = sorted(self._medians)
        self._seconds = _rising([self._medians[each] for each in self._known])
        self._compare()

    def _compare(self) -> None:
        if self._tried:
            pairs = zip(self._known, self._seconds, strict=True)
            self._ratios = [seconds / self._as_tried(tokens) for tokens, seconds in pairs]

    def seconds(self, tokens: int) -> float:
        """What a step will take: between measurements on a line, beyond them along it; 0 while nothing is known.

        Where steps were tried, it is what they say, times what measurements of about so many tokens had of that.
        """
        if not self._tried:
            return _on_line(self._known, self._seconds, tokens)
        ratio = 1.0
        if self._known:
            within = min(max(tokens, self._known[0]), self._known[-1])
            ratio = _on_line(self._known, self._ratios, within)
        return ratio * self._as_tried(tokens)

    def _as_tried(self, tokens: int) -> float:
        """What the trial says, which may have ended before a stair."""
        return _on_line(self._sizes, self._tried, tokens, FIRST_GUESS)


def _rising(seconds: Sequence[float]) -> list[float]:
    """Times of steps in the order of their tokens: what took longer than more tokens was held up by something else."""
    return list(accumulate(reversed(seconds), min))[::-1]


def _on_line(known: Sequence[int], seconds: Sequence[float], tokens: int, least: float = 0.0) -> float:
    """The time of so many tokens: on a line between two that are known; 0 where none is known.

    Beyond them it goes on along a line, and with each token rises by a share `least` of the first time at least.
    """
    if not known:
        return 0.0
    above = bisect_left(known, tokens)
    if above == 0:
        return seconds[0]
    if above == len(known):
        slope = FIRST_GUESS * seconds[0]
        if above > 1:
            slope = max(least * seconds[0], (seconds[-1] - seconds[0]) / (known[-1] - known[0]))
        return seconds[-1] + slope * (tokens - known[-1])
    share = (tokens - known[above - 1]) / (known[above] - known[above - 1])
    return seconds[above - 1] * (1 - share) + seconds[above] * share


def depths(
    rates: Sequence[float], drafts: Sequence[int], rows: int, costs: StepCosts, prices: Sequence[float] = ()
) -> list[int]:
    """How many of its drafts each row should have, so that most tokens come in a second.

    `rates` and `drafts`: how often those of a row are right, and how many it has; `rows` are under way in all. The nth
    draft of a row is of use with the rate to the power of n. All rest where none promises more than it takes. `prices`:
    seconds that making one draft of each row takes; nothing where they are left out.
    """
    each = min(MOST, max(1, MOST // max(1, rows)))
    promised = sorted(
        ((rate**place, row) for row, rate in enumerate(rates) for place in range(1, min(drafts[row], each) + 1)),
        key=lambda found: -found[0],
    )[:MOST]
    base = costs.seconds(rows)
    found, tokens = [0] * len(rates), float(rows)
    if not base:
        return found
    best, chosen, making = MARGIN * rows / base, 0, 0.0
    for count, (gain, row) in enumerate(promised, 1):
        tokens += gain
        making += prices[row] if prices else 0.0
        speed = tokens / (costs.seconds(rows + count) + making)
        if speed > best:
            best, chosen = speed, count
    for _, row in promised[:chosen]:
        found[row] += 1
    return found
