"""Figures of the rolling cache: which slot holds what, and what each chunk of a prompt sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mistral.model.attention_plan import RowPlan, Source, plan_row, slot_positions
from tools.figures.canvas import BLUE, MUTED, ORANGE, PALE, PALE_BLUE, PALE_ORANGE, VERMILION, Canvas


def rolling_buffer(window: int = 4, lengths: tuple[int, ...] = (3, 6, 9)) -> Canvas:
    """What each slot holds as the rows of a ragged batch grow."""
    canvas = Canvas(316, f"Rolling buffer: position p lives in slot p % slots, window {window}")
    size, left, top = 34, 70, 120
    for row, length in enumerate(lengths):
        slots = min(window, length)  # as in the paper; the cache has some more
        canvas.text(left, 66, f"row {row}", align="left", weight="bold")
        canvas.text(left, 84, f"{length} tokens, {slots} slots", align="left")
        for seen in range(1, length + 1):
            before, after = slot_positions(seen - 1, slots), slot_positions(seen, slots)
            canvas.text(left + (seen - 0.5) * size, top - 12, str(seen), colour=MUTED)
            for slot in range(slots):
                written = after[slot] != before[slot]
                colour = PALE_BLUE if not written else VERMILION if before[slot] >= 0 else ORANGE
                empty = after[slot] < 0
                canvas.cell(
                    left + (seen - 1) * size, top + slot * size, size, size, PALE if empty else colour,
                    "" if empty else after[slot],
                )  # fmt: skip
        left += length * size + 34
    canvas.text(60, top - 12, "seen", colour=MUTED, align="right")
    for slot in range(window):
        canvas.text(60, top + (slot + 0.5) * size, f"slot {slot}", colour=MUTED, align="right")
    canvas.legend(
        70, 288, [(ORANGE, "written"), (VERMILION, "written over an older one"), (PALE_BLUE, "kept"), (PALE, "empty")]
    )
    return canvas


@dataclass(frozen=True)
class Step:
    """One step of a row: its plan, the position of each query and key, and what the slots hold after it."""

    plan: RowPlan
    queries: NDArray[np.int64]
    keys: NDArray[np.int64]
    cached: int  # how many of the keys come out of the cache
    after: NDArray[np.int64]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Which query sees which key (T, S)."""
        (block,) = self.plan.blocks
        return np.ones((len(self.queries), len(self.keys)), np.bool_) if block.mask is None else block.mask


def prefill_steps(prompt: int, chunk: int, window: int, slots: int) -> list[Step]:
    """The chunks of a prompt, and the first token after it."""
    steps = []
    for before in [*range(0, prompt, chunk), prompt]:
        seqlen = 1 if before == prompt else min(chunk, prompt - before)
        plan = plan_row(seqlen, before, window, slots)
        queries, after = np.arange(before, before + seqlen), slot_positions(before + seqlen, slots)
        new = 0 if plan.source is Source.SLOTS else seqlen  # keys that do not come out of the cache
        steps.append(Step(plan, queries, plan.keys, len(plan.keys) - new, after))
    return steps


def chunked_prefill(prompt: int = 10, chunk: int = 4, window: int = 5) -> Canvas:
    """Which keys the queries of each chunk see, and the cache after it."""
    canvas = Canvas(372, f"Chunked prefill: a prompt of {prompt} tokens, chunk {chunk}, window {window}")
    slots = window  # as in the paper; the cache has some more
    size, left = 24, 46
    for number, step in enumerate(prefill_steps(prompt, chunk, window, slots)):
        first, last = step.queries[[0, -1]]
        name = f"chunk {number}: {first} to {last}" if first < last else f"then token {first}"
        canvas.text(left, 66, name, align="left", weight="bold")
        draw_step(canvas, step, left, 104, size)
        left += max(len(step.keys), slots) * size + (34 if len(step.keys) > slots else 30)
    canvas.text(24, 248, f"the cache afterwards, slots 0 to {slots - 1}", align="left", colour=MUTED)
    upper = [(PALE_BLUE, "key in the cache"), (PALE_ORANGE, "key of the chunk"), (PALE, "empty, or not seen")]
    lower = [(BLUE, "the query sees this key"), (ORANGE, "slot written in this step")]
    canvas.legend(24, 318, upper)
    canvas.legend(24, 344, lower)
    canvas.text(504, 331, "rows are queries, columns are keys", align="left", colour=MUTED)
    return canvas


def draw_step(canvas: Canvas, step: Step, left: float, top: float, size: float) -> None:
    """Keys along the top, a row for each query, and the slots below."""
    for j, key in enumerate(step.keys):
        colour = PALE if key < 0 else PALE_BLUE if j < step.cached else PALE_ORANGE
        canvas.cell(left + j * size, top - size, size, size, colour, key if key >= 0 else "")
    for i, query in enumerate(step.queries):
        canvas.text(left - 6, top + (i + 0.5) * size, str(query), colour=MUTED, align="right")
        for j, seen in enumerate(step.mask[i]):
            canvas.cell(left + j * size, top + i * size, size, size, BLUE if seen else PALE)
    written = {slot for span, _ in step.plan.writes for slot in range(span.start, span.stop)}
    for slot, position in enumerate(step.after):
        colour = ORANGE if slot in written else PALE if position < 0 else PALE_BLUE
        canvas.cell(left + slot * size, 262, size, size, colour, position if position >= 0 else "")
