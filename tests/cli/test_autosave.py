"""Conversations that are kept as they are held, and --resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mistral.cli.chat import autosave
from tests.support.command_line import CommandLine, write_model

pytestmark = pytest.mark.usefixtures("all_compiled")
OPTIONS = ("--max_tokens=4", "--seed=3", "--json")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("autosave") / "model")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where conversations are kept."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "mistral-mindspore" / "conversations"


def answers(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()[:-1]]


def test_the_last_conversation_goes_on_as_if_it_had_not_ended(run: CommandLine, model: Path, folder: Path) -> None:
    """In its chat template, with its system prompt and settings; those that are given now count."""
    command = ("interactive", model, *OPTIONS)
    first = (*command, "--instruct", "--autosave", "--system=Be brief.")
    whole = answers(run(*first, stdin=b"one\n/set top_k 9\ntwo\nthree\n").out)
    run(*first, stdin=b"other\n")
    assert run(*first, stdin=b"one\n/set top_k 9\ntwo\n").code == 0
    assert len(list(folder.iterdir())) == 3 and folder.stat().st_mode & 0o777 == 0o700
    resumed = run(*command, "--resume", "--quiet=false", stdin=b"three\n/set top_k\n")
    assert answers(resumed.out) == [whole[2]]
    assert resumed.err.splitlines()[1].endswith(": 4 messages") and "\ntop_k 9\n" in resumed.err
    assert "\ntop_k 5\n" in run(*command, "--resume", "--top_k=5", stdin=b"/set top_k\n").err
    error = "this was held with --instruct; start it with --instruct to load it; this is a new conversation\n"
    assert run(*command, "--resume", "--no_instruct", stdin=b"").err.endswith(error)


def test_a_text_goes_on_too(run: CommandLine, model: Path, folder: Path) -> None:
    command = ("interactive", model, *OPTIONS)
    whole = answers(run(*command, "--autosave", stdin=b"one\n/more\n").out)
    run(*command, "--autosave", stdin=b"one\n")
    assert answers(run(*command, "--resume", stdin=b"/more\n").out)[0]["ids"] == whole[1]["ids"]


@pytest.mark.parametrize("option", [(), ("--autosave=false",), ("--no_autosave",)])
def test_what_comes_from_a_pipe_is_not_kept_unless_asked(
    run: CommandLine, model: Path, folder: Path, option: tuple[str, ...]
) -> None:
    assert run("interactive", model, *OPTIONS, *option, stdin=b"one\n").code == 0
    assert not folder.exists()


def test_a_new_conversation_after_a_reset_does_not_take_the_place_of_the_old_one(
    run: CommandLine, model: Path, folder: Path
) -> None:
    run("interactive", model, *OPTIONS, "--instruct", "--autosave", stdin=b"one\n/reset\ntwo\n/reset\n")
    assert len(list(folder.iterdir())) == 2


def test_what_cannot_be_resumed_is_a_line_and_no_obstacle(run: CommandLine, model: Path, folder: Path) -> None:
    command = ("interactive", model, *OPTIONS)
    none = run(*command, "--resume", stdin=b"one\n")
    assert none.err == "note: there is no conversation with this checkpoint to resume; this is a new one\n"
    assert len(answers(none.out)) == 1
    run(*command, "--autosave", stdin=b"one\n")
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", b"\0" * 99, whole[: len(whole) // 2], whole.replace(b'"instruct"', b'"instruxt"')):
        file.write_bytes(damaged)
        found = run(*command, "--resume", stdin=b"one\n")
        assert found.code == 0 and answers(found.out) == answers(none.out)
        assert found.err.startswith(f"note: {file}: ") and found.err.count("\n") == 1
        assert found.err.endswith("; this is a new conversation\n")


def test_a_conversation_with_another_checkpoint_is_not_taken(
    run: CommandLine, model: Path, folder: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    from tests.support.command_line import ARGS

    other = write_model(tmp_path / "other", replace(ARGS, n_layers=1, sliding_windows=(5,)))
    run("interactive", model, *OPTIONS, "--autosave", stdin=b"one\n")
    assert "no conversation with this checkpoint" in run("interactive", other, *OPTIONS, "--resume", stdin=b"").err


def test_only_so_many_are_kept(run: CommandLine, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autosave, "KEPT", 2)
    command = ("interactive", model, *OPTIONS, "--instruct")
    run(*command, "--autosave", stdin=b"one\n/reset\ntwo\n/reset\nthree\n")
    assert len(list(folder.iterdir())) == 2
    assert answers(run(*command, "--resume", stdin=b"/retry\n").out)[0]["prompt"] == "three"


def test_where_nothing_can_be_kept_one_note_says_so(run: CommandLine, model: Path, folder: Path) -> None:
    folder.parents[1].write_text("a file where a folder should be")
    found = run("interactive", model, *OPTIONS, "--autosave", stdin=b"one\ntwo\n")
    assert len(answers(found.out)) == 2
    assert found.err.startswith("note: conversations are not saved (") and found.err.count("\n") == 1
