"""The figure of the pipeline."""

from __future__ import annotations

import numpy as np

from benchmarks.timetable import idle_share, timetable
from mistral.pipeline.split import split_layers
from tools.figures.canvas import BLUE, GREEN, MUTED, ORANGE, PALE, PURPLE, VERMILION, Canvas


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
        seconds = np.repeat(np.array(costs)[:, None], batches, axis=1)
        starts = timetable(seconds)
        end, idle = float(starts[-1, -1] + costs[-1]), idle_share(seconds, starts)
        name = "the whole batch at once" if batches == 1 else f"{batches} micro-batches"
        canvas.text(24, y + 4, f"{name}: {end:g} units of time, ranks idle for {idle:.0%}", align="left", weight="bold")
        for rank, cost in enumerate(costs):
            row = y + 20 + rank * 27
            canvas.text(24, row + 13, f"rank {rank}", align="left", colour=MUTED)
            canvas.cell(left, row, end * size, 25, PALE)
            for batch, start in enumerate(starts[rank]):
                label = batch if batches > 1 else "all rows"
                canvas.cell(left + start * size, row, cost * size, 25, colours[rank], label)
    note = "1 unit of time: the whole batch through 1 layer."
    canvas.text(24, 464, note, align="left", colour=MUTED)
    return canvas
