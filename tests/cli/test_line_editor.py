"""The interactive command at a terminal: editing, more than one line, the history, Ctrl-C and Ctrl-D."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mistral.cli.chat.line_editor import HINT
from tests.support.command_line import write_model
from tests.support.terminal import LEFT, READY, Terminal, shown


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("terminal") / "model")


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Starts the program with the small model; what runs at the end is ended."""
    opened: list[Terminal] = []

    def begin(*options: object, redirect: Path | None = None) -> Terminal:
        opened.append(Terminal(tmp_path / "state", "interactive", model, *options, redirect=redirect))
        opened[-1].before = opened[-1].wait_for(READY)
        return opened[-1]

    yield begin
    for terminal in opened:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)


def test_ctrl_c_stops_an_answer_empties_a_line_hints_and_leaves(start: Callable[..., Terminal]) -> None:
    """Pressed twice at an empty line it leaves; something typed in between, and it is the first press again."""
    terminal = start(f"--max_tokens={10**9}", "--temperature=0", "--instruct")
    for question in ("one", "two"):
        terminal.type(f"{question}\r")
        terminal.wait_for(LEFT)
        terminal.read_while(lambda: len(terminal.seen) < 30)  # into the answer
        terminal.type("\x03")
        assert " [stopping]" in terminal.wait_for(" [stopped]")
        terminal.wait_for(READY)
    terminal.type("not sent")
    terminal.wait_for("not sent")
    terminal.type("\x03/stats\r")
    assert terminal.wait_for("tokens held").count(".") >= 2, "no third turn"
    terminal.wait_for(READY)
    for keys in ("\x03", "a\b\x03"):
        terminal.type(keys)
        terminal.wait_for(HINT)
        terminal.wait_for(READY)
    terminal.type("\x03")
    assert shown(terminal.rest())[-1] == "interrupted"
    assert terminal.process.returncode == 130


def test_a_conversation_at_a_terminal(start: Callable[..., Terminal], tmp_path: Path, model: Path) -> None:
    """What stands before and behind answers, what commands say, and what is kept for the next time."""
    terminal = start("--max_tokens=3", "--temperature=0", "--instruct")
    assert shown(terminal.before)[-1] == "model | template v3 | context without limit | /help lists commands"
    assert "\r\x1b[Kstarting ..." in terminal.before and "\r\x1b[Kloading model ..." in terminal.before
    said = []
    for line in ("one", "/set seed 5", "/system Be brief.", "two", "/undo", "/rest", "/clear", "three"):
        terminal.type(f"{line}\r")
        terminal.wait_for(LEFT)
        said.append(shown(terminal.wait_for(READY)))
    assert [found[1] for found in (said[0], said[3])] == ["note: cut at --max_tokens 3; /more goes on"] * 2
    assert re.fullmatch(r"3 tokens, \d+\.\d tokens/s \| \d+ tokens held", said[0][2])
    assert said[1] == ["seed is 5 now"]
    assert said[2] == ["system prompt of 9 characters, from the next question on"]
    assert said[4] == ["last question and its answer taken back; 2 messages left"]
    assert said[5][0].startswith("error: /rest: no such command; did you mean /reset?")
    assert said[6] == ["2 messages forgotten"]
    terminal.type("exit\r")
    terminal.rest()
    assert terminal.process.returncode == 0
    kept = list((tmp_path / "state" / "mistral-mindspore" / "conversations").iterdir())
    assert len(kept) == 2 and all(file.stat().st_mode & 0o777 == 0o600 for file in kept)
    again = start("--resume", "--quiet", "--plain")
    assert shown(again.before)[-1].startswith("resumed the conversation of ") and ": 2 messages" in again.before
    again.type("/set seed\r")
    again.wait_for("seed 5")
    again.wait_for(READY)
    again.type("/undo\r/bye\r")
    assert "0 messages left" in again.rest()


def test_ctrl_c_while_the_model_is_loaded_is_answered_at_once(model: Path, tmp_path: Path) -> None:
    terminal = Terminal(tmp_path / "state", "demo", model)
    terminal.wait_for("loading model ...")
    terminal.type("\x03")
    terminal.wait_for("stopping ...")
    assert shown(terminal.rest())[-1] == "interrupted"
    assert terminal.process.returncode == 130
    os.close(terminal.master)


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


def test_without_autosave_nothing_that_was_typed_is_kept(start: Callable[..., Terminal], tmp_path: Path) -> None:
    terminal = start("--max_tokens=1", "--autosave=false", "--instruct")
    terminal.type("secret\r")
    terminal.wait_for(READY)
    terminal.type("\x04")
    terminal.rest()
    assert terminal.process.returncode == 0
    assert not [file for file in (tmp_path / "state").rglob("*") if file.is_file()]


def test_a_history_that_cannot_be_kept_is_none(start: Callable[..., Terminal], tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    terminal = start("--max_tokens=1")
    terminal.type("one\r")
    terminal.wait_for(READY)
    terminal.type("\x04")
    terminal.rest()
    assert terminal.process.returncode == 0
