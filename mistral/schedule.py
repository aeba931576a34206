"""Who does what when in a pipeline: layers to stages, rows to micro-batches, and the time that this takes. Pure.

Every stage takes the micro-batches in the order in which the first stage began them, one after the other. So a stage
that waits always waits for the one before it, and the first for a result of the last: nobody can wait in a circle as
long as the first stage stops for a result only while a micro-batch is in flight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mistral.errors import InputError

GROUP_ROWS = 8  # rows decoded together, from which on more of them cost a stage more time
SHORTEST, LONGEST = 64, 512  # tokens of a chunk that is chosen here
CHUNK_OVERHEAD = 16  # tokens that could be read in the time that a chunk costs whatever its length (measured)


def balance_layers(costs: Sequence[float], head: float, ranks: int) -> list[range]:
    """Contiguous layers of each rank such that the slowest takes the least time; the head is on the last rank.

    `costs` of each layer and `head` in any one unit. Among equals, the split whose stages differ least, more layers
    first; with equal costs and no head that is quotient and remainder.
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
                if stop not in found or _better(way, found[stop]):
                    found[stop] = way
        best = found
    return [range(start, stop) for start, stop in pairwise(best[len(costs)][2])]


def _better(one: tuple[float, float, tuple[int, ...]], other: tuple[float, float, tuple[int, ...]]) -> bool:
    for a, b in ((one[0], other[0]), (one[1], other[1])):
        if not math.isclose(a, b, rel_tol=1e-9):
            return a < b
    return one[2] > other[2]


def parse_split(text: str, n_layers: int, ranks: int) -> list[range]:
    """The split that a text such as 20,12 asks for. Raises InputError where it does not fit the model."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if len(counts) != ranks or min(counts) < 1 or sum(counts) != n_layers:
        raise InputError(
            f"--pipeline_split {text[:40]}: must be auto, or {ranks} numbers of layers, each at least 1, that add up to"
            f" {n_layers}"
        )
    stops = np.cumsum(counts)
    return [range(int(stop) - count, int(stop)) for stop, count in zip(stops, counts, strict=True)]


def decode_groups(rows: int, ranks: int) -> int:
    """In how many groups `rows` that are being answered go round, so that no stage waits.

    A group repeats the reading of all weights, which for few rows is all the cost: groups of fewer than `GROUP_ROWS`
    rows gain nothing, and one group it is.
    """
    return max(1, min(ranks, rows // GROUP_ROWS))


def choose_chunk(tokens: int, ranks: int) -> int:
    """Prompt tokens of a micro-batch, for a prompt of `tokens`: a power of two.

    A stage takes a time like c + CHUNK_OVERHEAD for c tokens, and tokens / c + ranks - 1 of these follow each other.
    The sum is least at c = sqrt(tokens * CHUNK_OVERHEAD / (ranks - 1)).
    """
    if ranks == 1:
        return LONGEST
    best = math.sqrt(max(tokens, 1) * CHUNK_OVERHEAD / (ranks - 1))
    return int(min(LONGEST, max(SHORTEST, 2 ** round(math.log2(best)))))


@dataclass(frozen=True)
class Progress:
    """Where a row stands: prompt tokens that no micro-batch has had yet, and whether its next token is unknown yet."""

    prompt_left: int
    waits: bool = False


def next_micro_batch(
    rows: Sequence[Progress], decoding: int, chunk_size: int, room: int
) -> tuple[tuple[int, int], ...]:
    """Which rows go into the next micro-batch, with how many tokens each: (place in `rows`, tokens), in order.

    At most `decoding` rows with the token just sampled, and these first; then prompts, at most `chunk_size` tokens of
    each and `room` of all together.
    """
    taken: dict[int, int] = {}
    for place, row in enumerate(rows):
        if not row.waits and not row.prompt_left and len(taken) < decoding:
            taken[place] = 1
    for place, row in enumerate(rows):
        tokens = min(chunk_size, room, row.prompt_left)
        if tokens > 0 and not row.waits:
            taken[place], room = tokens, room - tokens
    return tuple(sorted(taken.items()))


def bubble_share(stages: int, micro_batches: int) -> float:
    """Share of the time that equal stages idle while micro-batches of equal cost pass through once."""
    return (stages - 1) / (micro_batches + stages - 1)


def timetable(
    seconds: NDArray[np.float64], transfers: Sequence[float] = (), in_flight: int | None = None
) -> NDArray[np.float64]:
    """When each stage starts on each micro-batch (R, M), from the `seconds` (R, M) that it takes.

    transfers (R,): seconds from each stage to the next, and from the last back to the first; none when left out. At
    most `in_flight` micro-batches are under way at once: with as many as there are groups of rows, this is decoding,
    where a group starts again when its tokens are back.
    """
    stages, micro_batches = seconds.shape
    moves = list(transfers) or [0.0] * stages
    starts = np.zeros_like(seconds)
    for k in range(micro_batches):
        for stage in range(stages):
            free = starts[stage, k - 1] + seconds[stage, k - 1] if k else 0.0
            if stage:
                given = starts[stage - 1, k] + seconds[stage - 1, k] + moves[stage - 1]
            elif in_flight is not None and k >= in_flight:
                given = starts[-1, k - in_flight] + seconds[-1, k - in_flight] + moves[-1]
            else:
                given = 0.0
            starts[stage, k] = max(free, given)
    return starts


def idle_share(seconds: NDArray[np.float64], starts: NDArray[np.float64]) -> float:
    """Share of the time, from the first start to the last end, that the stages of a timetable idle."""
    end = float((starts + seconds).max() - starts.min())
    return 1 - float(seconds.sum()) / (len(seconds) * end)


@dataclass(frozen=True)
class Link:
    """What lies between two stages: seconds until a message begins to arrive, and bytes a second from then on."""

    latency: float
    bandwidth: float

    def seconds(self, nbytes: float) -> float:
        """Seconds that a message takes."""
        return self.latency + nbytes / self.bandwidth


def predicted_seconds(
    stage_seconds: Sequence[float], micro_batches: int, message_bytes: float, link: Link, in_flight: int | None = None
) -> float:
    """Seconds that equal micro-batches take on stages of different machines, joined by equal links.

    The way back carries ids alone. A message goes over while both of its stages compute.
    """
    ranks = len(stage_seconds)
    seconds = np.repeat(np.asarray(stage_seconds, np.float64)[:, None], micro_batches, axis=1)
    moves = [link.seconds(message_bytes)] * (ranks - 1) + [link.latency if ranks > 1 else 0.0]
    starts = timetable(seconds, moves, in_flight)
    return float((starts + seconds).max())
