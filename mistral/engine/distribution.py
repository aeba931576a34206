"""The distribution of the next id of one row: weights of the ids, filters (top-k, top-p, min-p), and draws. NumPy only.

A weight is exp((score - largest score) / temperature): a probability relative to the largest. The weights of the whole
vocabulary are computed in float32; those near a decision are computed again in float64. All functions take one
contiguous row, and sum over arrays whose shapes depend only on this row, so the result is the same bit for bit in any
batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
FEW = 2048  # ids that are weighed in float64
SMALL = 2 * FEW  # ids of a vocabulary whose sum in float64 takes no longer than finding the heavy ones
BLOCK = 128  # ids whose float32 weights are added up before a draw
MIN_GROUPS = 1024  # groups of scores whose maxima give a bound for top_k
# float32 weights are used between these temperatures: where an exponent overflows, the weight is 0 in float64 too.
FLOAT32_TEMPERATURES = (1e-30, 1e30)
# The largest relative error of a float32 weight above 1e-38, and of a sum of such weights. The difference, the inverse
# of the temperature and their product are rounded, 1.8e-7 of an exponent of at most 88; exp adds 3e-7. In a sum, terms
# whose exponent is beyond -40 cannot matter beside the largest, which is 1, and adding up BLOCK terms costs 8e-6.
FLOAT32_ERROR = 2e-5
# The upper bits of a positive float32 number order the numbers by levels, here 1/512 of an octave each.
LEVEL_SHIFT, LEVEL_OF_ONE = 14, 127 << 9


def weights_of(scores: Float32s, largest: float, temperature: float) -> Float64s:
    """The weights (n,) of scores (n,); `largest` is the largest score of the row."""
    with np.errstate(over="ignore", under="ignore"):  # a tiny temperature takes all but the largest to exp(-inf) = 0
        weights: Float64s = np.exp((scores.astype(np.float64) - largest) / temperature)
    return weights


def float32_weights(scores: Float32s, largest: float, temperature: float) -> Float32s:
    """`weights_of` in float32, for a temperature within FLOAT32_TEMPERATURES."""
    with np.errstate(over="ignore", under="ignore"):
        weights: Float32s = scores - np.float32(largest)
        weights *= np.float32(1 / temperature)
        np.exp(weights, out=weights)
    return weights


def block_sums(weights: Float32s) -> Float64s:
    """The sums of blocks of BLOCK weights (V,); the last block may be shorter or empty."""
    whole = len(weights) // BLOCK * BLOCK
    sums = np.einsum("ij->i", weights[:whole].reshape(-1, BLOCK))
    return np.append(sums, weights[whole:].sum()).astype(np.float64)


def split(weights: Float32s) -> tuple[Ids, float]:
    """The heavy ids of weights (V,), which have 1 / FEW of the sum or more each, and the sum of all other weights."""
    heavy = np.flatnonzero(weights >= np.float32(float(block_sums(weights).sum()) / FEW))
    saved = weights[heavy]
    weights[heavy] = 0  # subtracting them from the sum instead would leave rounding errors
    rest = float(block_sums(weights).sum())
    weights[heavy] = saved
    return heavy, rest


def log_sum(logits: Float32s, largest: float) -> float:
    """log(sum(exp(logits - largest))): in float64 of few ids or the heavy ones, in float32 of the others.

    The absolute error is about 1e-8, and at most FLOAT32_ERROR times the probability of the others.
    """
    if len(logits) <= SMALL:
        return math.log(float(weights_of(logits, largest, 1.0).sum()))
    heavy, rest = split(float32_weights(logits, largest, 1.0))
    return math.log(float(weights_of(logits[heavy], largest, 1.0).sum()) + rest)


def top_k(scores: Float32s, k: int) -> Ids:
    """The ids of the k largest of scores (V,) in ascending order, the lowest ids among equals."""
    ids: Ids = np.arange(len(scores))
    if k >= len(scores):
        return ids
    groups = max(MIN_GROUPS, 4 * k)
    each = len(scores) // groups
    if each > 1:  # at least k scores reach the k-th largest of the groups' maxima
        maxima = scores[: each * groups].reshape(each, groups).max(axis=0)
        ids = np.flatnonzero(scores >= np.partition(maxima, -k)[-k])
    found = scores[ids]
    least = np.partition(found, -k)[-k]
    kept = found > least
    kept[np.flatnonzero(found == least)[: k - int(kept.sum())]] = True
    chosen: Ids = ids[kept]
    return chosen


def top_p(weights: Float64s, p: float) -> Float64s:
    """The fewest largest weights whose share of the sum reaches p, the first among equals; the others are set to 0."""
    order, running = _by_size(weights)
    kept = np.zeros_like(weights)
    nucleus = order[: _reaches(running, p * float(weights.sum()))]
    kept[nucleus] = weights[nucleus]
    return kept


def keep_top_p(weights: Float32s, scores: Float32s, temperature: float, p: float) -> None:
    """Set to 0, in place, those of weights (V,) that are not in the nucleus: `top_p` without sorting them all.

    A nucleus of heavy ids is that of the float64 weights. The share of a larger one is of sums of float32 weights.
    Their relative error is below 3e-6 for V up to 2**18, as the weighted mean of exponents is at most log(V). Ids at
    the end of the nucleus that together have less than this share may be kept or not.
    """
    heavy, rest = split(weights)
    largest = float(scores.max())
    exact = weights_of(scores[heavy], largest, temperature)
    total = float(exact.sum())
    if total < p * (total + rest * (1 + FLOAT32_ERROR)):
        weights *= _nucleus_of_many(weights, scores, p)
        return
    order, running = _by_size(exact)
    least, most = (_reaches(running, p * (total + rest * (1 + error))) for error in (-FLOAT32_ERROR, FLOAT32_ERROR))
    if least != most:  # the error of `rest` decides: compute it exactly
        others = weights_of(np.delete(scores, heavy), largest, temperature)
        least = _reaches(running, p * (total + float(others.sum())))
    nucleus = heavy[order[:least]]
    kept = weights[nucleus]
    weights[:] = 0
    weights[nucleus] = kept


def keep_min_p(weights: Float32s, scores: Float32s, temperature: float, min_p: float) -> None:
    """Set to 0, in place, those of weights (V,) that in float64 are less than min_p of the largest."""
    kept = weights >= np.float32(min_p * (1 - FLOAT32_ERROR))
    close = np.flatnonzero(kept & (weights <= np.float32(min_p * (1 + FLOAT32_ERROR))))
    kept[close] = weights_of(scores[close], float(scores.max()), temperature) >= min_p
    weights *= kept


def draw(weights: Float64s, uniform: float) -> tuple[int, float]:
    """Draw an index by weights (n,) with `uniform` from [0, 1) -> the index, and the relative position in its weight.

    The index never has weight 0. The position is uniform in [0, 1) if `uniform` is, and can be used for another draw.
    """
    cumulative = np.cumsum(weights)
    passed = min(uniform * cumulative[-1], np.nextafter(cumulative[-1], 0))  # below the end, whatever the rounding
    index = int(np.searchsorted(cumulative, passed, side="right"))
    before = cumulative[index - 1] if index else 0.0
    return index, float((passed - before) / (cumulative[index] - before))


def draw_id(weights: Float32s, scores: Float32s, temperature: float, uniform: float) -> int:
    """An id drawn by float32 weights (V,), of which some are 0.

    Up to FEW ids are drawn from by float64 weights. Of more, a block is drawn by the sums of float32 weights, then an
    id of the block by float64 weights; every id whose weight is not 0 can be drawn.
    """
    kept, start = weights > 0, 0
    if np.count_nonzero(kept) > FEW:
        block, uniform = draw(block_sums(weights), uniform)
        start = block * BLOCK
        kept = kept[start : start + BLOCK]
    ids = start + np.flatnonzero(kept)
    return int(ids[draw(weights_of(scores[ids], float(scores.max()), temperature), uniform)[0]])


def _by_size(weights: Float64s) -> tuple[Ids, Float64s]:
    """The indices that sort weights (n,) in descending order, stably, and the cumulative sums in this order."""
    order = np.argsort(-weights, kind="stable")
    return order, np.cumsum(weights[order])


def _reaches(running: npt.NDArray[Any], wanted: float) -> int:
    """The number of terms with which running sums reach `wanted`; all of them if rounding keeps the sums below."""
    return min(int(np.searchsorted(running, wanted)) + 1, len(running))


def _nucleus_of_many(weights: Float32s, scores: Float32s, p: float) -> npt.NDArray[np.bool_]:
    """Which of float32 weights (V,) are in the nucleus: whole levels from the top; only the last level is sorted."""
    levels = LEVEL_OF_ONE - (weights.view(np.int32) >> LEVEL_SHIFT)
    sums = np.cumsum(np.bincount(levels, weights))
    wanted = p * sums[-1]
    last = _reaches(sums, wanted) - 1
    kept = levels < last
    ids = np.flatnonzero(levels == last)
    ids = ids[np.argsort(-scores[ids], kind="stable")]
    running = np.cumsum(weights[ids], dtype=np.float64) + (sums[last - 1] if last else 0.0)
    kept[ids[: _reaches(running, wanted)]] = True
    return kept
