"""The position in a text that an answer follows, and where the answer may resume the text after an edit."""

from __future__ import annotations

from collections.abc import Sequence

from mistral.engine.suffix_index import SuffixIndex

FOLLOWED = 6  # matching tokens after which a text is followed also beyond an edit
CHANGED = 6  # most tokens of an edit, after which the text is given up
AHEAD = 64  # most tokens of the text that an edit may delete
RESUMED = 2  # tokens that count as matching where the text is resumed


class TextFollower:
    """Follows one text at a time, token by token.

    Where the answer differs, tokens may have been inserted (the text resumes at the same position), replaced (it
    resumes after as many tokens), or deleted (it resumes after the answer's token). The most frequent recent kind is
    assumed.
    """

    def __init__(self) -> None:
        self._index: SuffixIndex | None = None
        self._place = self._forgotten = self._changed = 0
        self._ways = [1.0, 0.9, 1.1]  # recent frequency of each kind: inserted, replaced, deleted
        self._last = 0  # the answer's last token, within an edit
        self.agreed = 0
        """The number of matching tokens; 0 within an edit, or if no text is followed."""

    def go(self, index: SuffixIndex, place: int, agreed: int) -> None:
        """Follow the text of an index from a position on, after `agreed` matching tokens."""
        self._index, self._place, self.agreed = index, place, agreed
        self._forgotten, self._changed = index.forgotten, 0

    def see(self, token: int) -> None:
        """Process the answer's next token, before it is added to any index."""
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
        """Process a token within an edit: the text may resume."""
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
        """The positions where the text may resume after inserted, replaced or deleted tokens; None: nowhere."""
        place, ids = self._place, index.ids
        try:
            left_out = ids.index(self._last, place + 1, place + AHEAD) + 1
        except ValueError:
            left_out = None
        if left_out == len(ids):  # it is the answer's own end
            left_out = None
        return place, place + self._changed, left_out

    def draft(self, most: int) -> list[int]:
        """At most `most` tokens that are expected next."""
        index = self._index
        if index is None or index.forgotten != self._forgotten:
            return []
        place = self._place
        if self._changed:
            places = self._places(index)
            ways = [each if found is not None else 0.0 for each, found in zip(self._ways, places, strict=True)]
            place = places[max(range(len(ways)), key=lambda way: ways[way])] or 0
        return index.after(place, most) if place < len(index.ids) else []
