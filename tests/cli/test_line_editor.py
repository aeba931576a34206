"""The interactive command at a terminal: editing, more than one line, the history, Ctrl-C and Ctrl-D."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.command_line import ROOT, write_model

READY, LEFT = "\x1b[?2004h", "\x1b[?2004l"  # what comes when a prompt begins and ends: pastes are wanted whole
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("terminal") / "model")


CONTROLLING = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"
)


class Terminal:
    """The program at a terminal of its own, so that Ctrl-C comes from there."""

    def __init__(self, state: Path, *arguments: object, redirect: Path | None = None) -> None:
        command = [sys.executable, "-m", "main", *map(str, arguments)]
        self.master, slave = pty.openpty()
        out = redirect.open("wb") if redirect else None
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONTROLLING, *command],
            stdin=slave, stdout=out or slave, stderr=slave, cwd=ROOT, start_new_session=True,
            env=os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(state)},
        )  # fmt: skip
        os.close(slave)
        if out:
            out.close()
        self.seen = ""

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


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Starts the program with the small model; what runs at the end is ended."""
    opened: list[Terminal] = []

    def begin(*options: object, redirect: Path | None = None) -> Terminal:
        opened.append(Terminal(tmp_path / "state", "interactive", model, *options, redirect=redirect))
        opened[-1].wait_for(READY)
        return opened[-1]

    yield begin
    for terminal in opened:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)


def test_ctrl_c_stops_an_answer_empties_a_line_and_leaves_at_an_empty_one(start: Callable[..., Terminal]) -> None:
    terminal = start(f"--max_tokens={10**9}", "--temperature=0", "--instruct")
    for question in ("one", "two"):
        terminal.type(f"{question}\r")
        terminal.wait_for(LEFT)
        terminal.read_while(lambda: len(terminal.seen) < 30)  # into the answer
        terminal.type("\x03")
        terminal.wait_for(" [stopped]")
        terminal.wait_for(READY)
    terminal.type("not sent")
    terminal.wait_for("not sent")
    terminal.type("\x03/stats\r")
    assert terminal.wait_for("tokens held").count(".") >= 2, "no third turn"
    terminal.wait_for(READY)
    terminal.type("\x03")
    assert ESCAPE.sub("", terminal.rest()).replace("\r", "").splitlines()[-1] == "interrupted"
    assert terminal.process.returncode == 130


def test_prompts_of_several_lines_the_history_and_ctrl_d(start: Callable[..., Terminal], tmp_path: Path) -> None:
    """Results alone go to a file; what is typed, and the marks, do not."""
    file = tmp_path / "answers"
    terminal = start("--max_tokens=3", "--json", redirect=file)
    up, paste = "\x1b[A", "\x1b[200~pasted\nlines\x1b[201~"
    for keys in ("a\x1b\rb\r", "c\\\rd\r", f"{paste}\r", up + up + up + "\r", "//e\r", "caf\udce9\r"):
        terminal.type(keys)
        shown = terminal.wait_for(READY)
    assert "error: the text is not valid Unicode at character 3" in shown
    terminal.type("/ex\t")
    terminal.wait_for("/exit")
    terminal.type("\r")
    terminal.rest()
    assert terminal.process.returncode == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["prompt"] for line in lines[:-1]] == ["a\nb", "c\nd", "pasted\nlines", "c\nd", "/e"]
    assert list(lines[-1]) == ["timings"]
    history = tmp_path / "state" / "mistral-mindspore" / "history"
    assert history.stat().st_mode & 0o777 == 0o600 and "+pasted\n+lines\n" in history.read_text()


def test_a_history_that_cannot_be_kept_is_none(start: Callable[..., Terminal], tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    terminal = start("--max_tokens=1")
    terminal.type("one\r")
    terminal.wait_for(READY)
    terminal.type("\x04")
    terminal.rest()
    assert terminal.process.returncode == 0
