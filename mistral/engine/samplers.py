"""The samplers of the rows of an engine: logits in, outcomes of work out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mistral.engine.sampling import Choice, SamplingRow, Wants, choose, likeliest, target_logprobs
from mistral.engine.work import Outcome, Sampling, Work
from mistral.errors import InputError
from mistral.grammar.grammar import Grammar
from mistral.grammar.token_table import TokenTable

NOTHING = Outcome()


class Samplers:
    """The sampling state of each row that joined with a `Sampling`."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[SamplingRow, Sampling]] = {}
        self._table: TokenTable | None = None

    def join(self, row: int, sampling: Sampling) -> None:
        """Add a row, or start another answer in a row."""
        grammar = None if sampling.constraint is None else self._known(sampling.constraint).begin()
        self._rows[row] = (
            SamplingRow(
                sampling.settings, sampling.prompt, sampling.excluded, sampling.end_ids, sampling.min_tokens, grammar
            ),
            sampling,
        )

    def learn(self, table: TokenTable) -> None:
        """Set the vocabulary of grammars that come from another process."""
        self._table = table

    def _known(self, grammar: Grammar) -> Grammar:
        """The grammar, compiled in this process."""
        return grammar if grammar.matcher or self._table is None else grammar.over(self._table)

    def leave(self, row: int) -> None:
        """Forget a row, if it is known."""
        self._rows.pop(row, None)

    def choose(self, work: Sequence[Work], logits: Sequence[NDArray[np.float32]]) -> list[Outcome]:
        """The outcome of each piece of work, from the logits (n, V) of its tokens.

        Logits that are not finite are an error of their own piece of work and affect no other.
        """
        return [self._outcome(piece, found) for piece, found in zip(work, logits, strict=True)]

    def _outcome(self, piece: Work, logits: NDArray[np.float32]) -> Outcome:
        """What comes of one piece of work, given the logits (n, V) of its tokens."""
        found = scored(piece.targets, logits, self._top(piece))
        if found.error or not piece.sample:
            return found
        if _spoilt(piece, logits):
            return Outcome(again=True)
        first, *more = self._chosen(piece, logits[len(logits) - 1 - len(piece.drafts) :])
        if found.logprobs and not first.error:
            first = replace(first, logprobs=found.logprobs, tops=found.tops)
        return replace(first, more=tuple(more)) if more else first

    def _chosen(self, piece: Work, logits: NDArray[np.float32]) -> list[Outcome]:
        """The token after the last one, then those after drafts as long as these are right; logits (drafts + 1, V).

        A token is drawn where all before it are the row's own, and so are what it is drawn by: penalties, grammar and
        random state. The first that differs from its draft is the row's own, too.
        """
        row, sampling = self._rows[piece.row]
        wants = Wants(sampling.logprob, sampling.top)
        outcomes = list[Outcome]()
        for place in range(len(logits)):
            outcomes.append(_advanced(row, sampling, choose(logits[place : place + 1], [row], [wants])[0]))
            right = place < len(piece.drafts) and piece.drafts[place] == outcomes[-1].id
            if outcomes[-1].ends or not right:
                break
        return outcomes

    def _top(self, piece: Work) -> int:
        """How many of the likeliest ids are wanted in the place of each target."""
        return self._rows[piece.row][1].top if piece.row in self._rows and len(piece.targets) else 0


def _spoilt(piece: Work, logits: NDArray[np.float32]) -> bool:
    """Whether the logits (n, V) of a draft are NaN: then those of tokens before it may be so for its sake.

    A token's own logits are all NaN if its keys or values are not finite in any layer.
    """
    return bool(piece.drafts) and bool(np.isnan(logits[len(logits) - len(piece.drafts) :, 0]).any())


def _advanced(row: SamplingRow, sampling: Sampling, choice: Choice) -> Outcome:
    """What a choice comes to; the row takes note of it."""
    if choice.error:
        return Outcome(error=InputError(choice.error))
    finished = choice.id in sampling.end_ids
    try:
        if not finished:
            row.append(choice.id)
        last = not finished and row.ended
    except InputError as error:
        return Outcome(error=error)
    return Outcome((), choice.id, choice.logprob, finished, choice.top, last=last)


def scored(targets: Sequence[int], logits: NDArray[np.float32], top: int = 0) -> Outcome:
    """The log-probabilities of `targets`, and of the `top` likeliest ids, by the logits (n, V) before each."""
    if not len(targets):
        return NOTHING
    try:
        found = target_logprobs(logits[: len(targets)], np.asarray(targets, np.int64))
    except InputError as error:
        return Outcome(error=error)
    tops = tuple(likeliest(row, top) for row in logits[: len(targets)]) if top else ()
    return Outcome(tuple(found.tolist()), tops=tops)
