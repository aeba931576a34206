"""The figure of the mixture of experts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mistral.engine.sampling import log_softmax
from mistral.model.moe import Dispatch
from tools.figures.canvas import BLUE, GREEN, MUTED, ORANGE, PURPLE, Canvas


def route(logits: NDArray[np.float64], experts_per_token: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Softmax over the K largest of logits (T, E): weights (T, K) and experts (T, K)."""
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :experts_per_token]
    return np.exp(log_softmax(np.take_along_axis(logits, chosen, 1))), chosen


def mixture_of_experts(tokens: int = 8, experts: int = 4) -> Canvas:
    """Pairs of a token and an expert, sorted by expert and put back."""
    canvas = Canvas(462, f"Sparse mixture of experts: {tokens} tokens, {experts} experts, top 2")
    logits = np.random.default_rng(3).normal([1.0, 0.6, -4.0, 0.4], 1.0, (tokens, experts))
    weights, chosen = route(logits, 2)
    dispatch = Dispatch.from_chosen(chosen, experts)
    colours = (BLUE, ORANGE, PURPLE, GREEN)
    size, left = 46, 32
    rows = (98, 232, 366)
    for pair, sorted_pair in enumerate(dispatch.inverse):
        token, choice = divmod(pair, 2)
        expert = chosen[token, choice]
        x, sorted_x = left + (pair + 0.5) * size, left + (sorted_pair + 0.5) * size
        canvas.line([(x, rows[0] + 32), (sorted_x, rows[1] - 2)], colours[expert], 1.6)
        canvas.line([(sorted_x, rows[1] + 60), (x, rows[2] - 2)], colours[expert], 1.6)
        canvas.cell(x - 21, rows[0], 42, 30, colours[expert], f"e{expert}")
        canvas.cell(sorted_x - 21, rows[1], 42, 30, colours[expert], dispatch.tokens[sorted_pair])
        canvas.cell(x - 21, rows[2], 42, 30, colours[expert], f"{weights[token, choice]:.2f}")
    for token in range(tokens):
        start, stop = left + 2 * token * size, left + 2 * (token + 1) * size
        canvas.brace(start, stop, rows[0] - 7, f"token {token}", above=True)
        canvas.brace(start, stop, rows[2] + 37, f"output {token}")
    draw_experts(canvas, dispatch, colours, left, rows[1] + 31, size)
    return canvas


def draw_experts(
    canvas: Canvas, dispatch: Dispatch, colours: Sequence[str], left: float, y: float, size: float
) -> None:
    """The tokens that each expert serves, and which expert serves none."""
    spans = list(zip(dispatch.bounds, dispatch.bounds[1:], strict=False))
    for expert, (start, stop) in enumerate(spans):
        if stop > start:
            label = f"e{expert}: {stop - start} tokens"
            canvas.cell(left + start * size + 2, y, (stop - start) * size - 4, 28, colours[expert], label)
    idle = [str(expert) for expert, (start, stop) in enumerate(spans) if start == stop]
    note = f"; expert {', '.join(idle)}, which no token chose, is not touched" if idle else ""
    canvas.text(24, 442, f"sorted by expert, served, put back, weighted{note}", align="left", colour=MUTED)
