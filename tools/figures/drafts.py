"""The figure of speculative decoding: a draft, what is kept of it, and what the slots hold after."""

from __future__ import annotations

from mistral.model.attention_plan import plan_writes, slot_positions
from tools.figures.canvas import BLUE, GREEN, MUTED, ORANGE, PALE, PALE_BLUE, VERMILION, Canvas

CHOSEN = ("cat", "sat", "on", "a", "mat")  # what the row's own sampler draws, place by place
DRAFTS = ("sat", "on", "the", "mat")


def kept_drafts() -> int:
    """How many drafts are the same as what is drawn in their places."""
    same = [draft == chosen for draft, chosen in zip(DRAFTS, CHOSEN[1:], strict=True)]
    return same.index(False)


def speculation(window: int = 4, spare: int = 4, before: int = 9) -> Canvas:
    """One step of a row with drafts: the places, what is drawn there, and the slots before and after."""
    canvas = Canvas(372, f"A step with {len(DRAFTS)} drafts: window {window}, {window + spare} slots")
    kept, size, left = kept_drafts(), 82, 196
    for row, label in enumerate(("position", "computed in one step", "drawn in this place")):
        canvas.text(left - 12, 72 + 36 * row, label, align="right", colour=MUTED)
    for place, token in enumerate((CHOSEN[0], *DRAFTS)):
        x, right = left + place * size, place <= kept
        canvas.text(x + size / 2, 72, str(before + place), colour=MUTED)
        canvas.cell(x, 92, size, 32, BLUE if not place else GREEN if right else VERMILION, token)
        canvas.cell(x, 128, size, 32, ORANGE if right else PALE, CHOSEN[place + 1] if right else "")
    end = f"{kept} drafts are kept, then the row has a token of its own, and goes back by {len(DRAFTS) - kept}"
    canvas.text(24, 184, end, align="left")
    draw_slots(canvas, left, window, window + spare, before, kept)
    colours = (BLUE, "drawn before"), (GREEN, "right draft"), (VERMILION, "wrong draft")
    canvas.legend(24, 348, [*colours, (PALE_BLUE, "older"), (PALE, "not seen any more")])
    return canvas


def draw_slots(canvas: Canvas, left: float, window: int, slots: int, before: int, kept: int) -> None:
    """What the slots hold before the step, after it, and of that what the next token sees."""
    fed, cell, top = 1 + len(DRAFTS), 60, 214
    new = {slot for span, _ in plan_writes(before, fed, slots) for slot in range(span.start, span.stop)}
    following = before + kept + 1
    for line, label in enumerate(("slots before", "slots after", f"what token {following} sees")):
        canvas.text(left - 12, top + 40 * line + 16, label, align="right", colour=MUTED)
        for slot, position in enumerate(slot_positions(before + fed if line else before, slots)):
            colour = PALE_BLUE
            if line and slot in new:
                colour = BLUE if position == before else GREEN if position < following else VERMILION
            if line == 2 and not following - window < position < following:
                colour = PALE
            canvas.cell(left + slot * cell, top + 40 * line, cell, 32, colour, position)
