"""The samplers of the rows of an engine: logits in, outcomes of work out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mistral.engine.sampling import SamplingRow, Wants, choose, likeliest, target_logprobs
from mistral.engine.work import Outcome, Sampling, Work
from mistral.errors import InputError
from mistral.grammar.grammar import Grammar
from mistral.grammar.token_table import TokenTable


class Samplers:
    """What is known of each row that joined with a `Sampling`."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[SamplingRow, Sampling]] = {}
        self._table: TokenTable | None = None

    def join(self, row: int, sampling: Sampling) -> None:
        """A new row, or a row that is used for another answer."""
        grammar = None if sampling.constraint is None else self._known(sampling.constraint).begin()
        self._rows[row] = (
            SamplingRow(
                sampling.settings, sampling.prompt, sampling.excluded, sampling.end_ids, sampling.min_tokens, grammar
            ),
            sampling,
        )

    def learn(self, table: TokenTable) -> None:
        """The vocabulary of grammars that come from another process."""
        self._table = table

    def _known(self, grammar: Grammar) -> Grammar:
        """The grammar, compiled in this process."""
        return grammar if grammar.matcher or self._table is None else grammar.over(self._table)

    def leave(self, row: int) -> None:
        """Forget a row, if it is known."""
        self._rows.pop(row, None)

    def choose(self, work: Sequence[Work], logits: Sequence[NDArray[np.float32]]) -> list[Outcome]:
        """What comes of each piece of work, given the logits (n, V) of its tokens.

        Logits that are not numbers are an error of their own piece of work and touch no other.
        """
        outcomes = [scored(piece.targets, found, self._top(piece)) for piece, found in zip(work, logits, strict=True)]
        places = [i for i, piece in enumerate(work) if piece.sample and not outcomes[i].error]
        if not places:
            return outcomes
        rows = [self._rows[work[i].row] for i in places]
        wants = [Wants(sampling.logprob, sampling.top) for _, sampling in rows]
        choices = choose(np.stack([logits[i][-1] for i in places]), [row for row, _ in rows], wants)
        for i, (row, sampling), choice in zip(places, rows, choices, strict=True):
            logprobs, tops = outcomes[i].logprobs, outcomes[i].tops
            if choice.error:
                outcomes[i] = Outcome(error=InputError(choice.error))
                continue
            finished = choice.id in sampling.end_ids
            try:
                if not finished:
                    row.append(choice.id)
                last = not finished and row.ended
            except InputError as error:
                outcomes[i] = Outcome(error=error)
                continue
            outcomes[i] = Outcome(logprobs, choice.id, choice.logprob, finished, choice.top, last=last, tops=tops)
        return outcomes

    def _top(self, piece: Work) -> int:
        """How many of the likeliest ids are wanted in the place of each target."""
        return self._rows[piece.row][1].top if piece.row in self._rows and len(piece.targets) else 0


def scored(targets: Sequence[int], logits: NDArray[np.float32], top: int = 0) -> Outcome:
    """The log-probabilities of `targets`, and of the `top` likeliest ids, by the logits (n, V) before each."""
    if not len(targets):
        return Outcome()
    try:
        found = target_logprobs(logits[: len(targets)], np.asarray(targets, np.int64))
    except InputError as error:
        return Outcome(error=error)
    tops = tuple(likeliest(row, top) for row in logits[: len(targets)]) if top else ()
    return Outcome(tuple(found.tolist()), tops=tops)
