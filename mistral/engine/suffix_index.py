"""Finds earlier occurrences of the last tokens of a text, and what followed them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LEAST = 2  # least tokens of a match
LONGEST = 32  # most tokens that are compared
TRIES = 8  # earlier positions that are compared, the latest first
BREAK = -1  # separates texts; not a token


class SuffixIndex:
    """Tokens, with the earlier positions of each pair of tokens. Adding a token takes less than a microsecond.

    It holds at most `limit` tokens; when they are reached, the older half is dropped.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.ids = limit, list[int]()
        self.forgotten = 0
        """How often the older half was dropped, which changes all positions."""
        self._last: dict[tuple[int, int], int] = {}  # by pair: the position after its last followed occurrence
        self._before = list[int]()  # by position: the previous one after the same pair; 0: none

    def extend(self, ids: Iterable[int]) -> None:
        """Add tokens at the end."""
        held, before, last = self.ids, self._before, self._last
        for token in ids:
            end, place = len(held), 0
            if end >= LEAST:
                pair = (held[-2], held[-1])
                place, last[pair] = last.get(pair, 0), end
            before.append(place)
            held.append(token)
            if end == self.limit:
                self._forget()
                held, before, last = self.ids, self._before, self._last

    def _forget(self) -> None:
        kept, self.ids, self._before, self._last = self.ids[-self.limit // 2 :], [], [], {}
        self.forgotten += 1
        self.extend(kept)

    def find(self, tail: Sequence[int]) -> tuple[int, int]:
        """The longest earlier match of the end of `tail`, the latest of several -> its length, and the position behind.

        (0, 0) if there is no match of `LEAST` tokens that is followed by a token.
        """
        if len(tail) < LEAST:
            return 0, 0
        held, most = self.ids, min(len(tail), LONGEST)
        place, best, found, tries = self._last.get((tail[-2], tail[-1]), 0), 0, 0, TRIES
        while place and tries and best < most:
            if best < LEAST or (best < place and held[place - 1 - best] == tail[-1 - best]):
                same = LEAST
                while same < most and same < place and held[place - 1 - same] == tail[-1 - same]:
                    same += 1
                if same > best:
                    best, found = same, place
            place, tries = self._before[place], tries - 1
        return best, found

    def after(self, place: int, most: int) -> list[int]:
        """At most `most` tokens from a position, to the end of its text; beyond the end of the index, they repeat."""
        found = self.ids[place : place + most]
        if BREAK in found:
            return found[: found.index(BREAK)]
        period = len(self.ids) - place
        while len(found) < most and period:
            found.append(found[len(found) - period])
        return found
