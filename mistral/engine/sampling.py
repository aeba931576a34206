"""From logits to the next ids: penalties, temperature, filters and one draw per row. NumPy only.

Each row is sampled separately, so its result depends only on its own logits, settings, ids and random numbers. Weights
of the whole vocabulary are float32; `distribution.py` says where float64 is used. In short:

- The ids that top_k, top_p and min_p keep are those of float64 weights, except where top_p keeps thousands: there the
  share at which it stops has a relative error below 3e-6.
- Up to 2048 ids are drawn from by float64 weights. Of more, the probability of a block of 128 ids has a relative error
  of about 1e-7 (at most 2e-5), and so does that of each of its ids.
- The error of a log-probability, before it is rounded to float32, is about 1e-8 (at most 2e-5 times the probability of
  all ids that are less likely than 1 in 2048).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from mistral.engine.distribution import (
    FEW,
    FLOAT32_TEMPERATURES,
    Float32s,
    Ids,
    draw,
    draw_id,
    float32_weights,
    keep_min_p,
    keep_top_p,
    log_sum,
    top_k,
    top_p,
    weights_of,
)
from mistral.engine.penalties import biased, occurrence_penalised, repetition_penalised
from mistral.errors import InputError
from mistral.grammar.grammar_state import GrammarState

MAX = float(np.finfo(np.float64).max)
LEAST_FLOAT32 = float(np.finfo(np.float32).min)
MOST_BIASES = 1 << 14  # ids of a logit_bias
NOTHING_ALLOWED = "the grammar allows no token here that may be chosen"
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("0 or more", lambda x: x >= 0),
    "top_p": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "min_p": ("from 0 to 1", lambda x: 0 <= x <= 1),
    "repetition_penalty": ("above 0", lambda x: x > 0),
    "presence_penalty": ("from -2 to 2", lambda x: -2 <= x <= 2),
    "frequency_penalty": ("from -2 to 2", lambda x: -2 <= x <= 2),
}


@dataclass(frozen=True)
class SamplingSettings:
    """How one row is sampled. The default is greedy: the id with the largest logit, without randomness.

    temperature 0 is greedy; top_p 1, top_k 0, min_p 0 and repetition_penalty 1 are off. `sample` is the number of one
    of several answers to one prompt with one seed. presence_penalty is subtracted from the logit of each id that is in
    the answer, frequency_penalty once for each occurrence, and logit_bias is added to the logits of single ids (-100 to
    100), as in OpenAI's interface. Raises InputError naming the option that is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    sample: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("top_k", "seed", "sample"):
            value = getattr(self, name)
            if not _is(value, Integral) or value < 0:
                raise InputError(f"{name} must be a whole number, 0 or more, not {_shown(value)}")
        for name, (allowed, holds) in RANGES.items():
            value = getattr(self, name)
            if not _is(value, Real) or not -MAX <= value <= MAX or not holds(value):
                raise InputError(f"{name} must be a number {allowed}, not {_shown(value)}")
        _check_bias(self.logit_bias)


def _check_bias(bias: object) -> None:
    if not isinstance(bias, Mapping) or len(bias) > MOST_BIASES:
        raise InputError(f"logit_bias must be a table of at most {MOST_BIASES} ids, not {_shown(bias)}")
    for token, value in bias.items():
        if not _is(token, Integral) or token < 0:
            raise InputError(f"logit_bias must have ids as its keys, not {_shown(token)}")
        if not _is(value, Real) or not -100 <= value <= 100:
            raise InputError(f"logit_bias must have numbers from -100 to 100, not {_shown(value)} for id {token}")


class SamplingRow:
    """The sampling state of one sequence: its settings, its ids so far, and its own random generator.

    The generator depends only on (seed, sample), so a row draws the same numbers in any batch and at any place in it.
    """

    def __init__(
        self,
        settings: SamplingSettings,
        prompt_ids: Iterable[int],
        excluded: Sequence[range] = (),
        end_ids: Collection[int] = (),
        min_tokens: int = 0,
        grammar: GrammarState | None = None,
    ) -> None:
        """The ids in `excluded` are never sampled, nor those in `end_ids` before `min_tokens` tokens.

        With a `grammar`, only the ids that it allows next are sampled.
        """
        self.settings, self.excluded, self.grammar = settings, excluded, grammar
        self.end_ids, self.min_tokens, self.length = end_ids, min_tokens, 0
        self.seen = array("q", set(prompt_ids))  # int64; the repetition penalty needs only whether an id occurs
        self.counts: dict[int, int] = {}  # of each id in the answer, if a penalty needs them
        # as a spawn key, `sample` cannot collide with the words of a large seed
        sequence = np.random.SeedSequence(int(settings.seed), spawn_key=(int(settings.sample),))
        self.generator = np.random.Generator(np.random.Philox(sequence))

    def append(self, token: int) -> None:
        """Add an id that was generated. Raises InputError if the grammar does not allow it."""
        self.seen.append(token)
        self.length += 1
        if self.settings.presence_penalty or self.settings.frequency_penalty:
            self.counts[token] = self.counts.get(token, 0) + 1
        if self.grammar:
            self.grammar.advance(token)

    @property
    def ended(self) -> bool:
        """Whether the grammar allows only the end of the answer."""
        return self.grammar is not None and self.grammar.ended


@dataclass(frozen=True)
class Wants:
    """What is wanted beside the id of a row: its log-probability, and those of the `top` likeliest ids."""

    logprob: bool = False
    top: int = 0


@dataclass(frozen=True)
class Choice:
    """The id sampled for a row, with what was wanted beside it; or id -1 and an error.

    top: pairs of id and log-probability, the likeliest first. Log-probabilities are in nats and those of the raw
    logits, before penalty, temperature and filters.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    error: str | None = None


def choose(logits: Float32s, rows: Sequence[SamplingRow], wants: Sequence[Wants]) -> list[Choice]:
    """Sample one id for each of B rows from logits (B, V), and compute what is wanted beside it.

    A row whose logits hold NaN or +inf, or only -inf for the allowed ids, gets an error, which affects no other row.
    The ids are not added to the rows: the caller does that with `append`. A greedy row and one with an error draw no
    random number; any other row draws exactly one.
    """
    assert logits.ndim == 2 and logits.shape[0] == len(rows) == len(wants), (logits.shape, len(rows), len(wants))
    return [
        _choice(np.ascontiguousarray(logits[i], np.float32), row, wanted)
        for i, (row, wanted) in enumerate(zip(rows, wants, strict=True))
    ]


def sampler(logits: npt.NDArray[np.floating[Any]], rows: Sequence[SamplingRow]) -> tuple[Ids, Float32s]:
    """As `choose`, with a log-probability for every row: ids (B,) int64, logprobs (B,) float32.

    Raises InputError when a row holds NaN or +inf, or only -inf.
    """
    choices = choose(logits.astype(np.float32, copy=False), rows, [Wants(logprob=True)] * len(rows))
    for choice in choices:
        if choice.error is not None:
            raise InputError(choice.error)
    return np.array([c.id for c in choices], np.int64), np.array([c.logprob for c in choices], np.float32)


def log_softmax(logits: npt.NDArray[np.floating[Any]]) -> Float32s:
    """Log-probabilities over the last axis, (..., V) -> (..., V) float32, of logits taken as float32, row by row.

    Raises InputError when a row holds NaN or +inf, or only -inf.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    result = np.empty(flat.shape, np.float32)
    for source, target in zip(flat, result, strict=True):
        raw = np.ascontiguousarray(source, np.float32)
        target[:] = _logprobs(raw, *_normaliser(raw))
    return result.reshape(logits.shape)


def target_logprob(logits: npt.NDArray[np.floating[Any]], target: int) -> float:
    """The log-probability of one id, from its logits (V,). Raises InputError as `log_softmax` does."""
    raw = np.ascontiguousarray(logits, np.float32)
    return _logprob(raw, target, *_normaliser(raw))


def target_logprobs(logits: npt.NDArray[np.floating[Any]], targets: npt.ArrayLike) -> Float32s:
    """The log-probability of one id per row: logits (T, V), targets (T,) -> (T,) float32.

    Raises InputError as `log_softmax` does, for the first row that is at fault.
    """
    ids = np.asarray(targets, np.int64)
    assert logits.ndim == 2 and ids.shape == logits.shape[:1], (logits.shape, ids.shape)
    found = (target_logprob(row, target) for row, target in zip(logits, ids.tolist(), strict=True))
    return np.fromiter(found, np.float32, len(ids))


def likeliest(logits: npt.NDArray[np.floating[Any]], count: int) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest ids of logits (V,) with their log-probabilities, the lowest ids first among equals."""
    if not count:
        return ()
    raw = np.ascontiguousarray(logits, np.float32)
    return _likeliest(raw, count, *_normaliser(raw))


def _choice(raw: Float32s, row: SamplingRow, wants: Wants) -> Choice:
    """The choice for one row, from its raw logits (V,), contiguous."""
    largest = float(raw.max())
    error = _fault(largest)
    if error is not None:
        return Choice(-1, error=error)
    scores = _allowed(raw, row)
    if scores is not raw and (error := _fault(float(scores.max()))) is not None:
        return Choice(-1, error=error if row.grammar is None else NOTHING_ALLOWED)
    token = _choose(scores, row)
    if not wants.logprob and not wants.top:
        return Choice(token)
    log_total = log_sum(raw, largest)
    logprob = _logprob(raw, token, largest, log_total) if wants.logprob else None
    return Choice(token, logprob, _likeliest(raw, wants.top, largest, log_total))


def _fault(largest: float) -> str | None:
    """The error of logits whose largest is this (NaN if any is), or None."""
    if math.isfinite(largest):
        return None
    held = "NaN" if math.isnan(largest) else "+inf" if largest > 0 else "only -inf"
    return (
        f"logits hold {held}: the checkpoint's weights are damaged or overflow; check its files (`info` with `verify`)"
    )


def _normaliser(raw: Float32s) -> tuple[float, float]:
    """The largest logit, and log(sum(exp(raw - largest))): separate, so that huge logits keep their differences.

    Raises InputError for logits that hold NaN or +inf, or only -inf.
    """
    largest = float(raw.max())
    error = _fault(largest)
    if error is not None:
        raise InputError(error)
    return largest, log_sum(raw, largest)


def _logprobs(raw: Float32s, largest: float, log_total: float) -> Float32s:
    """Log-probabilities of logits (n,), from the result of `_normaliser` for the whole row."""
    with np.errstate(over="ignore"):  # below the range of float32 is -inf
        return (raw.astype(np.float64) - largest - log_total).astype(np.float32)


def _logprob(raw: Float32s, token: int, largest: float, log_total: float) -> float:
    """As `_logprobs`, of one of the logits (V,), for which NumPy's functions take longer than the arithmetic."""
    found = float(raw[token]) - largest - log_total
    return float(np.float32(found)) if found >= LEAST_FLOAT32 else -math.inf


def _likeliest(raw: Float32s, count: int, largest: float, log_total: float) -> tuple[tuple[int, float], ...]:
    if not count:
        return ()
    ids = top_k(raw, count)
    ids = ids[np.argsort(-raw[ids], kind="stable")]
    return tuple(zip(ids.tolist(), _logprobs(raw[ids], largest, log_total).tolist(), strict=True))


def _choose(raw: Float32s, row: SamplingRow) -> int:
    """The next id of one row, from its logits (V,), which are -inf for ids that are not allowed.

    The order is that of Hugging Face transformers: penalties, temperature, top_k, top_p, min_p. Each filter sees the
    result of the one before, so top_p counts shares of the top_k, and of the distribution after temperature.
    """
    settings = row.settings
    scores = repetition_penalised(raw, row.seen, float(settings.repetition_penalty))
    scores = occurrence_penalised(
        scores, row.counts, float(settings.presence_penalty), float(settings.frequency_penalty)
    )
    scores = biased(scores, settings.logit_bias)
    temperature, p, min_p = float(settings.temperature), float(settings.top_p), float(settings.min_p)
    if temperature == 0:
        return int(scores.argmax())  # the lowest id on ties
    largest, uniform, k = float(scores.max()), row.generator.random(), settings.top_k or len(scores)
    float32 = len(scores) > FEW and FLOAT32_TEMPERATURES[0] <= temperature <= FLOAT32_TEMPERATURES[1]
    if k < len(scores) or not float32:
        ids = top_k(scores, k)
        exact = weights_of(scores[ids], largest, temperature)
        if p < 1:
            exact = top_p(exact, p)
        exact[exact < min_p] = 0
        return int(ids[draw(exact, uniform)[0]])
    weights = float32_weights(scores, largest, temperature)
    if p < 1:
        keep_top_p(weights, scores, temperature, p)
    if min_p > 0:
        keep_min_p(weights, scores, temperature, min_p)
    return draw_id(weights, scores, temperature, uniform)


def _allowed(raw: Float32s, row: SamplingRow) -> Float32s:
    """Logits (V,) with -inf for ids that are not allowed; the same array if all are."""
    too_early = row.length < row.min_tokens
    if not row.excluded and not too_early and row.grammar is None:
        return raw
    scores = raw.copy()
    for ids in row.excluded:
        scores[ids.start : ids.stop] = -np.inf
    if row.grammar:
        row.grammar.forbid(scores, may_end=bool(row.end_ids))
    if too_early:
        scores[list(row.end_ids)] = -np.inf
    return scores


def _is(value: object, kind: type) -> bool:
    if type(value) in (int, float):  # as nearly all are: abstract classes are asked ten times as slowly
        return kind is Real or type(value) is int
    return isinstance(value, kind) and not isinstance(value, bool)


def _shown(value: object) -> str:
    return repr(str(value)[:40]) if isinstance(value, str) else str(value)[:40]
