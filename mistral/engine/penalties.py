"""Changes of logits before sampling: penalties for ids that occurred before, and biases of single ids."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mistral.engine.distribution import Float32s

MAX_FLOAT32 = float(np.finfo(np.float32).max)


def repetition_penalised(raw: Float32s, seen: array[int], penalty: float) -> Float32s:
    """Logits (V,) of seen ids divided by the penalty if positive, else multiplied (CTRL, arXiv:1909.05858)."""
    if penalty == 1 or not seen:
        return raw
    ids = np.array(seen)
    ids = ids[np.isfinite(raw[ids])]
    before = raw[ids].astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        after = np.where(before > 0, before / penalty, before * penalty)
    return _with(raw, ids, after)


def occurrence_penalised(raw: Float32s, counts: Mapping[int, int], presence: float, frequency: float) -> Float32s:
    """Logits (V,) minus `presence` for each id in `counts`, and `frequency` times its count (OpenAI's penalties)."""
    if not counts or (presence == 0 and frequency == 0):
        return raw
    ids = np.fromiter(counts.keys(), np.int64, len(counts))
    times = np.fromiter(counts.values(), np.float64, len(counts))
    return _with(raw, ids, raw[ids].astype(np.float64) - presence - frequency * times)


def biased(raw: Float32s, bias: Mapping[int, float]) -> Float32s:
    """Logits (V,) plus the bias of each id in `bias`."""
    if not bias:
        return raw
    ids = np.fromiter(bias.keys(), np.int64, len(bias))
    return _with(raw, ids, raw[ids].astype(np.float64) + np.fromiter(bias.values(), np.float64, len(bias)))


def _with(raw: Float32s, ids: npt.NDArray[np.int64], after: npt.NDArray[np.floating[Any]]) -> Float32s:
    """A copy of the logits `raw` (V,) with the values `after` for some ids, clipped to float32; -inf is kept."""
    scores, finite = raw.copy(), np.isfinite(raw[ids])
    scores[ids[finite]] = np.clip(after[finite], -MAX_FLOAT32, MAX_FLOAT32)
    return scores
