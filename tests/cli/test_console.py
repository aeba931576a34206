"""What a model writes does nothing to a terminal but stand there."""

from __future__ import annotations

import io
import sys

import pytest

from mistral.cli import console
from mistral.cli.console import Board

HOSTILE = "a\x1b[2J\x1b]0;title\x07b\rc\x7f\x9b31m\x00\td\né\u200d漢\n"


class Output(io.StringIO):
    """Standard output, a terminal or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_are_visible_on_a_terminal_and_untouched_in_a_file(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Output(terminal)
    monkeypatch.setattr(sys, "stdout", out)
    for character in HOSTILE:  # as it comes
        console.write(character)
    Board([HOSTILE]).add(0, "", False)
    visible = "a\\x1b[2J\\x1b]0;title\\x07bc\\x7f\\x9b31m\\x00\td\né\u200d漢\n"
    assert out.getvalue() == (visible if terminal else HOSTILE) * 2
