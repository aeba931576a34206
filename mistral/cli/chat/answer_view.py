"""How an answer is shown as it grows: on a terminal in whole words, its Markdown line by line, and plain elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import sys
from typing import Protocol

from mistral.cli import console
from mistral.cli.chat.markdown_line import rendered
from mistral.cli.chat.thought_view import BEGIN, END, ThoughtView
from mistral.cli.chat.word_wrap import WordWrap
from mistral.cli.status_line import ERASE_LINE, RESET, answered_stop, has_colour, say_stopping

STOPPING, CODE = " [stopping]", "\x1b[36m"
FENCE = re.compile(r"\s*(`{3,}|~{3,})")
VERBATIM = re.compile(r"\s*(`{3,}|~{3,}|\|)|(\t| {4,})(?!\s*([-*+]|\d{1,9}[.)])\s)")  # code and tables
OPEN = re.compile(r"\s*(`{0,2}|~{0,2}|[-*+]|\d{1,9}[.)]?)$")  # a line that may become one of these, or not


class View(Protocol):
    """Where an answer is shown. `ends_in_thought`: once all has come, the cursor stands behind a thought."""

    ends_in_thought: bool

    def think(self, text: str) -> None:
        """More of what the model thinks."""

    def push(self, text: str) -> None:
        """More of the answer."""

    def end(self) -> None:
        """All of it has come; the cursor stays behind its last word."""

    def stop(self) -> None:
        """Ctrl-C has been pressed; may be called at any time, also while something is pushed."""


class PlainView:
    """An answer as it comes, or not at all where `shown` is False.

    Thoughts, where they are wanted, go to standard error: standard output has answers alone.
    """

    def __init__(self, shown: bool, thoughts: bool = False) -> None:
        self._shown, self._thoughts, self._thinking = shown, shown and thoughts, False
        self.ends_in_thought = False  # standard output has none

    def think(self, text: str) -> None:
        """See `View`."""
        if self._thoughts:
            begin = "" if self._thinking else BEGIN
            self._thinking = True
            print(f"{begin}{text.translate(console.HARMLESS)}", end="", file=sys.stderr, flush=True)

    def push(self, text: str) -> None:
        """See `View`."""
        if text:
            self._end_thought()
        if self._shown:
            console.write(text)

    def end(self) -> None:
        """See `View`."""
        self._end_thought()
        answered_stop()

    def _end_thought(self) -> None:
        if self._thinking:
            self._thinking = False
            print(END, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """See `View`."""
        if self._shown and sys.stdout.isatty():
            os.write(sys.stdout.fileno(), STOPPING.encode())  # the status line would take an answer's place
        else:
            say_stopping()


class TerminalView:
    """An answer on a terminal that can erase.

    Text appears as soon as its words are whole. Where a line has Markdown's marks, it is shown again without them, as
    soon as it is complete; code and tables stay as they are, unbroken. Control characters are visible. Thoughts stand
    before it, or where they are not wanted, a word that says what goes on.
    """

    def __init__(self, markdown: bool, thoughts: bool = True) -> None:
        self._markdown, self._thoughts, self._colour = markdown, thoughts, has_colour(sys.stdout)
        self._thought: ThoughtView | None = None  # while it goes on
        self.ends_in_thought = False
        self._fence = ""  # what begins the block of code that the line is in
        self._busy = self._marked = self._stopped = False
        self._begin_line()

    def think(self, text: str) -> None:
        """See `View`."""
        if self._thought is None:
            if self._line:
                self.push("\n")
            self._thought = ThoughtView(self._thoughts, self._colour)
        self._write(self._thought.push(text))

    def push(self, text: str) -> None:
        """See `View`."""
        if self._thought:
            text = text.lstrip("\r\n")
            if not text:
                return
            self._end_thought(answered=True)
        for piece in re.split("(\n)", text.translate(console.HARMLESS)):
            if piece == "\n":
                self._complete()
                self._write("\n")
                self._begin_line()
            elif piece:
                self._add(piece)

    def end(self) -> None:
        """See `View`."""
        if self._thought:
            self.ends_in_thought = self._thoughts
            self._end_thought(answered=False)
        self._complete()
        self._write("")

    def stop(self) -> None:
        """See `View`."""
        self._stopped = True
        if not self._busy:
            self._mark()

    def _end_thought(self, answered: bool) -> None:
        assert self._thought
        end, self._thought = self._thought.end(answered), None
        self._begin_line()
        self._write(end)

    def _begin_line(self) -> None:
        self._size = shutil.get_terminal_size()
        self._line, self._verbatim, self._wrap = "", bool(self._fence), WordWrap(self._size.columns - 1)
        self._held = not self._fence  # until it is clear what the line is

    def _add(self, text: str) -> None:
        self._line += text
        if self._held:
            if OPEN.match(self._line):
                return
            text = self._decide()
        self._write(self._code(text) if self._verbatim else self._wrap.push(text))

    def _decide(self) -> str:
        """Settle what the line is -> what has been kept back of it."""
        self._held, self._verbatim = False, bool(VERBATIM.match(self._line))
        return self._line

    def _code(self, text: str) -> str:
        return f"{CODE}{text}{RESET}" if self._colour and self._fence else text

    def _complete(self) -> None:
        """All of the line has come."""
        if self._held and self._line:
            kept = self._decide()
            self._write(kept if self._verbatim else self._wrap.push(kept))
        fence = FENCE.match(self._line)
        if fence and not self._fence:
            self._fence = fence[1]
        elif fence and fence[1].startswith(self._fence) and self._line.strip() == fence[1]:
            self._fence = ""
        if not self._verbatim:
            self._write(self._wrap.flush())
            self._show_again()

    def _show_again(self) -> None:
        """Put the line with its marks as Markdown means them in the place of the line as it came."""
        rows = self._wrap.breaks
        if not self._markdown or rows >= self._size.lines - 1 or shutil.get_terminal_size() != self._size:
            return
        text = rendered(self._line, self._size.columns - 1, self._colour)
        if text is not None:
            up = f"\x1b[{rows}A" if rows else ""
            self._write(f"\r{up}\x1b[J{text}")

    def _write(self, text: str) -> None:
        self._busy = True
        if self._marked:
            text, self._marked = f"\x1b[{len(STOPPING)}D{ERASE_LINE}{text}", False
        sys.stdout.write(text)
        sys.stdout.flush()
        self._busy = False
        if self._stopped:
            self._mark()

    def _mark(self) -> None:
        """Show that Ctrl-C has been heard, until more is written."""
        self._stopped = False
        column = self._thought.column if self._thought else self._wrap.column
        if column + len(STOPPING) < self._size.columns:
            self._marked = True
            sys.stdout.write(STOPPING)
            sys.stdout.flush()
