"""From logits to the next ids: penalty, temperature, filters and one draw per row. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from mistral.errors import InputError

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
MAX = float(np.finfo(np.float64).max)
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("0 or more", lambda x: x >= 0),
    "top_p": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "min_p": ("from 0 to 1", lambda x: 0 <= x <= 1),
    "repetition_penalty": ("above 0", lambda x: x > 0),
}


@dataclass(frozen=True)
class SamplingSettings:
    """How one row is sampled. The defaults are greedy: the id with the largest logit, without any randomness.

    temperature 0 is greedy; top_p 1, top_k 0, min_p 0 and repetition_penalty 1 are off. `sample` tells apart the
    several continuations of one prompt under one seed. Raises InputError naming the option that is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    sample: int = 0

    def __post_init__(self) -> None:
        for name in ("top_k", "seed", "sample"):
            value = getattr(self, name)
            if not _is(value, Integral) or value < 0:
                raise InputError(f"{name} must be a whole number, 0 or more, not {_shown(value)}")
        for name, (allowed, holds) in RANGES.items():
            value = getattr(self, name)
            if not _is(value, Real) or not -MAX <= value <= MAX or not holds(value):
                raise InputError(f"{name} must be a number {allowed}, not {_shown(value)}")


class SamplingRow:
    """One sequence being sampled: its settings, the ids it holds so far, and a random generator of its own.

    The generator depends on (seed, sample) alone, so a row draws the same numbers in any batch and at any place in it.
    """

    def __init__(self, settings: SamplingSettings, prompt_ids: Iterable[int]) -> None:
        self.settings = settings
        self.seen = set(prompt_ids)  # a penalty asks only whether an id occurs
        # As a spawn key, `sample` cannot run together with the words of a large seed.
        sequence = np.random.SeedSequence(int(settings.seed), spawn_key=(int(settings.sample),))
        self.generator = np.random.Generator(np.random.Philox(sequence))

    def append(self, token: int) -> None:
        """Take note of an id that was generated."""
        self.seen.add(token)


def sampler(logits: npt.NDArray[np.floating[Any]], rows: Sequence[SamplingRow]) -> tuple[Ids, Float32s]:
    """Choose one id per row: logits (B, V), B rows -> ids (B,) int64, logprobs (B,) float32.

    The logprobs are those of the raw logits, before penalty, temperature and filters. The rows are not appended to:
    the caller does that with the ids it keeps. A greedy row draws nothing; any other row draws exactly one number.
    Raises InputError when a row holds NaN or +inf, or only -inf.
    """
    assert logits.ndim == 2 and logits.shape[0] == len(rows), (logits.shape, len(rows))
    ids = np.empty(len(rows), np.int64)
    logprobs = np.empty(len(rows), np.float32)
    for i, row in enumerate(rows):
        raw = np.array(logits[i], np.float64)  # (V,)
        top, log_sum = _normaliser(raw)
        ids[i] = _choose(raw, row)
        with np.errstate(over="ignore"):  # below the range of float32 is -inf
            logprobs[i] = raw[ids[i]] - top - log_sum
    return ids, logprobs


def log_softmax(logits: npt.NDArray[np.floating[Any]]) -> Float32s:
    """Log-probabilities over the last axis, (..., V) -> (..., V) float32, computed row by row in float64.

    Raises InputError when a row holds NaN or +inf, or only -inf.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    result = np.empty(flat.shape, np.float32)
    with np.errstate(over="ignore"):  # below the range of float32 is -inf
        for source, target in zip(flat, result, strict=True):
            raw = source.astype(np.float64)
            top, log_sum = _normaliser(raw)
            target[:] = raw - top - log_sum
    return result.reshape(logits.shape)


def target_logprob(logits: npt.NDArray[np.floating[Any]], target: int) -> float:
    """The log-probability of one id, from its logits (V,). Raises InputError as `log_softmax` does."""
    raw = logits.astype(np.float64)
    top, log_sum = _normaliser(raw)
    with np.errstate(over="ignore"):
        return float(np.float32(raw[target] - top - log_sum))


def likeliest(logits: npt.NDArray[np.floating[Any]], count: int) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest ids of logits (V,) with their log-probabilities, the lowest ids first among equals."""
    if not count:
        return ()
    raw = logits.astype(np.float64)
    top, log_sum = _normaliser(raw)
    count = min(count, len(raw))
    candidates = np.flatnonzero(raw >= np.partition(raw, -count)[-count])
    ids = candidates[np.argsort(-raw[candidates], kind="stable")][:count]
    with np.errstate(over="ignore"):
        logprobs = (raw[ids] - top - log_sum).astype(np.float32)
    return tuple(zip(ids.tolist(), logprobs.tolist(), strict=True))


def _normaliser(raw: Float64s) -> tuple[float, float]:
    """The largest logit, and log(sum(exp(raw - largest))): apart, so that huge logits keep their differences."""
    top = float(raw.max())  # NaN if any is
    if not math.isfinite(top):
        held = "NaN" if math.isnan(top) else "+inf" if top > 0 else "only -inf"
        raise InputError(f"logits hold {held}: the checkpoint's weights are damaged or overflow; check its files")
    return top, math.log(float(np.exp(raw - top).sum()))


def _choose(raw: Float64s, row: SamplingRow) -> int:
    """The next id of one row, from its raw logits (V,).

    The order is that of Hugging Face transformers: repetition penalty, temperature, top_k, top_p, min_p. Each filter
    sees what the one before it left, so top_p counts shares of the top_k, and of the distribution after temperature.
    """
    settings = row.settings
    scores = _penalised(raw, row.seen, settings.repetition_penalty)
    if settings.temperature == 0:
        return int(scores.argmax())  # the lowest id on ties
    with np.errstate(over="ignore", under="ignore"):  # a tiny temperature takes all but the largest to exp(-inf) = 0
        weights = np.exp((scores - scores.max()) / settings.temperature)  # probabilities in units of the largest
    if settings.top_k:
        weights = _top_k(weights, settings.top_k)
    if settings.top_p < 1:
        weights = _top_p(weights, settings.top_p)
    weights[weights < settings.min_p] = 0
    return _draw(weights, row.generator.random())


def _penalised(raw: Float64s, seen: set[int], penalty: float) -> Float64s:
    """Logits of seen ids divided by the penalty where positive, else multiplied (CTRL, arXiv 1909.05858, as in use)."""
    if penalty == 1 or not seen:
        return raw
    ids = np.fromiter(seen, np.int64, len(seen))
    ids = ids[np.isfinite(raw[ids])]
    scores = raw.copy()
    with np.errstate(over="ignore"):
        changed = np.where(raw[ids] > 0, raw[ids] / penalty, raw[ids] * penalty)
    scores[ids] = np.clip(changed, -MAX, MAX)
    return scores


def _top_k(weights: Float64s, k: int) -> Float64s:
    """Keep the k largest weights, the lowest ids among equals."""
    if k >= len(weights):
        return weights
    least = np.partition(weights, -k)[-k]
    kept = weights > least
    kept[np.flatnonzero(weights == least)[: k - int(kept.sum())]] = True
    return np.where(kept, weights, 0.0)


def _top_p(weights: Float64s, p: float) -> Float64s:
    """Keep the fewest largest weights whose share of the sum reaches p, the lowest ids among equals."""
    total = weights.sum()
    # All weights below this add up to less than 1 - p, so no nucleus needs them: the sort is short.
    candidates = np.flatnonzero(weights >= (1 - p) * total / len(weights))
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    count = int(np.searchsorted(np.cumsum(weights[order]), p * total, side="left")) + 1
    kept = np.zeros_like(weights)
    kept[order[:count]] = weights[order[:count]]
    return kept


def _draw(weights: Float64s, uniform: float) -> int:
    """Inverse of the cumulative weights at `uniform` in [0, 1): never an id of weight 0, never V."""
    ids = np.flatnonzero(weights)
    cumulative = np.cumsum(weights[ids])
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(ids[min(index, len(ids) - 1)])


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _shown(value: object) -> str:
    return repr(str(value)[:40]) if isinstance(value, str) else str(value)[:40]


@dataclass(frozen=True)
class Wants:
    """SHIM"""

    logprob: bool = True
    top: int = 0


@dataclass(frozen=True)
class Choice:
    """SHIM"""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    error: str | None = None


def choose(logits: Any, rows: Sequence[SamplingRow], wants: Sequence[Wants]) -> list[Choice]:
    """SHIM"""
    found = []
    for i, row in enumerate(rows):
        try:
            ids, lp = sampler(logits[i : i + 1], [row])
            found.append(
                Choice(int(ids[0]), float(lp[0]) if wants[i].logprob else None, likeliest(logits[i], wants[i].top))
            )
        except InputError as error:
            found.append(Choice(-1, error=str(error)))
    return found


def target_logprobs(logits: Any, targets: Any) -> Any:
    """SHIM"""
    return np.array([target_logprob(logits[i], t) for i, t in enumerate(targets)], np.float32)
