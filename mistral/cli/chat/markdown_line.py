"""One line of Markdown as a terminal shows it, through rich."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

LONGEST = 4000  # characters of a line that is looked at
BLOCK = re.compile(
    r"(?P<indent>\s*)(?:(?P<heading>#{1,6})|(?P<bullet>[-*+])|(?P<number>\d{1,9}[.)])|(?P<quote>>))\s+(?=\S)"
)
# Marks count where they stand around words, so that 2*3*4, a**b and *args stay what they are.
INLINE = re.compile(
    r"(?P<ticks>`+)(?P<code>[^`]+)(?P=ticks)(?!`)"
    r"|(?<![\w*\\])(?P<stars>\*{1,3})(?=[^\s*])(?P<text>[^*]*[^\s*])(?P=stars)(?![\w*])"
)
STYLES = {"*": "italic", "**": "bold", "***": "bold italic"}
CODE, HEADING, MARK = "cyan", "bold", "dim"


def rendered(line: str, width: int, colour: bool) -> str | None:
    """The line with escape sequences instead of its marks, broken at `width`; None where it has no marks.

    All of its words stay, in their order. The line must have no control characters.
    """
    block = BLOCK.match(line)
    if len(line) > LONGEST or not (block or INLINE.search(line)):
        return None
    console = Console(
        width=width, force_terminal=True, color_system="standard" if colour else None, highlight=False, markup=False,
        emoji=False, legacy_windows=False,
    )  # fmt: skip
    first = shown = Text()
    if block:
        first = opening(block)
        line = line[block.end() :]
    heading = bool(block and block["heading"])
    shown = Text.assemble(*inline(line), style=HEADING if heading else "", end="")
    room = max(1, width - first.cell_len)
    margin = Text("│ ", MARK) if block and block["quote"] else Text(" " * first.cell_len)
    lines = list(shown.wrap(console, room))
    whole = Text("\n", end="").join(part for n, each in enumerate(lines) for part in [(margin if n else first) + each])
    with console.capture() as captured:
        console.print(whole, end="", soft_wrap=True)
    return captured.get()


def opening(block: re.Match[str]) -> Text:
    """What stands before the first word of a heading, an item of a list, or a quotation."""
    if block["heading"]:
        return Text(block["indent"])
    if block["quote"]:
        return Text(f"{block['indent']}│ ", MARK)
    mark = "•" if block["bullet"] else block["number"]
    return Text(f"{block['indent']}{mark} ")


def inline(line: str) -> Iterator[tuple[str, str]]:
    """Pieces of a line with their styles; the marks of bold, italic and code are left out."""
    place = 0
    for found in INLINE.finditer(line):
        yield line[place : found.start()], ""
        place = found.end()
        if found["code"]:
            yield found["code"], CODE
        else:
            yield from ((text, f"{STYLES[found['stars']]} {style}") for text, style in inline(found["text"]))
    yield line[place:], ""
