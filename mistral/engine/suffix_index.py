"""Finds where the last tokens of a text have come before, and what followed them there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ORDERS = (8, 3)  # tokens that must be the same, the longer ones first
BREAK = -1  # stands between texts; no token


class SuffixIndex:
    """Tokens, and for each run of `ORDERS` of them where it came last. Adding a token takes about a microsecond.

    At most `limit` tokens are held; the older half goes where there would be more.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.ids = limit, list[int]()
        self._ends: dict[int, int] = {}  # by the hash of a run: the place after it, where something follows

    def extend(self, ids: Iterable[int]) -> None:
        """Add tokens at the end."""
        for token in ids:
            end = len(self.ids)
            for order in ORDERS:
                if end >= order:
                    self._ends[hash(tuple(self.ids[end - order :]))] = end
            self.ids.append(token)
            if len(self.ids) > self.limit:
                self._forget()

    def _forget(self) -> None:
        kept, self.ids, self._ends = self.ids[-self.limit // 2 :], [], {}
        self.extend(kept)

    def find(self, tail: Sequence[int], most: int) -> tuple[int, list[int]]:
        """What followed the last tokens of `tail` where they came last -> how many of these are the same, and that.

        Where it ends with the index itself, it goes on as what repeats itself does.
        """
        for order in ORDERS:
            run = tuple(tail[-order:])
            end = self._ends.get(hash(run), 0) if len(run) == order else 0
            if end and tuple(self.ids[end - order : end]) == run:
                return order, self._after(end, most)
        return 0, []

    def _after(self, end: int, most: int) -> list[int]:
        found = self.ids[end : end + most]
        if BREAK in found:
            return found[: found.index(BREAK)]
        period = len(self.ids) - end
        while len(found) < most:
            found.append(found[len(found) - period])
        return found
