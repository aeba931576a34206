"""--prompt_cache, /save and /load, through the command line: what was computed once is not computed again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mistral.engine.snapshot_file import Saved, write_saved
from tests.support.command_line import CommandLine, run_program, write_model

LONG = "one two three four five six seven eight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def lines(out: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Results by their place, and the timings."""
    *results, timings = (json.loads(line) for line in out.splitlines())
    return sorted(results, key=lambda result: result.get("index", 0)), timings["timings"]


# --prompt_cache


def test_a_prompt_is_read_once(run: CommandLine, model: Path, tmp_path: Path) -> None:
    """The second program reads the last token alone; another prompt, what it does not share; windows are 5 and 7."""
    file = tmp_path / "cache"
    command = ("demo", model, "--json", "--max_tokens=4", f"--prompts={LONG}")
    plain, first, second = (
        run(*command, *extra) for extra in ([], [f"--prompt_cache={file}"], [f"--prompt_cache={file}"])
    )
    found = [lines(outcome.out) for outcome in (plain, first, second)]
    assert found[0][0] == found[1][0] == found[2][0]
    assert found[1][1]["prefill_tokens"] == found[0][1]["prefill_tokens"] and found[2][1]["prefill_tokens"] == 1
    before = file.read_bytes()
    further = [f"{LONG} nine", LONG, "other"]
    command = ("demo", model, "--json", "--max_tokens=4", f"--prompts={json.dumps(further)}")
    results, timings = lines(run(*command, f"--prompt_cache={file}").out)
    expected, plain_timings = lines(run(*command).out)
    assert results == expected
    assert timings["prefill_tokens"] < plain_timings["prefill_tokens"] - 10
    assert file.read_bytes() != before, "the first prompt went further"
    assert lines(run("demo", model, "--json", f"--prompts={further[0]}", f"--prompt_cache={file}").out)[1][
        "prefill_tokens"
    ] == 1  # fmt: skip


def test_the_lines_of_a_file_begin_with_one_cache(run: CommandLine, model: Path, tmp_path: Path) -> None:
    prompts = [{"prompt": f"{LONG}{end}", "max_tokens": 3} for end in ("", " nine", " ten", " and so on", "")]
    (tmp_path / "in").write_text("\n".join(map(json.dumps, prompts)))
    command = ("complete", model, "--json", f"--input={tmp_path / 'in'}", "--batch_size=2")
    plain = lines(run(*command).out)
    for _ in range(2):
        found = lines(run(*command, f"--prompt_cache={tmp_path / 'cache'}").out)
        assert found[0] == plain[0]
    assert found[1]["prefill_tokens"] < plain[1]["prefill_tokens"] / 2


def test_a_file_that_is_something_else_is_refused_before_the_model_is_loaded(
    run: CommandLine, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mistral.cli.session.load_model", lambda *_: pytest.fail("loaded"))
    (tmp_path / "note").write_text("mine")
    write_saved(tmp_path / "other", Saved("", None), "another")
    for name, message in (("note", "name another file"), ("other", "another checkpoint")):
        error = run("demo", model, f"--prompt_cache={tmp_path / name}").error
        assert error.startswith(str(tmp_path / name)) and message in error
    assert (tmp_path / "note").read_text() == "mine"


# /save and /load


def test_a_conversation_goes_on_in_another_process(model: Path, run: CommandLine, tmp_path: Path) -> None:
    options = (
        "interactive",
        model,
        "--instruct",
        "--max_tokens=6",
        "--temperature=0.9",
        "--system=Be brief.",
        "--seed=0",
    )
    file = tmp_path / "talk"
    whole = run(*options, "--json", stdin=b"one\n/set seed 5\ntwo\nthree\n/retry\n")
    first = run(*options, "--json", stdin=f"one\n/set seed 5\ntwo\n/save {file}\n".encode())
    second = run_program(
        "interactive", model, "--instruct", "--json", shell=f"printf '/load {file}\\nthree\\n/retry\\n/stats\\n' | {{}}"
    )
    results, _ = lines(first.out)
    assert [*results, *lines(second.out)[0]] == lines(whole.out)[0]
    assert "saved 4 messages" in first.err and "loaded 4 messages" in second.err


def test_a_loaded_conversation_computes_only_what_is_new(model: Path, run: CommandLine, tmp_path: Path) -> None:
    options, file = ("interactive", model, "--instruct", "--max_tokens=30", "--temperature=0"), tmp_path / "talk"
    saved = run(
        *options,
        stdin=f"{LONG}\n/save {file}\n".encode(),
    )
    held = int(re.findall(r"saved 2 messages and (\d+) tokens", saved.err)[0])
    loaded = run(*options, stdin=f"/load {file}\nnine\n/stats\n".encode())
    prompt, reused = map(int, re.findall(r"^ +1 +(\d+) +(\d+)", loaded.err, re.MULTILINE)[0])
    assert held > 40 and prompt > reused and f"loaded 2 messages and {held} tokens" in loaded.err


def test_text_that_is_continued_can_be_saved_too(model: Path, run: CommandLine, tmp_path: Path) -> None:
    options, file = ("interactive", model, "--temperature=0", "--max_tokens=5", "--json"), tmp_path / "text"
    whole = lines(run(*options, stdin=b"one\n/more\n/more\n").out)[0]
    run(*options, stdin=f"one\n/more\n/save {file}\n".encode())
    assert lines(run(*options, stdin=f"/load {file}\n/more\n".encode()).out)[0][0]["ids"] == whole[2]["ids"]
    one = lines(run("interactive", model, "--temperature=0", "--max_tokens=15", "--json", stdin=b"one\n").out)[0][0]
    assert one["ids"] == [token for part in whole for token in part["ids"]], "/more goes on as if it had not stopped"
    assert one["text"] == "".join(part["text"] for part in whole)


def test_what_cannot_be_loaded_changes_nothing(model: Path, run: CommandLine, tmp_path: Path) -> None:
    text, other = tmp_path / "text", tmp_path / "other"
    run("interactive", model, "--max_tokens=2", stdin=f"one\n/save {text}\n".encode())
    write_saved(other, Saved("{}", None), "another")
    (tmp_path / "note").write_text("mine")
    names = [f"/load {name}" for name in (text, other, tmp_path / "note", "", tmp_path / "none")]
    stdin = "\n".join(["one", *names, f"/save {tmp_path / 'note'}", "two", ""])
    options = ("interactive", model, "--instruct", "--temperature=0", "--max_tokens=4", "--json")
    plain, found = run(*options, stdin=b"one\ntwo\n"), run(*options, stdin=stdin.encode())
    assert lines(plain.out)[0] == lines(found.out)[0]
    errors = [line for line in found.err.splitlines() if line.startswith("error: ")]
    wanted = [
        "without --instruct",
        "another checkpoint",
        "4 bytes are no",
        "name a file",
        "no such",
        "exists and is not a saved cache",
    ]
    assert len(errors) == len(wanted) and all(text in error for text, error in zip(wanted, errors, strict=True)), errors


SETTINGS = {
    "max_tokens": 5, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0,
    "stop": [],
}  # fmt: skip
KING: dict[str, Any] = {"role": "king", "content": "x", "calls": [], "call_id": None, "name": None}
STATE = {"instruct": False, "system": "", "tools": [], "messages": [], "last": [[], []], "settings": SETTINGS}


@pytest.mark.parametrize(
    "change",
    [
        {"messages": None}, {"messages": [{"role": "user"}]}, {"messages": [KING]}, {"messages": [["user"]]},
        {"messages": [KING | {"role": "user", "thoughts": 7}]},
        {"messages": [KING | {"role": "assistant"}]}, {"messages": [KING | {"role": "user", "calls": [{}]}]},
        {"last": [[]]}, {"last": [[10**9], [1]]}, {"last": [["x"], []]}, {"settings": {}}, {"tools": 1},
        {"tools": [{}]}, {"settings": SETTINGS | {"max_tokens": -1}}, {"settings": SETTINGS | {"temperature": "hot"}},
        {"settings": SETTINGS | {"stop": 5}}, {"settings": SETTINGS | {"max_tokens": "many"}},
    ],
    ids=str,
)  # fmt: skip
def test_a_conversation_that_does_not_hold_together_is_refused(
    model: Path, run: CommandLine, tmp_path: Path, change: dict[str, Any]
) -> None:
    from mistral.checkpoint.checkpoint import open_checkpoint
    from mistral.checkpoint.fingerprint import fingerprint

    checkpoint = open_checkpoint(model)
    key = fingerprint(checkpoint)
    for name, state in (("sound", STATE), ("changed", STATE | change), ("list", [])):
        write_saved(tmp_path / name, Saved(json.dumps(state), None), key)
    write_saved(tmp_path / "json", Saved("[" * 100_000, None), key)
    names = ("changed", "list", "json", "sound")
    outcome = run("interactive", model, stdin="".join(f"/load {tmp_path / name}\n" for name in names).encode())
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert outcome.code == 0 and "loaded 0 messages" in outcome.err
    assert [Path(error.split(": ")[2]).name for error in errors] == ["changed", "list", "json"]
