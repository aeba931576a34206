"""What guesses the next tokens of a row. A guess costs time where it is wrong, and never changes a token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence


class Drafter(ABC):
    """Guesses what one row goes on with. It belongs to that row.

    What its methods raise ends the drafts of this row, and nothing else.
    """

    computes = False
    """Whether each token of a draft takes the time of a model: then no more are asked for than are worth it."""
    expected: Sequence[float] = (0.6,)
    """The share of guesses that is thought to be right before any was tried: one, or as `Acceptance` has them."""
    agreed = 0
    """Tokens that agreed with where the last draft comes from; how likely it is right may depend on that."""

    def catch_up(self, answer: Sequence[int], seconds: float | None) -> bool:
        """Read what is needed to go on after this answer, for about so many seconds (None: any) -> whether it is read.

        Until then there are no drafts of this one.
        """
        return True

    @abstractmethod
    def draft(self, answer: Sequence[int], most: int) -> Sequence[int]:
        """At most `most` tokens that may follow the answer so far; it is only ever added to."""

    def close(self) -> None:
        """The row has ended: give back what is held for it. May be called again."""
        return


def sound(draft: Sequence[int], most: int, vocab_size: int) -> list[int]:
    """The beginning of a draft that can be computed: at most `most` ids, all of them the model's."""
    found = list[int]()
    for token in draft[:most]:
        if not 0 <= token < vocab_size:
            break
        found.append(int(token))
    return found
