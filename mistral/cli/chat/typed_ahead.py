"""Lines typed while an answer is generated, which may stop it: under mpirun there is no terminal and no Ctrl-C."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections import deque
from collections.abc import Iterator

from mistral.pipeline.launch import keeps_lines_back, launcher_input_ended

MARK = "> "
STOP, QUIT = b"/stop", (b"/quit", b"/exit")
MOMENT = 0.2  # seconds
STOP_HINT = "An empty line, or /stop, stops an answer; /quit leaves."
STREAM_HINT = "note: mpirun shows whole lines only; started with --stream-buffering 0, it shows each word at once"


class TypedAhead:
    """Lines of standard input, read while an answer is written: one of them may stop it.

    For mpirun, whose processes get neither a terminal nor Ctrl-C. An empty line stops an answer only as long as more
    input may come: where all of it is there at once, nobody is typing.
    """

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._ended, self._changed = False, threading.Condition()
        threading.Thread(target=self._read, args=(sys.stdin.fileno(),), daemon=True).start()

    def _read(self, file: int) -> None:
        rest, quiet = b"", 0
        while quiet < 2:  # what mpirun has read and not passed on yet comes within a moment
            if not select.select([file], [], [], MOMENT)[0]:
                quiet = quiet + 1 if launcher_input_ended() else 0
                continue
            data, quiet = os.read(file, 1 << 16), 0  # not through sys.stdin, which a thread would hold locked at exit
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            with self._changed:
                self._lines.extend(lines)
                self._changed.notify()
        with self._changed:
            self._lines.extend([rest] if rest else [])
            self._ended = True
            self._changed.notify()

    def stop(self) -> bool:
        """Whether the next line asks to stop; then it is used up, unless it asks to leave."""
        with self._changed:
            line = self._lines[0].strip() if self._lines else None
            asked = line == STOP or (line == b"" and not (self._ended or launcher_input_ended()))
            if asked:
                self._lines.popleft()
            return asked or line in QUIT

    def lines(self) -> Iterator[bytes]:
        """Each line, with a mark on standard error where one is waited for."""
        print(STOP_HINT, file=sys.stderr)
        if keeps_lines_back():
            print(STREAM_HINT, file=sys.stderr)
        while True:
            print(MARK, end="\n" if keeps_lines_back() else "", file=sys.stderr, flush=True)
            line = b""
            while line.strip() in (b"", STOP):
                with self._changed:
                    self._changed.wait_for(lambda: self._lines or self._ended)
                    line = self._lines.popleft() if self._lines else QUIT[0]
                if line.strip() in QUIT:
                    print(file=sys.stderr)
                    return
            yield line
