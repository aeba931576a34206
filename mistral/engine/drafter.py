"""What guesses the next tokens of a row. A guess costs time where it is wrong, and never changes a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Drafter(Protocol):
    """Guesses what one row goes on with. It belongs to that row."""

    def draft(self, answer: Sequence[int], most: int) -> Sequence[int]:
        """At most `most` tokens that may follow the answer so far; it is only ever added to.

        What it raises ends the drafts of this row, and nothing else.
        """


def sound(draft: Sequence[int], most: int, vocab_size: int) -> list[int]:
    """The beginning of a draft that can be computed: at most `most` ids, all of them the model's."""
    found = list[int]()
    for token in draft[:most]:
        if not 0 <= token < vocab_size:
            break
        found.append(int(token))
    return found
