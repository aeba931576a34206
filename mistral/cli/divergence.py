"""The Kullback-Leibler divergence of a model's predictions from those of another checkpoint, over a text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mistral.engine.engine import Engine
from mistral.engine.work import Work
from mistral.errors import InputError

Float64s = NDArray[np.float64]


@dataclass(frozen=True)
class Divergence:
    """What two models say of the same tokens; `mean_kl` is that of the reference to the model, in nats.

    same_top: the share of tokens for which both find the same token the likeliest. kl_p99: the 99th percentile.
    logprob, reference_logprob: the means over the text's tokens.
    """

    tokens: int
    mean_kl: float
    kl_p99: float
    same_top: float
    logprob: float
    reference_logprob: float

    def record(self) -> dict[str, float | int]:
        """The figures, with both perplexities, as JSON has them."""
        found = {name: round(value, 6) for name, value in vars(self).items()}
        perplexities = {"perplexity": self.logprob, "reference_perplexity": self.reference_logprob}
        return found | {name: round(math.exp(-mean), 6) for name, mean in perplexities.items()}


def compare(
    engine: Engine, reference: Engine, prompts: Sequence[tuple[Sequence[int], int]], chunk_size: int
) -> Iterator[Divergence]:
    """The divergence after each chunk of some sequences of ids; of each, the tokens from a place on count.

    Raises InputError where the models have other vocabularies, or one's logits are not numbers.
    """
    sizes = [each.args.vocab_size for each in (engine, reference)]
    if sizes[0] != sizes[1]:
        raise InputError(f"must have the same vocabulary: {sizes[0]} ids here and {sizes[1]} there", option="reference")
    kls, same = list[Float64s](), list[NDArray[np.bool_]]()
    scores: tuple[list[Float64s], list[Float64s]] = [], []
    for ids, counted_from in prompts:
        for start, logits in _both(engine, reference, ids, chunk_size):
            targets = np.asarray(ids[start + 1 : start + 1 + len(logits[0])], np.int64)
            first = max(0, counted_from - start - 1)
            here, there = (log_softmax(each[first : len(targets)]) for each in logits)
            targets = targets[first:]
            if not len(targets):
                continue
            kls.append((np.exp(there) * (there - here)).sum(1))
            same.append(here.argmax(1) == there.argmax(1))
            for found, each in zip(scores, (here, there), strict=True):
                found.append(each[np.arange(len(targets)), targets])
            yield _divergence(np.concatenate(kls), np.concatenate(same), *map(np.concatenate, scores))


def _both(
    engine: Engine, reference: Engine, ids: Sequence[int], chunk_size: int
) -> Iterator[tuple[int, list[NDArray[np.float32]]]]:
    """The place of a chunk of the ids, and both models' logits (n, V) of it."""
    engines = (engine, reference)
    rows = [each.join(len(ids)) for each in engines]
    try:
        for start in range(0, len(ids), chunk_size):
            part = ids[start : start + chunk_size]
            yield start, [each.step([Work(row, part, "all")])[0] for each, row in zip(engines, rows, strict=True)]
    finally:
        for each, row in zip(engines, rows, strict=True):
            each.leave(row)


def log_softmax(logits: NDArray[np.float32]) -> Float64s:
    """Log-probabilities (n, V), in float64. Raises InputError for logits that are not finite."""
    if not np.isfinite(logits).all():
        raise InputError(
            "logits hold NaN or infinity: the checkpoint's weights are damaged or overflow; check its files"
            " (`info` with `verify`)"
        )
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(1, keepdims=True))
    return wide


def _divergence(kl: Float64s, same: NDArray[np.bool_], here: Float64s, there: Float64s) -> Divergence:
    return Divergence(
        len(kl), float(kl.mean()), float(np.quantile(kl, 0.99)), float(same.mean()), float(here.mean()),
        float(there.mean()),
    )  # fmt: skip
