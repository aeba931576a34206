"""The interface of drafters, which propose the next tokens of a row. A wrong draft costs time and changes no token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence


class Drafter(ABC):
    """Proposes the next tokens of one row (draft tokens).

    An exception that it raises ends the drafts of this row, and nothing else.
    """

    computes = False
    """Whether a model computes each draft token: then only as many are asked for as are worth their time."""
    expected: Sequence[float] = (0.6,)
    """The assumed share of accepted draft tokens before any was tried: one, or one for each class of `Acceptance`."""
    agreed = 0
    """The number of tokens before the last draft that matched its source; the acceptance may depend on it."""

    def catch_up(self, answer: Sequence[int], seconds: float | None) -> bool:
        """Read what is needed to draft after this answer, for about `seconds` (None: no limit) -> whether all is read.

        Until then this drafter has no drafts.
        """
        return True

    @abstractmethod
    def draft(self, answer: Sequence[int], most: int) -> Sequence[int]:
        """At most `most` tokens that may follow the answer so far. Between calls the answer only grows."""

    def close(self) -> None:
        """Release what is held for the row, which has ended. May be called again."""
        return


def sound(draft: Sequence[int], most: int, vocab_size: int) -> list[int]:
    """The valid part of a draft: at most `most` ids, up to the first that is not in the vocabulary."""
    found = list[int]()
    for token in draft[:most]:
        if not 0 <= token < vocab_size:
            break
        found.append(int(token))
    return found
