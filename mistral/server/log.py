"""What the server writes to standard error: a line for each request, without any text of prompts or answers."""

from __future__ import annotations

import queue
import sys
import threading
import time
from contextlib import suppress

from mistral.errors import visible

MOST_WAITING = 10_000  # lines that a reader of standard error may be behind; what comes then is left out
MOST_LENGTH = 4096  # characters of a line


class Log:
    """Lines, written by a thread of its own: neither a full disk nor a reader who has stopped holds the server up."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def say(self, text: str, most: int = MOST_LENGTH) -> None:
        """Write a line, with the time before it; characters that are not printable are written out."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {visible(text[:most])}"
        with suppress(queue.Full):
            self._lines.put_nowait(line)

    def close(self) -> None:
        """Write what is left, for a second at most."""
        with suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(1)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with suppress(OSError, ValueError):
                print(line, file=sys.stderr, flush=True)
