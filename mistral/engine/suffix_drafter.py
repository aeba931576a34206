"""Draft tokens from earlier occurrences of a row's last tokens, in its prompt, its answer, or earlier answers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from mistral.engine.drafter import Drafter
from mistral.engine.suffix_index import BREAK, LEAST, LONGEST, SuffixIndex
from mistral.engine.text_follower import TextFollower

OWN = 1 << 15  # tokens of a prompt and its answer that are looked through
PAST = 1 << 14  # tokens of past answers, of one space
SPACES = 16  # whose past answers are held, those that were used last
SURE = 8  # tokens that agree, after which nothing better is looked for


class PastAnswers:
    """Earlier answers by space, from which drafts for later answers of the same space are taken."""

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
        if len(answer) > LEAST:
            self.of(space).extend([BREAK, *answer])


class SuffixDrafter(Drafter):
    """See `Drafter`. `prediction`: what the answer is likely to be, or to have parts of."""

    expected = (0.2, 0.35, 0.5, 0.65, 0.75, 0.85, 0.92, 0.95)

    def __init__(self, prompt: Sequence[int], past: SuffixIndex, prediction: Sequence[int] = ()) -> None:
        self._texts: list[int] | None = [*prediction, *([BREAK] if prediction else ()), *prompt]
        self._prompt, self._past = prompt, past
        self._own, self._seen = SuffixIndex(OWN), 0
        self._follower = TextFollower()
        self._predicted = len(prediction)

    def draft(self, answer: Sequence[int], most: int) -> Sequence[int]:
        """What followed the longest run of last tokens; of a prediction its beginning, at first."""
        if self._texts is not None:
            self._own.extend(self._texts[-OWN:])
            if self._predicted and len(self._texts) <= OWN:
                self._follower.go(self._own, 0, SURE)
            self._texts = None
        for token in answer[self._seen :]:
            self._follower.see(token)
            self._own.extend((token,))
        self._seen = len(answer)
        if self._follower.agreed < SURE:
            self._look(answer)
        self.agreed = self._follower.agreed
        return self._follower.draft(most)

    def _look(self, answer: Sequence[int]) -> None:
        """Follow another text, where more of the last tokens agree with it."""
        tail = answer[-LONGEST:]
        if len(tail) < LONGEST:
            tail = [*self._prompt[len(tail) - LONGEST :], *tail]
        for index in (self._own, self._past):
            same, place = index.find(tail)
            if same > self._follower.agreed:
                self._follower.go(index, place, same)
