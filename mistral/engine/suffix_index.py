"""Finds where the last tokens of a text have come before, and what followed them there.

Two tokens or more that are the same say what may follow. One says so only if the same has followed it each time: in
texts that are copied that is right half of the time, and else one time in five.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LEAST = 2  # tokens that must be the same, if other tokens have followed the last one
LONGEST = 32  # tokens that are compared
TRIES = 8  # places that are compared, the last ones first
BREAK = -1  # stands between texts; no token


class SuffixIndex:
    """Tokens, and for each pair of them the places where it came. Adding a token takes about a microsecond.

    It holds at most `limit` tokens; when they are reached, the older half is dropped.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.ids = limit, list[int]()
        self.forgotten = 0
        """How often the older half went, and places became others."""
        self._last: dict[tuple[int, int], int] = {}  # by pair: the place after it, where something follows
        self._before = list[int]()  # by place: the one before it that follows the same pair; 0: none
        self._only: dict[int, int] = {}  # by token: the place after it; 0: different tokens have followed it

    def extend(self, ids: Iterable[int]) -> None:
        """Add tokens at the end."""
        held, before, last, only = self.ids, self._before, self._last, self._only
        for token in ids:
            end, place = len(held), 0
            if end:
                known = only.get(held[-1])
                only[held[-1]] = end if known is None or (known and held[known] == token) else 0
            if end >= LEAST:
                pair = (held[-2], held[-1])
                place, last[pair] = last.get(pair, 0), end
            before.append(place)
            held.append(token)
            if end == self.limit:
                self._forget()
                held, before, last, only = self.ids, self._before, self._last, self._only

    def _forget(self) -> None:
        kept, self.ids, self._before = self.ids[-self.limit // 2 :], [], []
        self._last, self._only = {}, {}
        self.forgotten += 1
        self.extend(kept)

    def find(self, tail: Sequence[int]) -> tuple[int, int]:
        """The longest earlier match of the end of `tail`, the latest of several -> its length, and the position behind.

        1 where one token did, and always with the same after it. 0 and 0 where that is not so, or nothing followed.
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
        if not found:
            found = self._only.get(tail[-1], 0)
            best = 1 if found else 0
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
