"""The program at a terminal of its own, and what it shows there."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.command_line import PORTABLE, ROOT

READY, LEFT = "\x1b[?2004h", "\x1b[?2004l"  # what comes when a prompt begins and ends: pastes are wanted whole
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


CONTROLLING = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"
)


def shown(text: str) -> list[str]:
    """Lines as they stand at the end, without colours and what was erased."""
    lines = re.sub(r"[^\n]*\x1b\[K(?!\n)", "", text.replace("\r\n", "\n")).splitlines()
    return [line for each in lines if (line := ESCAPE.sub("", each).replace("\r", "").strip())]


class Terminal:
    """The program at a terminal of its own, so that Ctrl-C comes from there."""

    def __init__(self, state: Path, *arguments: object, redirect: Path | None = None) -> None:
        command = [sys.executable, "-m", "main", *map(str, arguments)]
        self.master, slave = pty.openpty()
        out = redirect.open("wb") if redirect else None
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONTROLLING, *command],
            stdin=slave, stdout=out or slave, stderr=slave, cwd=ROOT, start_new_session=True,
            env=os.environ | PORTABLE | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(state)},
        )  # fmt: skip
        os.close(slave)
        if out:
            out.close()
        self.seen = self.before = ""

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Everything shown up to and with `text`, from where the last call ended."""
        self.read_while(lambda: text not in self.seen, seconds)
        shown, _, self.seen = self.seen.partition(text)
        return shown + text

    def read_while(self, more_needed: Callable[[], bool], seconds: float = 60) -> None:
        """Read what is shown until it is enough."""
        deadline = time.monotonic() + seconds
        while more_needed():
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.master], [], [], left)[0], f"only {self.seen!r}"
            self.seen += os.read(self.master, 4096).decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self.master, text.encode(errors="surrogateescape"))

    def rest(self) -> str:
        """Wait for the end -> what was still shown."""
        self.process.wait(timeout=60)
        try:
            while select.select([self.master], [], [], 0)[0] and (data := os.read(self.master, 4096)):
                self.seen += data.decode(errors="replace")
        except OSError:  # how Linux says that nobody is left at the other end
            pass
        assert "Traceback" not in self.seen
        return self.seen
