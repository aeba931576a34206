"""The server's log on standard error: a line for each request, without texts of prompts or answers."""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from contextlib import suppress

from mistral.errors import visible

MOST_WAITING = 10_000  # lines that a reader of standard error may be behind; what comes then is left out
MOST_LENGTH = 4096  # characters of a line


class Log(logging.Handler):
    """A log that its own thread writes: neither a full disk nor a stopped reader blocks the server."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: queue.Queue[str | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def say(self, text: str, most: int = MOST_LENGTH) -> None:
        """Write a line, with the time before it; characters that are not printable are written out."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {visible(text[:most])}"
        with suppress(queue.Full):
            self._lines.put_nowait(line)

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
        with suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(1)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with suppress(OSError, ValueError):
                print(line, file=sys.stderr, flush=True)
