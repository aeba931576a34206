"""The line that says how far work has come."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from mistral.cli.console import INTERVAL, PATIENCE, ProgressLine
from tests.support.command_line import CommandLine, write_model

pytestmark = pytest.mark.usefixtures("all_compiled")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that moves when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setenv("TERM", "xterm")
    return Clock(monkeypatch)


def test_nothing_is_written_where_there_is_no_terminal(clock: Clock) -> None:
    out = io.StringIO()
    progress = ProgressLine("reading:", "GB", 1e9, out)
    for step in range(100):
        clock.now += PATIENCE
        progress(step, 100)
    progress.clear()
    assert out.getvalue() == ""


def test_nothing_is_written_where_the_terminal_cannot_erase(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    progress = ProgressLine("reading:", "tokens", out=out)
    clock.now = PATIENCE
    progress(1, 2)
    assert out.getvalue() == ""


def test_quick_work_shows_nothing(clock: Clock) -> None:
    out = Terminal()
    progress = ProgressLine("reading:", "tokens", out=out)
    for step in range(101):
        clock.now += PATIENCE / 200
        progress(step, 100)
    assert out.getvalue() == ""


def test_long_work_shows_how_far_it_has_come_on_one_line_and_takes_it_away(clock: Clock) -> None:
    out = Terminal()
    progress = ProgressLine("reading weights:", "GB", 1e9, out)
    clock.now = PATIENCE
    progress(1_500_000_000, 6_000_000_000)
    assert out.getvalue() == "\r\x1b[Kreading weights: 1.5 of 6 GB (25 %)"
    progress(6_000_000_000, 6_000_000_000)
    assert out.getvalue().endswith("(25 %)\r\x1b[K")
    progress.clear()
    assert out.getvalue().count("\x1b[K") == 2, "there is nothing left to take away"


def test_the_line_is_not_written_at_every_step(clock: Clock) -> None:
    out = Terminal()
    progress = ProgressLine("reading:", "tokens", out=out)
    clock.now = PATIENCE
    for step in range(1, 100):
        progress(step, 100)
    assert out.getvalue().count("\r") == 1
    clock.now += INTERVAL
    progress(99, 100)
    assert out.getvalue().endswith("99 of 100 tokens (99 %)")


def test_patience_begins_again_after_a_clear(clock: Clock) -> None:
    out = Terminal()
    progress = ProgressLine("reading:", "tokens", out=out)
    clock.now = PATIENCE
    progress.clear()
    progress(1, 2)
    assert out.getvalue() == ""
    clock.now += PATIENCE
    progress(1, 2)
    assert "1 of 2" in out.getvalue()


def test_work_of_no_size_is_done(clock: Clock) -> None:
    out = Terminal()
    clock.now = 2 * PATIENCE
    ProgressLine("reading:", "tokens", out=out)(0, 0)
    assert out.getvalue() == ""


def test_it_goes_to_standard_error(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = ProgressLine("reading:", "tokens")
    clock.now = PATIENCE
    progress(1, 2)
    assert terminal.getvalue().startswith("\r\x1b[Kreading: 1 of 2")


def test_layers_move_the_line_within_a_step(clock: Clock) -> None:
    out = Terminal()
    progress = ProgressLine("reading:", "tokens", out=out, total=3000)
    clock.now = PATIENCE
    progress.layer(2048, 0.25)
    assert out.getvalue() == "\r\x1b[Kreading: 512 of 3000 tokens (17 %)"
    progress(2048, 3000)
    clock.now += INTERVAL
    progress.layer(952, 0.5)
    assert out.getvalue().endswith("reading: 2524 of 3000 tokens (84 %)")


@pytest.mark.parametrize("terminal", [True, False])
def test_the_line_gives_way_to_an_answer_on_the_same_terminal(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", Terminal() if terminal else io.StringIO())
    progress = ProgressLine("reading:", "tokens", out=out, total=10)
    clock.now = PATIENCE
    progress.layer(10, 0.5)
    progress.give_way()
    clock.now += PATIENCE
    progress.layer(10, 0.6)
    assert out.getvalue().count("reading") == (1 if terminal else 2)


@pytest.mark.parametrize("command", ["demo", "complete", "interactive", "score"])
def test_every_command_that_reads_prompts_tells_of_layers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    told = list[tuple[int, float]]()
    monkeypatch.setattr(ProgressLine, "layer", lambda self, tokens, share: told.append((tokens, share)))
    (tmp_path / "text").write_text("one two three")
    run = CommandLine(capsys, monkeypatch)
    more = {"score": [str(tmp_path / "text")], "complete": ["--prompt=one two three", "--max_tokens=2"]}
    outcome = run(command, write_model(tmp_path / "model"), *more.get(command, []), stdin=b"one two three\n")
    assert outcome.code == 0 and [share for _, share in told] == [0.5, 1.0] and told[0][0] > 1
