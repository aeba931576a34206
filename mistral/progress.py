"""A line on a terminal that says how far a long piece of work has come."""

from __future__ import annotations

import sys
import time
from typing import TextIO

PATIENCE, INTERVAL = 0.5, 0.1  # seconds before the first line, and between two


class Progress:
    """Shows `verb done/total` on standard error while work takes long; nothing where that is not a terminal."""

    def __init__(self, verb: str, unit: str, scale: float = 1, out: TextIO | None = None) -> None:
        self.verb, self.unit, self.scale, self.out = verb, unit, scale, out or sys.stderr
        self.shown, self.next = False, time.monotonic() + PATIENCE

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total`, in units of 1 / scale; complete work takes the line away."""
        if not self.out.isatty():
            return
        if done >= total:
            self.clear()
        elif time.monotonic() >= self.next:
            figures = f"{done / self.scale:.3g} of {total / self.scale:.3g} {self.unit}"
            self.out.write(f"\r\x1b[K{self.verb} {figures} ({100 * done // total} %)")
            self.out.flush()
            self.shown, self.next = True, time.monotonic() + INTERVAL

    def clear(self) -> None:
        """Take the line away."""
        if self.shown:
            self.out.write("\r\x1b[K")
            self.out.flush()
            self.shown = False
        self.next = time.monotonic() + PATIENCE
