"""Text on standard output. A terminal takes control characters for orders, and a file takes them as text."""

from __future__ import annotations

import sys

CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
HARMLESS = CONTROL | {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}


def write(text: str, end: str = "") -> None:
    r"""Show text that comes of a model, at once. On a terminal its control characters are visible, as \x1b.

    So no answer can move the cursor, change what stands above, or type. Line breaks and tabs stay; a carriage return,
    which would let a line be written over, goes.
    """
    print(text.translate(HARMLESS) if sys.stdout.isatty() else text, end=end, flush=True)
