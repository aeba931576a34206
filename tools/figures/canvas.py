"""A drawing for docs/IDEAS.md: 800 pixels wide, on a white card that reads on light and dark pages alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch, Rectangle

WIDTH = 800
PIXELS_PER_INCH = 96
# Okabe and Ito's colours, which every kind of colour vision tells apart, and greys.
BLUE, ORANGE, GREEN, PURPLE, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"
PALE_BLUE, PALE_ORANGE = "#CFE3F1", "#FBE6BF"
INK, MUTED, GREY, PALE = "#1F2933", "#52606D", "#CBD2D9", "#EDF0F3"
# Text stays text, in whatever sans serif the reader has: DejaVu, by which it is laid out, is among the widest.
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "svg.fonttype": "none",
    "svg.hashsalt": "mistral",
}


class Canvas:
    """Positions and sizes are pixels from the top left corner; y grows downwards."""

    def __init__(self, height: int, title: str) -> None:
        """An empty card with a title."""
        self.figure = Figure(figsize=(WIDTH / PIXELS_PER_INCH, height / PIXELS_PER_INCH), dpi=PIXELS_PER_INCH)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.axes.set_xlim(0, WIDTH)
        self.axes.set_ylim(height, 0)
        self.title = title
        card = FancyBboxPatch((1, 1), WIDTH - 2, height - 2, boxstyle="round,pad=0,rounding_size=12")
        card.set(facecolor="white", edgecolor=GREY)
        self._add(card)
        self.text(24, 30, title, size=15, weight="bold", align="left")

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 12,
        colour: str = INK,
        weight: str = "normal",
        align: Literal["left", "center", "right"] = "center",
    ) -> None:
        """Text centred on y; `size` in pixels."""
        points = size * 72 / PIXELS_PER_INCH
        self.axes.text(x, y, text, fontsize=points, color=colour, weight=weight, ha=align, va="center_baseline")

    def cell(self, x: float, y: float, width: float, height: float, colour: str, label: object = "") -> None:
        """A filled rectangle with a white border and a label that contrasts with it."""
        self._add(Rectangle((x, y), width, height, facecolor=colour, edgecolor="white", linewidth=1.2))
        if label != "":
            dark = colour in (BLUE, GREEN, VERMILION, MUTED)
            self.text(x + width / 2, y + height / 2, str(label), colour="white" if dark else INK)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1.2) -> None:
        """A line through points."""
        xs, ys = zip(*points, strict=True)
        self.axes.add_line(Line2D(xs, ys, color=colour, linewidth=width, clip_on=False, solid_capstyle="round"))

    def brace(self, left: float, right: float, y: float, label: str, above: bool = False) -> None:
        """A bracket over the span from left to right, below (or above) y, and its label."""
        tip = -5 if above else 5
        self.line([(left + 2, y - tip), (left + 2, y), (right - 2, y), (right - 2, y - tip)], MUTED, 1)
        self.text((left + right) / 2, y + 2.4 * tip, label, colour=MUTED)

    def legend(self, x: float, y: float, entries: Sequence[tuple[str, str]]) -> None:
        """Colours and what they mean, in a row."""
        for colour, label in entries:
            self.cell(x, y - 8, 16, 16, colour)
            self.text(x + 22, y, label, align="left", colour=MUTED)
            x += 42 + 7.2 * len(label)

    def save(self, path: Path) -> None:
        """Write the SVG: the same drawing gives the same bytes."""
        metadata = {"Date": None, "Creator": "tools/draw_figures.py", "Title": self.title}
        self.figure.savefig(path, format="svg", transparent=True, metadata=metadata)

    def _add(self, patch: Patch) -> None:
        patch.set_clip_on(False)
        self.axes.add_patch(patch)
