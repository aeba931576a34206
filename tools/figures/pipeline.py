"""The figure of the pipeline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mistral.model import split_layers
from tools.figures.canvas import BLUE, GREEN, MUTED, ORANGE, PALE, PURPLE, VERMILION, Canvas


def schedule(costs: Sequence[float], micro_batches: int) -> NDArray[np.float64]:
    """When each rank (R,) starts on each micro-batch (R, M): as soon as it is free and the rank before is done."""
    starts = np.zeros((len(costs), micro_batches))
    for rank, cost in enumerate(costs):
        for batch in range(micro_batches):
            free = starts[rank, batch - 1] + cost if batch else 0.0
            given = starts[rank - 1, batch] + costs[rank - 1] if rank else 0.0
            starts[rank, batch] = max(free, given)
    return starts


def pipeline(n_layers: int = 32, ranks: int = 4, micro_batches: int = 4) -> Canvas:
    """Layers shared out among ranks, and one prefill step of them with and without micro-batches."""
    canvas = Canvas(486, f"Pipeline: {n_layers} layers on {ranks} ranks")
    colours = (BLUE, ORANGE, GREEN, PURPLE, VERMILION)
    left, size = 96, 21
    for y, parts in ((62, split_layers(n_layers, ranks)), (100, split_layers(n_layers, ranks + 1))):
        canvas.text(24, y + 13, f"{len(parts)} ranks", align="left", colour=MUTED)
        for rank, layers in enumerate(parts):
            for layer in layers:
                canvas.cell(left + layer * size, y, size, 26, colours[rank], layer)
    layers_of = [len(layers) for layers in split_layers(n_layers, ranks)]
    for y, batches in ((150, 1), (310, micro_batches)):
        costs = [count / batches for count in layers_of]
        starts = schedule(costs, batches)
        end = float(starts[-1, -1] + costs[-1])
        idle = 1 - sum(layers_of) / (ranks * end)
        name = "the whole batch at once" if batches == 1 else f"{batches} micro-batches"
        canvas.text(24, y + 4, f"{name}: {end:g} units of time, ranks idle for {idle:.0%}", align="left", weight="bold")
        for rank, cost in enumerate(costs):
            row = y + 20 + rank * 27
            canvas.text(24, row + 13, f"rank {rank}", align="left", colour=MUTED)
            canvas.cell(left, row, end * size, 25, PALE)
            for batch, start in enumerate(starts[rank]):
                label = batch if batches > 1 else "all rows"
                canvas.cell(left + start * size, row, cost * size, 25, colours[rank], label)
    note = "1 unit of time: the whole batch through 1 layer. This release has the splitting, not yet the schedule."
    canvas.text(24, 464, note, align="left", colour=MUTED)
    return canvas
