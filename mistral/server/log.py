"""The server's log on standard error: a line for each request, without texts of prompts or answers."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from contextlib import suppress

from mistral.errors import visible

MOST_WAITING = 10_000  # lines that a reader of standard error may be behind; what comes then is left out
MOST_LENGTH = 4096  # characters of a line
GATHERING_SECONDS = 0.05  # for which a line waits for others: waking the writing thread costs as much as a request


class Log(logging.Handler):
    """A log that its own thread writes: neither a full disk nor a stopped reader blocks the server."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines, self._come, self._closing = deque[str](), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def say(self, text: str, most: int = MOST_LENGTH) -> None:
        """Write a line, with the time before it; characters that are not printable are written out."""
        if len(self._lines) < MOST_WAITING:
            self._lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {visible(text[:most])}\n")
        if not self._come.is_set():
            self._come.set()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message of a library; of its exception only the type."""
        kind = record.exc_info[0] if record.exc_info else None
        self.say(f"{record.name}: {record.getMessage()}{f' ({kind.__name__})' if kind else ''}")

    def take_over(self, *names: str) -> None:
        """Become the only handler of these loggers."""
        for name in names:
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [self], False

    def close(self) -> None:
        """Write the remaining lines, for at most a second."""
        super().close()
        self._closing.set()
        self._come.set()
        self._thread.join(1)

    def _write(self) -> None:
        ended = False
        while not ended:
            self._come.wait()
            ended = self._closing.wait(GATHERING_SECONDS)
            self._come.clear()  # before lines are taken: who says more from now on sets it again
            text = "".join(self._lines.popleft() for _ in range(len(self._lines)))
            with suppress(OSError, ValueError):
                print(text, end="", file=sys.stderr, flush=True)
