"""Shows thinking at a terminal: dimmed, in whole words, without Markdown."""

from __future__ import annotations

import re
import shutil

from mistral.cli import console
from mistral.cli.chat.word_wrap import WordWrap
from mistral.cli.status_line import DIM, ERASE_LINE, RESET

BEGIN, END = "[thinking] ", " [/thinking]"  # where colours do not tell thoughts from answers
HIDDEN = "thinking ..."


class ThoughtView:
    """The thoughts before one answer: what is to be written of them. Line breaks at their beginning and end go.

    Where they are not `shown`, a word says what is going on until the answer begins.
    """

    def __init__(self, shown: bool, colour: bool) -> None:
        self._shown, self._colour = shown, colour
        self._begun, self._breaks = False, 0
        self._wrap = self._new_line()

    @property
    def column(self) -> int:
        """Where the cursor is."""
        return self._wrap.column if self._shown else len(HIDDEN)

    def push(self, text: str) -> str:
        """More of the thoughts -> what can be shown of it now."""
        if not self._shown:
            begun, self._begun = self._begun, True
            return "" if begun else self._dim(HIDDEN)
        shown = ""
        for piece in re.split("(\n)", text.translate(console.HARMLESS)):
            if piece == "\n":
                shown += self._wrap.flush()
                self._breaks += 1
            elif piece:
                shown += self._break() + self._wrap.push(piece)
        return self._dim(shown)

    def end(self, answered: bool) -> str:
        """What ends them; `answered`: an answer follows."""
        if not self._shown:
            return f"\r{ERASE_LINE}"
        end = self._wrap.flush() + ("" if self._colour or not self._begun else END)
        return self._dim(end) + "\n\n" * (answered and self._begun)

    def _break(self) -> str:
        """The line breaks that have come, now that more follows them; a mark before all of it."""
        shown = ""
        if not self._begun and not self._colour:
            shown = self._wrap.push(BEGIN)
        elif self._begun and self._breaks:
            shown, self._wrap = "\n" * self._breaks, self._new_line()
        self._begun, self._breaks = True, 0
        return shown

    def _new_line(self) -> WordWrap:
        return WordWrap(shutil.get_terminal_size().columns - 1)

    def _dim(self, text: str) -> str:
        return f"{DIM}{text}{RESET}" if text and self._colour else text
