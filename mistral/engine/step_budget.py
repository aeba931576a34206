"""How many prompt tokens fit into the time of a step, as measured by the steps before. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

LEAST = 16  # prompt tokens of a step, however little time there is
FIRST = 64  # of the first step that reads, of which nothing is known
SHARE = 0.2  # of the time of a step that prompts have, however long the answers take
WHOLE = 16  # large numbers of tokens are multiples of this
KEPT, USED = 16, 3  # measurements that are kept, and the newest of them that an estimate is the median of


class StepBudget:
    """The time that a step may take, and what the last steps took.

    A step's time is taken to be that of its rows which are being answered, as steps without prompts had it, and for
    each prompt token a time that hardly depends on how many there are. Each is the median of the newest measurements of
    steps of about the same size, so that one slow step changes nothing; and it follows what changes slowly, as with the
    length of what a prompt's tokens attend to.
    """

    def __init__(self, seconds: float) -> None:
        """`seconds` of a step, at most."""
        self.seconds = seconds
        self._answers = deque[tuple[int, float]](maxlen=KEPT)  # rows, seconds: of steps that read nothing
        self._prompts = deque[tuple[int, float]](maxlen=KEPT)  # prompt tokens, seconds of each

    def add(self, rows: int, tokens: int, seconds: float) -> None:
        """A step took so long for one token of each of `rows`, and `tokens` of prompts."""
        if not tokens:
            self._answers += [(rows, seconds)] * bool(rows)
            return
        answers = self.answer_seconds(rows)
        self._prompts.append((tokens, max(0.0, seconds - answers) / tokens))
        if rows and seconds < answers:  # less than was thought, and that with a prompt beside
            self._answers.append((rows, seconds))

    def answer_seconds(self, rows: int) -> float:
        """What a step of so many rows that are being answered will take; 0 while nothing is known."""
        if not rows or not self._answers:
            return 0.0
        nearest = min(self._answers, key=lambda found: abs(found[0] - rows))[0]
        return _newest(seconds for count, seconds in self._answers if 3 * nearest <= 4 * count <= 5 * nearest)

    def token_seconds(self, tokens: int) -> float:
        """What each of so many prompt tokens will take; 0 while nothing is known."""
        near = [seconds for count, seconds in self._prompts if tokens <= 2 * count and count <= 2 * tokens]
        return _newest(near if len(near) >= USED else [seconds for _, seconds in self._prompts])

    def left(self, rows: int) -> float:
        """Seconds that answers of so many rows leave of a step."""
        return max(self.seconds - self.answer_seconds(rows), SHARE * self.seconds)

    def tokens(self, rows: int, most: int, share: float = 1.0) -> int:
        """Prompt tokens that a step beside so many rows may take in a share of what these leave, and `most` at most.

        At least `LEAST`, however long that takes, or what fits into a share of the time where answers take it all; and
        at most twice what steps have taken before.
        """
        if not self._prompts:
            return min(FIRST, most)
        left = share * self.left(rows)
        limit = min(most, 2 * max(FIRST, *(count for count, _ in list(self._prompts)[-USED:])))
        found = _fitting(left, self.token_seconds(limit), limit)
        found = _fitting(left, self.token_seconds(found), limit)
        return min(most, max(LEAST, found))


def _newest(measured: Iterable[float]) -> float:
    newest = list(measured)[-USED:]
    return median(newest) if newest else 0.0


def _fitting(seconds: float, each: float, limit: int) -> int:
    """How many tokens fit into a time: `LEAST` at least, and `limit` at most."""
    if seconds <= 0:
        return LEAST
    if each * limit <= seconds:
        return limit
    found = int(seconds / each)
    return max(LEAST, found if found < 4 * WHOLE else found // WHOLE * WHOLE)
