"""Output at a terminal: generated text, several answers in order, and a progress line."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from mistral.cli.status_line import is_capable
from mistral.text import json_line

CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
HARMLESS = CONTROL | {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}
PATIENCE, INTERVAL = 0.5, 0.1  # seconds before the first line, and between two
RULE = "====================="


class Board:
    """Shows answers that grow side by side one after the other, the first of them as it grows."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self.texts, self.finished, self.current, self.shown = list(prompts), [False] * len(prompts), 0, 0

    def add(self, index: int, text: str, finished: bool) -> None:
        """Take more text of answer `index`, and show what of it is next in order."""
        self.texts[index] += text
        self.finished[index] |= finished
        while self.current < len(self.texts):
            write(self.texts[self.current][self.shown :])
            self.shown = len(self.texts[self.current])
            if not self.finished[self.current]:
                return
            print(f"\n{RULE}", flush=True)
            self.current, self.shown = self.current + 1, 0


def result_line(value: Any) -> str:
    """A value as one line of JSON for standard output, its characters as themselves where the encoding has them."""
    return json_line(value, getattr(sys.stdout, "encoding", None) or "utf-8")


def write(text: str, end: str = "") -> None:
    r"""Show text that comes of a model, at once. On a terminal its control characters are visible, as \x1b.

    So no answer can move the cursor, change what stands above, or type. Line breaks and tabs stay; a carriage return,
    which would let a line be written over, goes.
    """
    print(text.translate(HARMLESS) if sys.stdout.isatty() else text, end=end, flush=True)


class ProgressLine:
    """Shows `verb done/total` on standard error while work takes long; nothing where that is not a terminal."""

    def __init__(self, verb: str, unit: str, scale: float = 1, out: TextIO | None = None, total: int = 0) -> None:
        """`total`: of the work, where `layer` is called before anything is done."""
        self.verb, self.unit, self.scale, self.out = verb, unit, scale, out or sys.stderr
        self.shown, self.hidden, self.next = False, False, time.monotonic() + PATIENCE
        self.done, self.total = 0, total

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total`, in units of 1 / scale; complete work takes the line away."""
        self.done, self.total = done, total
        if done >= total:
            self.clear()
        else:
            self._show(done)

    def layer(self, tokens: int, share: float) -> None:
        """A step that adds `tokens` to what is done is through this share of the layers; see `Engine.on_layer`."""
        if self.done < self.total:
            self._show(min(self.total, self.done + int(tokens * share)))

    def _show(self, done: int) -> None:
        if not self.hidden and is_capable(self.out) and time.monotonic() >= self.next:
            counts = [str(n) if self.scale == 1 else f"{n / self.scale:.3g}" for n in (done, self.total)]
            figures = f"{' of '.join(counts)} {self.unit}"
            self.out.write(f"\r\x1b[K{self.verb} {figures} ({100 * done // self.total} %)")
            self.out.flush()
            self.shown, self.next = True, time.monotonic() + INTERVAL

    def clear(self) -> None:
        """Remove the progress line from the terminal, if one is shown."""
        if self.shown:
            self.out.write("\r\x1b[K")
            self.out.flush()
            self.shown = False
        self.next = time.monotonic() + PATIENCE

    def give_way(self) -> None:
        """An answer is shown now: take the line away, for good where the answer grows on a terminal."""
        self.clear()
        self.hidden |= sys.stdout.isatty()
