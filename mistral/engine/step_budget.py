"""How many prompt tokens fit into the time limit of a step, from measurements of earlier steps. Pure functions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

LEAST = 16  # least prompt tokens of a step, however little time there is
FIRST = 64  # prompt tokens of the first step, before any measurement
SHARE = 0.2  # least share of a step's time for prompts, however long decode takes
WHOLE = 16  # large numbers of tokens are multiples of this
KEPT, USED = 16, 3  # measurements that are kept; the newest ones whose median is the estimate


class StepBudget:
    """The time limit of a step, and the measured times of the last steps.

    The time of a step is modelled as that of its rows in decode, measured in steps without prompts, plus a time for
    each prompt token, which hardly depends on their number. Each is the median of the newest measurements of steps of
    about the same size, so that one slow step changes nothing, and slow changes, such as that with the length of the
    context, are followed.
    """

    def __init__(self, seconds: float) -> None:
        """`seconds`: the time limit of a step."""
        self.seconds = seconds
        self._answers = deque[tuple[int, float]](maxlen=KEPT)  # rows and seconds of steps without prompts
        self._prompts = deque[tuple[int, float]](maxlen=KEPT)  # prompt tokens, and seconds of each

    def add(self, rows: int, tokens: int, seconds: float) -> None:
        """Count a step with `rows` rows in decode and `tokens` prompt tokens, which took `seconds`."""
        if not tokens:
            self._answers += [(rows, seconds)] * bool(rows)
            return
        answers = self.answer_seconds(rows)
        self._prompts.append((tokens, max(0.0, seconds - answers) / tokens))
        if rows and seconds < answers:  # faster than estimated, even with a prompt
            self._answers.append((rows, seconds))

    def answer_seconds(self, rows: int) -> float:
        """Estimated seconds of a step with `rows` rows in decode; 0 before any measurement."""
        if not rows or not self._answers:
            return 0.0
        nearest = min(self._answers, key=lambda found: abs(found[0] - rows))[0]
        return _newest(seconds for count, seconds in self._answers if 3 * nearest <= 4 * count <= 5 * nearest)

    def token_seconds(self, tokens: int) -> float:
        """Estimated seconds of each of `tokens` prompt tokens; 0 before any measurement."""
        near = [seconds for count, seconds in self._prompts if tokens <= 2 * count and count <= 2 * tokens]
        return _newest(near if len(near) >= USED else [seconds for _, seconds in self._prompts])

    def left(self, rows: int) -> float:
        """Seconds of a step that `rows` rows in decode leave for prompts."""
        return max(self.seconds - self.answer_seconds(rows), SHARE * self.seconds)

    def tokens(self, rows: int, most: int, share: float = 1.0) -> int:
        """The prompt tokens, at most `most`, that fit into a share of the time that `rows` rows in decode leave.

        At least `LEAST`, however long they take, and at most twice as many as recent steps had.
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
    """The number of tokens that fit into `seconds` at `each` seconds: at least `LEAST`, at most `limit`."""
    if seconds <= 0:
        return LEAST
    if each * limit <= seconds:
        return limit
    found = int(seconds / each)
    return max(LEAST, found if found < 4 * WHOLE else found // WHOLE * WHOLE)
