"""The status line at the bottom of a terminal, shown until there is output. Uses only the standard library.

While it is on, standard output and standard error take it away before anything else is written. Where standard error is
no terminal, the program says in one plain line what it loads, if that takes longer than a moment.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

START, STOPPING = "starting ...", "stopping ..."
PATIENCE = 0.5  # seconds until loading is told of where there is no terminal; the imports before have taken some
ERASE_LINE, RED, YELLOW, DIM, RESET = "\x1b[K", "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"
ERASE = f"\r{ERASE_LINE}"
KINDS = {"error": RED, "warning": YELLOW, "note": DIM}
KIND = re.compile(rf"({'|'.join(KINDS)}):")


def is_capable(stream: TextIO) -> bool:
    """Whether the stream is a terminal that can move its cursor and erase."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colour(stream: TextIO) -> bool:
    """Whether colours are wanted there; NO_COLOR says that they are not."""
    return is_capable(stream) and not os.environ.get("NO_COLOR")


def dim(text: str) -> str:
    """The text, less bright where standard error has colours."""
    return f"{DIM}{text}{RESET}" if has_colour(sys.stderr) else text


class StatusLine:
    """What is going on, in a line of the terminal `out`; where it is none, told once when it takes long."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.capable, self.text, self.shown = out, is_capable(out), "", False
        self._late = self._told = False
        self._timer = threading.Timer(PATIENCE, self._lose_patience)
        self._timer.daemon = True
        if not self.capable:
            self._timer.start()

    def show(self, text: str) -> None:
        """Say that `text` is going on now."""
        self.text = text
        if self.capable:
            self.shown = True
            self.out.write(f"{ERASE}{text}")
            self.out.flush()
        elif self._late:
            self._tell()

    def clear(self) -> None:
        """Take the line away."""
        if self.shown:
            self.shown = False
            self.out.write(ERASE)
            self.out.flush()

    def finish(self) -> None:
        """Nothing is to be told of any more."""
        self._timer.cancel()
        self.clear()
        self._told = True
        if getattr(signal.getsignal(signal.SIGINT), "__self__", None) is self:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def watch(self) -> None:
        """Until `finish`, Ctrl-C is answered at once; one that is ignored stays ignored."""
        if self.capable and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._stop)

    def say_stopping(self) -> None:
        """Say at once that Ctrl-C has been heard; may be called from a signal's handler."""
        if self.capable:
            self.shown = True
            os.write(self.out.fileno(), f"{ERASE}{STOPPING}".encode())  # a write of the stream may be under way

    def _stop(self, signal_number: int, frame: FrameType | None) -> None:
        self.say_stopping()
        raise KeyboardInterrupt

    def _lose_patience(self) -> None:
        self._late = True
        if self.text:
            self._tell()

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            with suppress(OSError):
                self.out.write(f"{self.text.removesuffix(' ...')}\n")
                self.out.flush()


class Stream(io.TextIOWrapper):
    """A standard stream above the status line. On a terminal, a line that begins with "error:" and such is coloured."""

    def __init__(self, stream: io.TextIOWrapper, line: StatusLine, coloured: bool, is_error: bool = False) -> None:
        """`is_error`: it is for messages, and the work goes on where they cannot be written, as on a full disk."""
        super().__init__(
            stream.buffer, stream.encoding, stream.errors, line_buffering=stream.line_buffering, write_through=True
        )
        self.line, self._coloured, self._begins, self._reset = line, coloured, True, ""
        self._is_error = is_error

    def write(self, text: str) -> int:
        """Write text, without the status line."""
        if self.line.shown:
            self.line.clear()
        begins, self._begins = self._begins, text.endswith(("\n", ERASE)) if text else self._begins
        found = KIND.match(text) if begins and self._coloured else None
        if found:
            text, self._reset = KINDS[found[1]] + text, RESET
        if self._reset and "\n" in text:
            text, self._reset = text.replace("\n", f"{RESET}\n", 1), ""
        with self._written():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is left."""
        with self._written():
            super().flush()

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._is_error or isinstance(error, BrokenPipeError):
                raise


@contextmanager
def status_line() -> Iterator[None]:
    """The time in which the program has a status line, until `loaded`."""
    out, err = sys.stdout, sys.stderr
    if not isinstance(err, io.TextIOWrapper) or not isinstance(out, io.TextIOWrapper):
        yield
        return
    line = StatusLine(err)
    line.watch()
    sys.stderr = Stream(err, line, has_colour(err), is_error=True)
    if line.capable and out.isatty():
        sys.stdout = Stream(out, line, coloured=False)
    try:
        yield
    finally:
        line.finish()
        for name, before in (("stdout", out), ("stderr", err)):
            if isinstance(stream := getattr(sys, name), Stream):
                with suppress(OSError):  # what is still to be written cannot be
                    stream.detach()
                setattr(sys, name, before)
        try:
            err.flush()
        except OSError:  # it would fail once more at exit, and give the code of that
            os.dup2(os.open(os.devnull, os.O_WRONLY), err.fileno())


def status(text: str) -> None:
    """Say what is going on, where the program has a line for that."""
    if isinstance(sys.stderr, Stream):
        sys.stderr.line.show(text)


def loaded() -> None:
    """What takes long before there is something to show is done."""
    if isinstance(sys.stderr, Stream):
        sys.stderr.line.finish()


def say_stopping() -> None:
    """Say that Ctrl-C has been heard, where the program has a line for that, until `answered_stop`."""
    if isinstance(sys.stderr, Stream):
        sys.stderr.line.say_stopping()


def answered_stop() -> None:
    """Take away what `say_stopping` has shown."""
    if isinstance(sys.stderr, Stream):
        sys.stderr.line.clear()
