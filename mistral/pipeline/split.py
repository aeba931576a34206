"""Which layers each pipeline rank has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from mistral.checkpoint.checkpoint import Checkpoint
from mistral.errors import InputError
from mistral.model.args import ModelArgs
from mistral.model.parameters import EMBEDDING, HEAD, parameters


def split_layers(n_layers: int, num_pipeline_ranks: int) -> list[range]:
    """Contiguous layers of each rank, by quotient and remainder: 32 layers on 5 ranks are 7, 7, 6, 6, 6.

    Raises InputError if a rank would have none.
    """
    if not 1 <= num_pipeline_ranks <= n_layers:
        raise InputError(
            f"this model has {n_layers} layers to share out", option="num_pipeline_ranks", value=num_pipeline_ranks
        )
    quotient, remainder = divmod(n_layers, num_pipeline_ranks)
    starts = [rank * quotient + min(rank, remainder) for rank in range(num_pipeline_ranks + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


def balance_layers(costs: Sequence[float], head: float, ranks: int) -> list[range]:
    """Contiguous layers of each rank such that the slowest rank takes the least time; the head is on the last rank.

    `costs` are the times of the layers and `head` that of the head, in one unit. Among splits of equal time it is the
    one whose stages differ least, with more layers on earlier ranks; with equal costs and no head this is the split by
    quotient and remainder.
    """
    assert 1 <= ranks <= len(costs)
    sums = np.concatenate([[0.0], np.cumsum(costs)])
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {0: (0.0, 0.0, (0,))}
    for rank in range(ranks):
        last = rank == ranks - 1
        found: dict[int, tuple[float, float, tuple[int, ...]]] = {}
        stops = [len(costs)] if last else range(rank + 1, len(costs) - (ranks - rank - 1) + 1)
        for stop in stops:
            for start, (slowest, squares, cuts) in best.items():
                if start >= stop:
                    continue
                cost = float(sums[stop] - sums[start]) + (head if last else 0.0)
                way = (max(slowest, cost), squares + cost * cost, (*cuts, stop))
                if stop not in found or _is_better(way, found[stop]):
                    found[stop] = way
        best = found
    return [range(start, stop) for start, stop in pairwise(best[len(costs)][2])]


def _is_better(one: tuple[float, float, tuple[int, ...]], other: tuple[float, float, tuple[int, ...]]) -> bool:
    for a, b in ((one[0], other[0]), (one[1], other[1])):
        if not math.isclose(a, b, rel_tol=1e-9):
            return a < b
    return one[2] > other[2]


def parse_split(text: str, n_layers: int, ranks: int) -> list[range]:
    """The layers of each rank from a text such as 20,12. Raises InputError if it does not fit the model."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if len(counts) != ranks or min(counts) < 1 or sum(counts) != n_layers:
        raise InputError(
            f"must be auto, or {ranks} numbers of layers, each at least 1, that add up to {n_layers}",
            option="pipeline_split",
            value=text[:40],
        )
    stops = np.cumsum(counts)
    return [range(int(stop) - count, int(stop)) for stop, count in zip(stops, counts, strict=True)]


def choose_layers(checkpoint: Checkpoint, num_pipeline_ranks: int, pipeline_split: str) -> list[range]:
    """The layers of each rank: those of `pipeline_split`, or with "auto" such that the stages take similar times.

    The time of a layer, and of the head, is taken to be proportional to the weights that a token uses in it. Raises
    InputError for more ranks than layers, or a split that does not fit the model.
    """
    n_layers = checkpoint.args.n_layers
    if pipeline_split != "auto":
        split_layers(n_layers, num_pipeline_ranks)
        return parse_split(pipeline_split, n_layers, num_pipeline_ranks)
    return auto_split(checkpoint.args, {n: checkpoint.nbytes(n) for n in checkpoint.shapes}, num_pipeline_ranks)


def auto_split(args: ModelArgs, weights: Mapping[str, int], num_pipeline_ranks: int) -> list[range]:
    """The layers of each rank, from the bytes of each weight. Raises InputError for more ranks than layers."""
    even = split_layers(args.n_layers, num_pipeline_ranks)
    if num_pipeline_ranks == 1:
        return even
    costs = [0.0] * args.n_layers
    share = args.moe.num_experts_per_tok / args.moe.num_experts if args.moe else 1.0
    for name, parameter in parameters(args).items():
        if parameter.layer is not None:
            costs[parameter.layer] += weights[name] * (share if parameter.part == "experts" else 1.0)
    return balance_layers(costs, weights[EMBEDDING if args.tied_embeddings else HEAD], num_pipeline_ranks)
