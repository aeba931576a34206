"""Draw the figures of docs/IDEAS.md from what the package's own functions compute.

    python -m tools.draw_figures [folder]

Writes one SVG for each idea, into docs/figures unless another folder is named. Needs matplotlib, and no MindSpore.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib import rc_context

from tools.figures.attention import grouped_query, sliding_window
from tools.figures.cache import chunked_prefill, rolling_buffer
from tools.figures.canvas import STYLE, Canvas
from tools.figures.drafts import speculation
from tools.figures.experts import mixture_of_experts
from tools.figures.pipeline import pipeline

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
DRAWINGS: dict[str, Callable[[], Canvas]] = {
    "sliding_window": sliding_window,
    "rolling_buffer": rolling_buffer,
    "chunked_prefill": chunked_prefill,
    "speculation": speculation,
    "grouped_query": grouped_query,
    "mixture_of_experts": mixture_of_experts,
    "pipeline": pipeline,
}


def draw(folder: Path) -> list[Path]:
    """Write every figure into a folder, made if need be; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with rc_context(STYLE):
        for name, drawing in DRAWINGS.items():
            files.append(folder / f"{name}.svg")
            drawing().save(files[-1])
    return files


if __name__ == "__main__":
    for file in draw(Path(sys.argv[1]) if len(sys.argv) > 1 else FIGURES):
        print(f"{file}: {file.stat().st_size} bytes")
