"""The drafters of one row, with their recent acceptance and their drafts for this step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from mistral.engine.acceptance import Acceptance, SharedAcceptance
from mistral.engine.drafter import Drafter, sound


class Source:
    """A drafter of a row; it is asked no more once it has failed. What it offers stands until the step has landed."""

    def __init__(self, drafter: Drafter, all_rows: Acceptance | None = None) -> None:
        """`all_rows`: what has come of the drafts of all rows, where the drafter is a model."""
        self.drafter = drafter
        self.acceptance = SharedAcceptance(all_rows) if all_rows else Acceptance(drafter.expected)
        self.failed = self.warm = False  # warm: it has drafted before
        self.offer = list[int]()
        self.agreed = 0

    def ask(self, answer: Sequence[int], most: int, vocab_size: int) -> list[int]:
        """At most `most` tokens, of which those count that the model has; none where the drafter fails."""
        self.offer = []
        try:
            self.offer = sound(self.drafter.draft(answer, most), most, vocab_size)
            self.agreed = self.drafter.agreed
        except Exception:  # whatever it is: the row goes on without
            self.fail()
        self.warm = True
        return self.offer

    def catch_up(self, answer: Sequence[int], seconds: float | None) -> bool:
        """See `Drafter.catch_up`; False where the drafter fails."""
        try:
            return self.drafter.catch_up(answer, seconds)
        except Exception:  # whatever it is: the row goes on without
            self.fail()
            return False

    def fail(self) -> None:
        """Ask no more."""
        self.failed, self.offer = True, []
        self.close()

    def close(self) -> None:
        """Let the drafter give back what it holds."""
        with suppress(Exception):
            self.drafter.close()

    def landed(self, drafts: Sequence[int], right: int, chosen: Sequence[int]) -> None:
        """A step had these drafts, so many were right, and tokens were chosen: what was offered was as good as that."""
        offer, self.offer = self.offer, []
        if drafts and list(drafts) == offer[: len(drafts)]:
            self.acceptance.add(right, right < len(drafts), self.agreed)
        elif offer and chosen:  # had it been used
            pairs = list(zip(offer, chosen, strict=False))
            same = next((place for place, (one, other) in enumerate(pairs) if one != other), len(pairs))
            self.acceptance.add(same, same < len(pairs), self.agreed)
        elif self.drafter.computes:
            self.acceptance.fade()


class RowGuesses:
    """The drafters of one row; for each step the one is used that promises most."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self.sources = list(sources)
        self.used: Source | None = None
        self.chances = list[float]()  # of the draft that there is, or that there may be where it takes a model's time
        self._free: Source | None = None  # the one that promises most of those that cost nothing
        self._free_chances = list[float]()

    def choose(self, answer: Sequence[int], most: int, vocab_size: int, price: float) -> None:
        """Ask the drafters that cost nothing, and choose one of all; `price`: that of a computed draft, in steps."""
        self.used, self.chances, best = None, [], 0.0
        self._free, self._free_chances, free = None, [], 0.0
        for source in self.sources:
            if source.failed or most < 1:
                continue
            computes = source.drafter.computes
            count = most if computes else len(source.ask(answer, most, vocab_size))
            chances = source.acceptance.chances(count, 0 if computes else source.agreed)
            gain = promised(chances, price if computes else 0.0)
            if gain > best:
                self.used, self.chances, best = source, chances, gain
            if gain > free and not computes:
                self._free, self._free_chances, free = source, chances, gain

    def rest(self) -> None:
        """Nothing is asked for the next step, and nothing offered."""
        self.used, self.chances = None, []
        for source in self.sources:
            source.offer = []

    def fall_back(self) -> None:
        """The one that was chosen cannot guess yet."""
        self.used, self.chances = self._free, self._free_chances

    def landed(self, drafts: Sequence[int], right: int, chosen: Sequence[int]) -> None:
        """See `Source.landed`."""
        for source in self.sources:
            source.landed(drafts, right, chosen)

    def fail(self) -> None:
        """The row goes on without drafts."""
        for source in self.sources:
            source.fail()

    def close(self) -> None:
        """The row has ended."""
        for source in self.sources:
            source.close()


def promised(chances: Sequence[float], price: float) -> float:
    """Tokens that a draft is expected to bring, less what it costs, at its best length; `chances`: of each of them."""
    gain = best = 0.0
    for chance in chances:
        gain += chance - price
        if chance <= price:
            break
        best = max(best, gain)
    return best
