"""What an engine is asked to do with a row's next tokens, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mistral.engine.sampling import SamplingSettings
from mistral.errors import InputError
from mistral.grammar.grammar import Grammar


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a row are chosen; each of `end_ids` ends it. Ids of `prompt` count for a repetition penalty.

    The ids in `excluded` are never chosen; log-probabilities are those of the model, as if they could be.

    With each token its log-probability is computed if `logprob` is set, and those of the `top` likeliest ids. No end
    comes before `min_tokens` tokens; the answer is one that the grammar `constraint` allows, and ends where that does.
    """

    settings: SamplingSettings
    prompt: Sequence[int]
    end_ids: frozenset[int] = frozenset()
    logprob: bool = True
    top: int = 0
    excluded: tuple[range, ...] = ()
    min_tokens: int = 0
    constraint: Grammar | None = None


@dataclass(frozen=True)
class Work:
    """New tokens of one row, and what is wanted of them.

    `logits`: of which of these tokens logits are wanted. `targets`: ids whose log-probabilities are wanted, each
    predicted by the token at its place; `logits` must then be "all". `sample`: whether to choose the token that
    follows the last one. `drafts`: guesses of the tokens that will be chosen, computed in the same step; as far as they
    are right, the tokens that follow them are chosen, too. They change no token.
    """

    row: int
    ids: Sequence[int]
    logits: Literal["none", "last", "all"] = "last"
    targets: Sequence[int] = ()
    sample: bool = False
    drafts: Sequence[int] = ()

    @property
    def tokens(self) -> list[int]:
        """All that a step computes of the row."""
        return [*self.ids, *self.drafts]


@dataclass(frozen=True)
class Outcome:
    """What came of one piece of work. Log-probabilities are those of the raw logits, in nats.

    logprobs: those of the targets. tops: the `top` likeliest ids in the place of each target, with theirs. id: the
    chosen token, with its `logprob` and the `top` likeliest ids where they were asked for; `finished` says that it ends
    the row and is no part of the answer, and `last` that it is the last one of the answer. error: why there is no
    result, if there is none. more: what came of the places after right drafts, one for each of these. again: nothing
    came of it, and it is to be done once more without drafts, for one of these made numbers that are none.
    """

    logprobs: tuple[float, ...] = ()
    id: int | None = None
    logprob: float | None = None
    finished: bool = False
    top: tuple[tuple[int, float], ...] = ()
    error: InputError | None = None
    last: bool = False
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()
    more: tuple[Outcome, ...] = ()
    again: bool = False

    @property
    def ends(self) -> bool:
        """Whether the row has no next token."""
        return self.finished or self.last or self.error is not None


def wanted_counts(work: Sequence[Work]) -> list[int]:
    """How many logits each piece of work wants: those of its last tokens."""
    return [{"none": 0, "last": 1, "all": len(piece.ids)}[piece.logits] + len(piece.drafts) for piece in work]


def wanted_places(work: Sequence[Work]) -> NDArray[np.int64] | None:
    """The places (n,) of the tokens whose logits are wanted, when all tokens lie end to end; None: all of them."""
    counts, sizes = wanted_counts(work), [len(piece.ids) + len(piece.drafts) for piece in work]
    if counts == sizes:
        return None
    ends = accumulate(sizes)
    places = [range(end - count, end) for end, count in zip(ends, counts, strict=True)]
    return np.fromiter(chain.from_iterable(places), np.int64)
