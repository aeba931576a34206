"""A place in a text that an answer follows, and where that may go on after a change."""

from __future__ import annotations

from collections.abc import Sequence

from mistral.engine.suffix_index import SuffixIndex

FOLLOWED = 6  # tokens that agreed before a text counts as followed, and is taken up again after a change
CHANGED = 6  # tokens of a change, after which the text is given up
AHEAD = 64  # tokens of the text among which what is left out may end
RESUMED = 2  # tokens that count as agreeing where a text goes on after a change


class TextFollower:
    """Follows one text at a time, token by token.

    Where the answer differs, tokens may have been put in, so that the text goes on at the same place; or put in the
    place of others; or left out up to where the answer's token comes. Which of these has been so lately is guessed.
    """

    def __init__(self) -> None:
        self._index: SuffixIndex | None = None
        self._place = self._forgotten = self._changed = 0
        self._ways = [1.0, 0.9, 1.1]  # how often each has been so: put in, replaced, left out
        self._last = 0  # the answer's last token, within a change
        self.agreed = 0
        """Tokens that have agreed; 0 within a change, or where nothing is followed."""

    def go(self, index: SuffixIndex, place: int, agreed: int) -> None:
        """Follow the text of an index from a place on."""
        self._index, self._place, self.agreed = index, place, agreed
        self._forgotten, self._changed = index.forgotten, 0

    def see(self, token: int) -> None:
        """The answer's next token, before it is added to any index."""
        index = self._index
        if index is None or index.forgotten != self._forgotten:
            self._index, self.agreed = None, 0
        elif self._changed:
            self._within(index, token)
        elif self._place < len(index.ids) and index.ids[self._place] == token:
            self._place, self.agreed = self._place + 1, self.agreed + 1
        elif self.agreed >= FOLLOWED:
            self._changed, self._last, self.agreed = 1, token, 0
        else:
            self._index, self.agreed = None, 0

    def _within(self, index: SuffixIndex, token: int) -> None:
        """A token after some that differed: perhaps the text goes on."""
        places = self._places(index)
        right = [place is not None and place < len(index.ids) and index.ids[place] == token for place in places]
        if any(right):
            best = max(range(len(places)), key=lambda way: right[way] * self._ways[way])
            self._ways = [0.8 * each + same for each, same in zip(self._ways, right, strict=True)]
            self._place, self._changed, self.agreed = (places[best] or 0) + 1, 0, RESUMED + 1
            return
        self._changed, self._last = self._changed + 1, token
        if self._changed > CHANGED:
            self._index = None

    def _places(self, index: SuffixIndex) -> Sequence[int | None]:
        """Where the text may go on: as if tokens had been put in, replaced, or left out."""
        place, ids = self._place, index.ids
        try:
            left_out = ids.index(self._last, place + 1, place + AHEAD) + 1
        except ValueError:
            left_out = None
        if left_out == len(ids):  # it is the answer's own end
            left_out = None
        return place, place + self._changed, left_out

    def draft(self, most: int) -> list[int]:
        """What follows."""
        index = self._index
        if index is None or index.forgotten != self._forgotten:
            return []
        place = self._place
        if self._changed:
            places = self._places(index)
            ways = [each if found is not None else 0.0 for each, found in zip(self._ways, places, strict=True)]
            place = places[max(range(len(ways)), key=lambda way: ways[way])] or 0
        return index.after(place, most) if place < len(index.ids) else []
