"""Guesses that a row goes on as its own prompt and answer did, or an answer before, after the same tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from mistral.engine.drafter import Drafter
from mistral.engine.suffix_index import BREAK, ORDERS, SuffixIndex

OWN = 1 << 15  # tokens of a prompt and its answer that are looked through
PAST = 1 << 14  # tokens of past answers, of one space
SPACES = 16  # whose past answers are held, those that were used last


class PastAnswers:
    """The answers of each space, so that later ones of the same space may be guessed from them."""

    def __init__(self) -> None:
        self._spaces = OrderedDict[str, SuffixIndex]()

    def of(self, space: str) -> SuffixIndex:
        """The answers of a space."""
        found = self._spaces.pop(space, None) or SuffixIndex(PAST)
        self._spaces[space] = found
        if len(self._spaces) > SPACES:
            self._spaces.popitem(last=False)
        return found

    def add(self, space: str, answer: Sequence[int]) -> None:
        """Take note of an answer that has ended."""
        if len(answer) > ORDERS[-1]:
            self.of(space).extend([BREAK, *answer])


class SuffixDrafter(Drafter):
    """See `Drafter`. `prediction`: what the answer is likely to be, or to have parts of."""

    def __init__(self, prompt: Sequence[int], past: SuffixIndex, prediction: Sequence[int] = ()) -> None:
        self._texts: list[int] | None = [*prediction, *([BREAK] if prediction else ()), *prompt]
        self._prompt, self._prediction, self._past = prompt, prediction, past
        self._own, self._seen = SuffixIndex(OWN), 0
        self._as_predicted = bool(prediction)

    def draft(self, answer: Sequence[int], most: int) -> Sequence[int]:
        """What followed the longest run of last tokens; while the answer is as it was predicted, the rest of that."""
        if self._texts is not None:
            self._own.extend(self._texts[-OWN:])
            self._texts = None
        new = answer[self._seen :]
        if self._as_predicted:
            self._as_predicted = list(new) == list(self._prediction[self._seen : len(answer)])
        self._own.extend(new)
        self._seen = len(answer)
        if self._as_predicted and len(answer) < len(self._prediction):
            return self._prediction[len(answer) : len(answer) + most]
        tail = answer[-ORDERS[0] :]
        if len(tail) < ORDERS[0]:
            tail = [*self._prompt[len(tail) - ORDERS[0] :], *tail]
        same, found = self._own.find(tail, most)
        if same < ORDERS[0]:
            others, elsewhere = self._past.find(tail, most)
            if others > same:
                return elsewhere
        return found
