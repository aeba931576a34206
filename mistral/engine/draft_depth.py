"""The number of draft tokens of a step, from the cost of steps and the acceptance of drafts. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mistral.engine.step_costs import LEAST, StepCosts

MARGIN, ROW_MARGIN, MOST_MARGIN = (
    1.03,
    0.005,
    1.15,
)  # drafts must promise so much, lest noise decide: with one row, more
# for each further one, since all of them have to be asked and the best of many promises is too good, and at most
MOST = 64  # drafts of a step
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80)  # tokens of a step; time goes up stairs between
TRY = 8  # steps from one that was tried to the next
PERIOD = 50  # steps after which a size that seems as good as the best is tried
DEARER = 10.0  # times as much later, if it seems to lose all
WELL_KNOWN = 4  # comparisons: after more of them it is later, after fewer sooner
DOUBTED = 0.15  # of that time, where the last trial was not as expected
LOST_AT_MOST = 0.03  # by a step without drafts, as far as that is tried: all others are judged by it
WORTH = 1.1  # times as fast must a size be then, that is tried


@dataclass(frozen=True)
class Promise:
    """What steps with some drafts more each promise, by the number of drafts: none first."""

    rows: int
    tokens: Sequence[float]
    makings: Sequence[float]
    """What making the drafts takes, in the unit of the costs."""

    def speed(self, count: int, costs: StepCosts) -> float:
        """Tokens in the unit of the costs."""
        return self.tokens[count] / (costs.share(self.rows + count) + self.makings[count])

    def best_speed(self, count: int, costs: StepCosts) -> float:
        """What the speed may be if so many tokens take no more than fewer do."""
        least = max(costs.share(self.rows) * (1 + LEAST * count), costs.least(self.rows + count))
        return self.tokens[count] / (least + self.makings[count])


class DraftDepth:
    """Chooses how many of its drafts each row has, so that most tokens come in a second.

    What seems worse is tried now and then, the more rarely the worse it seems: an estimate may be wrong, or old.
    """

    def __init__(self) -> None:
        self._tried = 0  # the step of the last trial

    @staticmethod
    def most(rows: int) -> int:
        """The most drafts that each of so many rows may have."""
        return min(MOST, max(1, MOST // max(1, rows)))

    def choose(
        self, chances: Sequence[Sequence[float]], rows: int, costs: StepCosts, prices: Sequence[float] = ()
    ) -> list[int]:
        """How many of its drafts each row should have.

        `chances`: for each draft of a row, how likely it and those before it are right; `rows` are under way in all.
        All rest where none promises more than it takes. `prices`: what making one draft of each row takes, as a share
        of a step without drafts; nothing where they are left out.
        """
        each, base = self.most(rows), costs.share(rows)
        found = [0] * len(chances)
        if not base:
            return found
        promised = sorted(
            ((chance, row) for row, some in enumerate(chances) for chance in some[:each]), key=lambda one: -one[0]
        )[:MOST]
        if not promised:
            return found
        tokens, makings = [float(rows)], [0.0]
        for gain, row in promised:
            tokens.append(tokens[-1] + gain)
            makings.append(makings[-1] + (prices[row] * base if prices else 0.0))
        for _, row in promised[: self._count(Promise(rows, tokens, makings), costs)]:
            found[row] += 1
        return found

    def _count(self, promise: Promise, costs: StepCosts) -> int:
        """The number of drafts that is best, or that is to be tried."""
        rows, most = promise.rows, len(promise.tokens) - 1
        counts = [size - rows for size in SIZES if 0 < size - rows < most]
        counts = [count for count in (*counts, most) if rows + count <= costs.reach(rows)] or [1]
        speeds = {count: promise.speed(count, costs) for count in (0, *counts)}
        chosen = max(speeds, key=lambda count: speeds[count])
        if speeds[chosen] <= min(MOST_MARGIN, MARGIN + ROW_MARGIN * (rows - 1)) * speeds[0]:
            chosen = 0
        if chosen and costs.latest == rows + chosen and not costs.is_sure(rows + chosen):
            return 0  # in turns with one without drafts
        if costs.steps < self._tried + TRY:
            return chosen
        for count, speed in speeds.items():
            loss, known = max(0.0, 1 - speed / speeds[chosen]), costs.compared(rows + count)
            if not count:
                loss, known = min(loss, LOST_AT_MOST), min(WELL_KNOWN, costs.compared(rows + chosen))
            period = PERIOD * (1 + DEARER * loss) * (0.15 + known / WELL_KNOWN)
            period *= DOUBTED if rows + count in costs.doubted else 1.0
            may_be = not count or promise.best_speed(count, costs) > WORTH * speeds[chosen]
            if count != chosen and may_be and costs.steps - costs.last.get(rows + count, 0) > period:
                self._tried = costs.steps
                return count
        return chosen
