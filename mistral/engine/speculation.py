"""Speculative decoding for the rows of a scheduler: which drafter a row uses, and how many draft tokens a step has.

A step that has read every weight for one token computes a few more at little cost. So draft tokens are computed with
the last token, and the row's own sampler then samples at each position: a draft token is accepted if it is the sampled
one; the first that differs is replaced by it. Drafts change nothing but time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from statistics import median

from mistral.engine.acceptance import Acceptance, SharedAcceptance
from mistral.engine.active_row import ActiveRow
from mistral.engine.draft_depth import MOST, DraftDepth
from mistral.engine.drafter import Drafter
from mistral.engine.grammar_drafter import GrammarDrafter
from mistral.engine.row_guesses import RowGuesses, Source
from mistral.engine.speculation_mode import check_mode
from mistral.engine.step_costs import StepCosts
from mistral.engine.suffix_drafter import PastAnswers, SuffixDrafter
from mistral.engine.work import Outcome, Work

NewDrafter = Callable[[ActiveRow], Drafter | None]  # None: it has nothing to say of that row
PRICES = 9  # measurements of what a computed draft takes, of which the median counts
RESTED, LEAST_RESTED = 32, 4  # steps of one row without any draft, after which drafters are asked less often; fewer
# with more rows, which are asked as often in fewer steps, but at least so many
ASKED = 4  # in every so many of them
FIRST_PRICE = 0.3  # of a step's time, for each token, while nothing is known


class Speculation:
    """What a scheduler asks for drafts. It belongs to one scheduler, or to several that come one after the other."""

    behind = False
    """Whether, at the last step, a model that is to guess had not read all of its row."""

    def __init__(
        self,
        new: Iterable[NewDrafter] | None = None,
        always: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`new`: what makes the drafters of a row that begins, those that are left out and grammars' among them.

        Where it is left out these are `own`. `always`: whatever drafts cost. `clock`: seconds.
        """
        self._new, self._always, self._clock = self.own if new is None else list(new), always, clock
        self._past, self._costs, self._depth = PastAnswers(), StepCosts(), DraftDepth()
        self._rows: dict[int, RowGuesses] = {}
        self._models: dict[int, Acceptance] = {}  # of all rows, by the place of what makes the drafter
        self._prices = deque[float](maxlen=PRICES)
        self._met = set[int]()  # numbers of tokens that a step has had
        self._rested = 0  # steps without any draft, one after the other
        self._ended: float | None = None  # when the step before ended, if it was measured
        self._spent = 0.0  # seconds that drafts of the next step have taken
        self._reading = 0.0  # seconds that models have read for, since `read_seconds` was asked

    @classmethod
    def of(cls, mode: str, backend: str, computed: NewDrafter | None = None) -> Speculation | None:
        """What an option asks for: "auto" has drafts on the native backend, or where a model computes them.

        Raises InputError for another word.
        """
        check_mode(mode)
        if mode == "off" or (mode == "auto" and backend != "native" and computed is None):
            return None
        found = cls()
        if computed:
            found._new = [*found.own, computed]
        return found

    @property
    def own(self) -> list[NewDrafter]:
        """What makes the drafters that need no other model."""
        return [forced, self._suffixes]

    def _suffixes(self, row: ActiveRow) -> Drafter:
        return SuffixDrafter(row.request.prompt, self._past.of(row.handle.space), row.request.prediction)

    def drafts(self, rows: Sequence[ActiveRow], vocab_size: int, seconds: float | None = None) -> list[list[int]]:
        """Drafts of the rows that a step moves on, each with a place for it; none where they would cost more.

        `seconds`: the time that models which guess may take to read what they have not; None: any.
        """
        guesses = [self._rows.get(row.index) or self._begin(row) for row in rows]
        self._spent, self.behind = 0.0, False
        if self._rested >= max(LEAST_RESTED, RESTED // len(rows)) and self._rested % ASKED:
            self._rested += 1
            for guess in guesses:
                guess.rest()
            return [[] for _ in rows]
        price = 0.0 if self._always else self._price(len(rows))
        most = MOST if self._always else self._depth.most(len(rows))
        for row, guess in zip(rows, guesses, strict=True):
            guess.choose(row.answer, min(most, row.draft_room), vocab_size, price)
        counts = self._counts(guesses, price)
        self.behind = self._read(rows, guesses, counts, seconds)
        if self.behind:
            counts = self._counts(guesses, price)
        self._rested = 0 if self._always or any(counts) else self._rested + 1
        found = zip(rows, guesses, counts, strict=True)
        return [self._drafted(row, guess, count, vocab_size) for row, guess, count in found]

    def _counts(self, guesses: Sequence[RowGuesses], price: float) -> list[int]:
        """How many drafts each row should have."""
        if self._always:
            return [len(guess.chances) for guess in guesses]
        prices = [price if guess.used and guess.used.drafter.computes else 0.0 for guess in guesses]
        return self._depth.choose([guess.chances for guess in guesses], len(guesses), self._costs, prices)

    def _read(
        self, rows: Sequence[ActiveRow], guesses: Sequence[RowGuesses], counts: Sequence[int], seconds: float | None
    ) -> bool:
        """Let models that are to guess read what they have not -> whether one is not through; then others guess."""
        behind = False
        for row, guess, count in zip(rows, guesses, counts, strict=True):
            source = guess.used
            if source is None or not count or not source.drafter.computes:
                continue
            begun = self._clock()
            ready = source.catch_up(row.answer, None if seconds is None else seconds - self._spent)
            taken = self._clock() - begun
            self._spent, self._reading = self._spent + taken, self._reading + taken
            if not ready:
                guess.fall_back()
                behind = True
        return behind

    def _drafted(self, row: ActiveRow, guess: RowGuesses, count: int, vocab_size: int) -> list[int]:
        """So many drafts of a row, computed where that has still to be done."""
        source = guess.used
        if source is None or not count:
            return []
        if source.drafter.computes:
            begun, warm = self._clock(), source.warm
            source.ask(row.answer, count, vocab_size)
            seconds = self._clock() - begun
            self._spent += seconds
            if warm and source.offer:
                self._prices.append(seconds / len(source.offer))
        return source.offer[:count]

    def _price(self, rows: int) -> float:
        """What a token of a computed draft takes, as a share of a step of so many rows."""
        seconds = self._costs.seconds(rows) if self._prices else 0.0
        return median(self._prices) / seconds if seconds else FIRST_PRICE

    def _begin(self, row: ActiveRow) -> RowGuesses:
        sources = list[Source]()
        for number, new in enumerate(self._new):
            with suppress(Exception):  # whatever it is: the row goes on without
                drafter = new(row)
                if drafter and drafter.computes:
                    shared = self._models.setdefault(number, SharedAcceptance.of_all(drafter.expected))
                    sources.append(Source(drafter, shared))
                elif drafter:
                    sources.append(Source(drafter))
        self._rows[row.index] = guesses = RowGuesses(sources)
        return guesses

    def landed(self, row: ActiveRow, work: Work, outcome: Outcome) -> None:
        """What came of a row's step."""
        guess = self._rows.get(row.index)
        if guess is None:
            return
        if outcome.again:
            guess.fail()
            return
        chosen = [each.id for each in (outcome, *outcome.more) if each.id is not None]
        guess.landed(work.drafts, len(outcome.more), chosen)

    def measured(self, tokens: int, seconds: float) -> None:
        """A step that reads no prompt took so long for the tokens of its rows and their drafts, with making these."""
        now = self._clock()
        follows, self._ended = self._ended is not None and now - seconds - self._ended < seconds, None
        if tokens in self._met:
            self._costs.add(tokens, max(0.0, seconds - self._spent), follows)
            self._ended = now
        self._met.add(tokens)  # the first step of so many tokens makes room for them, which takes a while of its own

    def read_seconds(self) -> float:
        """The time since this was asked last in which models that guess have read what they had not."""
        seconds, self._reading = self._reading, 0.0
        return seconds

    def ended(self, row: ActiveRow) -> None:
        """A row has ended; its answer may help others of its space."""
        self.forget(row.index)
        self._past.add(row.handle.space, row.answer)

    def forget(self, index: int) -> None:
        """A request has ended, whatever it did."""
        guess = self._rows.pop(index, None)
        if guess:
            guess.close()

    def clear(self) -> None:
        """No row is there any more; those that come begin with other numbers, perhaps the same."""
        for index in list(self._rows):
            self.forget(index)


def forced(row: ActiveRow) -> Drafter | None:
    """The drafter of a row's grammar, where it has one."""
    grammar = row.request.constraint
    return GrammarDrafter(grammar) if grammar and grammar.matcher else None
