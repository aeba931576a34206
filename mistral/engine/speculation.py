"""Drafts for the rows of a scheduler: who guesses, how many guesses a step has, and how many were right.

A step that has read every weight for one token computes a few more at little cost. So the tokens that probably follow
are computed with the last one, and the row's own sampler then says at each place which token comes: a draft is kept
while it is the same, and the first that differs is the row's own. Nothing but time depends on drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mistral.engine.active_row import ActiveRow
from mistral.engine.draft_depth import Acceptance, StepCosts, depths
from mistral.engine.drafter import Drafter, sound
from mistral.engine.speculation_mode import check_mode
from mistral.engine.suffix_drafter import PastAnswers, SuffixDrafter


@dataclass
class _Guess:
    """Of one row: its drafter, None where that has failed; and how good it is. `first`: a guess that was not used."""

    drafter: Drafter | None
    acceptance: Acceptance = field(default_factory=Acceptance)
    first: int | None = None


class Speculation:
    """What a scheduler asks for drafts. It belongs to one scheduler, or to several that come one after the other."""

    def __init__(self, new_drafter: Callable[[ActiveRow], Drafter] | None = None, always: bool = False) -> None:
        """`new_drafter`: of a row that begins; suffixes where it is left out. `always`: whatever it costs."""
        self._new, self._always = new_drafter or self._suffixes, always
        self._past, self._costs = PastAnswers(), StepCosts()
        self._rows: dict[int, _Guess] = {}

    @classmethod
    def of(cls, mode: str, backend: str) -> Speculation | None:
        """What an option asks for: "auto" has drafts on the native backend. Raises InputError for another word."""
        check_mode(mode)
        return cls() if mode == "suffix" or (mode == "auto" and backend == "native") else None

    def _suffixes(self, row: ActiveRow) -> Drafter:
        return SuffixDrafter(row.request.prompt, self._past.of(row.handle.space), row.request.prediction)

    def drafts(self, rows: Sequence[ActiveRow], vocab_size: int) -> list[list[int]]:
        """Drafts of the rows that a step moves on, each with a place for it; none where they would cost more."""
        guesses = [self._rows.get(row.index) or self._begin(row) for row in rows]
        found = [self._draft(row, guess, vocab_size) for row, guess in zip(rows, guesses, strict=True)]
        if not self._always:
            rates = [guess.acceptance.rate for guess in guesses]
            counts = depths(rates, [len(draft) for draft in found], len(rows), self._costs)
            for guess, draft, count in zip(guesses, found, counts, strict=True):
                guess.first = draft[0] if draft and not count else None
                del draft[count:]
        return found

    def _begin(self, row: ActiveRow) -> _Guess:
        try:
            guess = _Guess(self._new(row))
        except Exception:  # whatever it is: the row goes on without
            guess = _Guess(None)
        self._rows[row.index] = guess
        return guess

    def _draft(self, row: ActiveRow, guess: _Guess, vocab_size: int) -> list[int]:
        most = row.draft_room
        if guess.drafter is None or most < 1:
            return []
        try:
            return sound(guess.drafter.draft(row.answer, most), most, vocab_size)
        except Exception:  # whatever it is: the row goes on without
            guess.drafter = None
            return []

    def landed(self, row: ActiveRow, drafted: int, right: int, chosen: int | None) -> None:
        """So many drafts of a row were computed, and so many of them right; it has chosen a token first."""
        guess = self._rows.get(row.index)
        if guess is None:
            return
        if drafted:
            guess.acceptance.add(right, wrong=right < drafted)
        elif guess.first is not None:  # had it been used
            guess.acceptance.add(int(guess.first == chosen), wrong=guess.first != chosen)

    def measured(self, tokens: int, seconds: float) -> None:
        """A step that reads no prompt took so long for the tokens of its rows and their drafts."""
        self._costs.add(tokens, seconds)

    def ended(self, row: ActiveRow) -> None:
        """A row has ended; its answer may help others of its space."""
        self.forget(row.index)
        self._past.add(row.handle.space, row.answer)

    def forget(self, index: int) -> None:
        """A request has ended, whatever it did."""
        self._rows.pop(index, None)

    def clear(self) -> None:
        """No row is there any more; those that come begin with other numbers, perhaps the same."""
        self._rows.clear()
