"""Draft tokens that a grammar forces: names of properties, and punctuation between values."""

from __future__ import annotations

from collections.abc import Sequence

from mistral.engine.drafter import Drafter
from mistral.grammar.grammar import Grammar


class GrammarDrafter(Drafter):
    """See `Drafter`. The model may write a forced text with other tokens, so these are drafts, too."""

    expected = (0.95,)

    def __init__(self, grammar: Grammar) -> None:
        self._state, self._seen = grammar.begin(), 0

    def draft(self, answer: Sequence[int], most: int) -> Sequence[int]:
        """The tokens of the text that must follow."""
        for token in answer[self._seen :]:
            self._state.advance(token)
        self._seen = len(answer)
        return self._state.forced(most)
