"""The time that micro-batches take in a pipeline: a model of its schedule. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
