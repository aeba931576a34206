"""The unit of work of a step: new tokens of one row, what is wanted of them, and the result."""

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
    """How the tokens of a row are sampled; each of `end_ids` ends it. A repetition penalty counts the ids of `prompt`.

    The ids in `excluded` are never sampled; log-probabilities are those of the model, with these ids included.

    With each token its log-probability is computed if `logprob` is set, and those of the `top` likeliest ids. The
    answer does not end before `min_tokens` tokens. The grammar `constraint` restricts the answer, and ends it.
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

    `logits`: the tokens whose logits are wanted. `targets`: ids whose log-probabilities are wanted, each predicted by
    the token with the same index; `logits` must then be "all". `sample`: whether to sample the token after the last
    one. `drafts`: draft tokens of speculative decoding, computed in the same step; after each accepted one, the next
    token is sampled, too. They change no token.
    """

    row: int
    ids: Sequence[int]
    logits: Literal["none", "last", "all"] = "last"
    targets: Sequence[int] = ()
    sample: bool = False
    drafts: Sequence[int] = ()

    @property
    def tokens(self) -> list[int]:
        """All tokens of the row that a step computes."""
        return [*self.ids, *self.drafts]


@dataclass(frozen=True)
class Outcome:
    """The result of one piece of work. Log-probabilities are those of the raw logits, in nats.

    logprobs: those of the targets. tops: the `top` likeliest ids at the position of each target, with their
    log-probabilities. id: the sampled token, with its `logprob` and the `top` likeliest ids if they were asked for;
    `finished`: it ends the row and is not part of the answer; `last`: it is the last token of the answer. error: why
    there is no result. more: the outcomes after accepted draft tokens, one for each of them. again: there is no result,
    and the work must be repeated without drafts, because one of these had logits that are not finite.
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
