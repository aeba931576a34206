"""What a model thinks before it answers: shown, kept apart, given back; and what it is told before it thinks."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mistral.tokenizer.messages import Message
from mistral.tokenizer.tokenizer import Tokenizer
from tests.support.command_line import CommandLine
from tests.support.scripted_model import write_scripted
from tests.support.terminal import LEFT, READY, Terminal, shown
from tests.support.tool_cases import file, load

pytestmark = pytest.mark.usefixtures("all_compiled")
THOUGHT, ANSWER = "I need *the* clock.", "It's **noon**!"
INST, RESULT, EOS, THINK, END, CALLS, ARGS = 4, 8, 2, 34, 35, 9, 32  # [/INST], [/TOOL_RESULTS] and so on
QUICK = ("--temperature=0", "--threads=1", "--backend=native")
DIM, RESET = "\x1b[2m", "\x1b[0m"


def ids(*parts: int | str) -> list[int]:
    return [
        token
        for part in parts
        for token in ([part] if isinstance(part, int) else load("v13 tekken").encode(part, bos=False))
    ]


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thinks, then answers."""
    chain = ids(INST, THINK, THOUGHT, END, ANSWER, EOS)
    return write_scripted(tmp_path_factory.mktemp("thinker") / "model", file("v13 tekken"), chain)


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thinks, then calls a tool; answers once there is a result."""
    folder = tmp_path_factory.mktemp("caller")
    (folder / "tools.json").write_text(json.dumps([{"name": "now"}]))
    chains = ids(INST, THINK, THOUGHT, END, CALLS, "now", ARGS, "{}", EOS), ids(RESULT, ANSWER, EOS)
    return write_scripted(folder / "model", file("v13 tekken"), *chains)


@pytest.fixture(scope="module")
def v15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scripted(tmp_path_factory.mktemp("v15") / "model", file("v15 tekken"), ids(INST, "Yes", EOS))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The ids of each conversation that is written."""
    seen: list[list[int]] = []
    encode_chat = Tokenizer.encode_chat

    def spy(self: Tokenizer, messages: Sequence[Message], *more: Any) -> list[int]:
        seen.append(encode_chat(self, messages, *more))
        return seen[-1]

    monkeypatch.setattr(Tokenizer, "encode_chat", spy)
    return seen


def results(out: str) -> list[dict[str, Any]]:
    return [found for found in map(json.loads, out.splitlines()) if "timings" not in found]


# At a terminal


def test_thinking_and_a_call_at_a_terminal(caller: Path, tmp_path: Path) -> None:
    """The whole of it as a person sees it: dim thoughts as they are, the call, and the answer with its Markdown."""
    terminal = Terminal(
        tmp_path / "state", "interactive", caller, "--instruct", f"--tools={caller.parent / 'tools.json'}", *QUICK
    )
    said = []
    for line in ("When?", "12:00", "/bye"):
        terminal.wait_for(READY)
        terminal.type(f"{line}\r")
        terminal.wait_for(LEFT)
        said.append(terminal.rest() if line == "/bye" else terminal.wait_for("tokens held"))
    assert terminal.process.returncode == 0
    first, second = said[:2]
    assert "".join(part.partition(RESET)[0] for part in first.split(DIM)[1:]).startswith(THOUGHT)
    lines = shown(first)
    assert lines[0] == THOUGHT and re.fullmatch(r"\[call \w{9}\] now {}", lines[1]) and len(lines) == 3
    assert "\r\x1b[JIt's \x1b[1mnoon\x1b[0m!" in second and THOUGHT not in second


# Through a pipe


def test_a_pipe_has_answers_alone_and_json_has_thoughts_beside_them(run: CommandLine, thinker: Path) -> None:
    command = ("interactive", thinker, "--instruct", *QUICK)
    plain = run(*command, stdin=b"When?\n")
    assert plain.out == f"{ANSWER}\n" and "clock" not in plain.err
    told = run(*command, "--show_thinking", stdin=b"When?\n")
    assert told.out == plain.out and told.err.startswith(f"[thinking] {THOUGHT} [/thinking]\n")
    (found,) = results(run(*command, "--json", "--show_thinking", stdin=b"When?\n").out)
    assert list(found) == ["prompt", "text", "ids", "finish_reason", "reasoning_content"]
    assert (found["text"], found["reasoning_content"]) == (ANSWER, THOUGHT)
    assert found["ids"] == ids(THINK, THOUGHT, END, ANSWER)


def test_without_a_template_nothing_is_taken_for_a_thought(run: CommandLine, thinker: Path) -> None:
    (found,) = results(run("interactive", thinker, "--no_instruct", "--json", *QUICK, stdin=b"[/INST]\n").out)
    assert "reasoning_content" not in found


def test_thoughts_go_back_into_the_history_and_into_files(
    run: CommandLine, thinker: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    command, talk = ("interactive", thinker, "--instruct", "--json", *QUICK), tmp_path / "talk"
    assert run(*command, stdin=f"When?\nReally?\n/stats\n/save {talk}\n".encode()).code == 0
    answered = ids(THINK, THOUGHT, END, ANSWER, EOS)
    assert prompts[1][: len(prompts[0]) + len(answered)] == [*prompts[0], *answered], "as it was written"
    run(*command, stdin=f"/load {talk}\nAgain?\n".encode())
    assert prompts[2][: len(prompts[1]) + len(answered)] == [*prompts[1], *answered]


def test_a_cut_thought_goes_on_and_is_kept(run: CommandLine, thinker: Path, prompts: list[list[int]]) -> None:
    command = ("interactive", thinker, "--instruct", "--json", "--max_tokens=4", *QUICK)
    found = results(run(*command, stdin=b"When?\n/more\n/set max_tokens 50\n/more\nReally?\n").out)
    assert [each["text"] for each in found[:3]] == ["", "", ANSWER]
    assert "".join(each["reasoning_content"] for each in found[:3]) == THOUGHT
    answered = ids(THINK, THOUGHT, END, ANSWER, EOS)
    assert prompts[-1][len(prompts[0]) :][: len(answered)] == answered
    cut = results(run(*command, stdin=b"When?\nReally?\n").out)
    assert cut[0]["finish_reason"] == "length"
    assert prompts[-1][len(prompts[-2]) :][:6] == [*ids(THINK, THOUGHT)[:4], END, EOS]


def test_stop_strings_are_those_of_the_answer(run: CommandLine, thinker: Path) -> None:
    command = ("interactive", thinker, "--instruct", "--json", "--stop=*", *QUICK)
    (found,) = results(run(*command, stdin=b"When?\n").out)
    assert (found["text"], found["reasoning_content"], found["finish_reason"]) == ("It's ", THOUGHT, "stop")


# complete


def test_complete_gives_the_answer_and_json_its_thoughts(run: CommandLine, thinker: Path) -> None:
    command = ("complete", thinker, "--instruct", "--prompt=When?", *QUICK)
    plain = run(*command)
    assert plain.out == f"{ANSWER}\n"
    (found,) = results(run(*command, "--json").out)
    assert (found["text"], found["reasoning_content"]) == (ANSWER, THOUGHT)
    assert list(found)[:4] == ["index", "prompt", "text", "reasoning_content"]
    (stopped,) = results(run(*command, "--json", "--stop=*").out)
    assert (stopped["text"], stopped["reasoning_content"]) == ("It's ", THOUGHT)
    several = run(*command, "--n=2").out
    assert several.count(ANSWER) == 2 and "clock" not in several


def test_lines_of_messages_have_thoughts_in_and_out(run: CommandLine, caller: Path) -> None:
    call = {"id": "c", "function": {"name": "now", "arguments": "{}"}}
    asked = [{"role": "user", "content": "When?"}]
    thinking = [{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}]
    ways: list[dict[str, Any]] = [
        {"content": None, "reasoning_content": THOUGHT}, {"content": "", "reasoning": THOUGHT}, {"content": thinking}
    ]  # fmt: skip
    lines = [{"messages": asked, "tools": [{"name": "now"}]}] + [
        {"messages": [*asked, {"role": "assistant", "tool_calls": [call], **way},
                      {"role": "tool", "tool_call_id": "c", "content": "12"}], "prompt": None} for way in ways
    ]  # fmt: skip
    stdin = "\n".join(map(json.dumps, lines)).encode()
    found = sorted(
        results(run("complete", caller, "--input=-", *QUICK, stdin=stdin).out), key=lambda each: each["index"]
    )
    assert (found[0]["text"], found[0]["reasoning_content"], found[0]["finish_reason"]) == ("", THOUGHT, "tool_calls")
    assert [each["text"] for each in found[1:]] == [ANSWER] * 3
    begun = {"role": "assistant", "content": "", "reasoning_content": THOUGHT[:6], "prefix": True}
    (rest,) = results(
        run("complete", caller, "--input=-", *QUICK, stdin=json.dumps({"messages": [*asked, begun]}).encode()).out
    )
    assert rest["reasoning_content"] == THOUGHT[6:], "the answer begins within the thought"


# What the model is told


def test_a_system_prompt_in_the_folder_is_offered_and_used(
    run: CommandLine, thinker: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    folder = tmp_path / "a model"
    folder.mkdir()
    for each in thinker.iterdir():
        (folder / each.name).symlink_to(each)
    told = folder / "SYSTEM_PROMPT.txt"
    told.write_text("First.\n[THINK]Your thoughts.[/THINK]Then the answer.\n")
    note = f"note: SYSTEM_PROMPT.txt is in the folder; --system {shlex.quote(f'@{told}')} uses it\n"
    assert run("interactive", folder, *QUICK, stdin=b"x\n").err.count(note) == 1, "such a folder holds conversations"
    assert run("complete", folder, "--instruct", "--prompt=x", *QUICK).err.count(note) == 1
    assert THINK not in prompts[-1]
    for command in (("interactive", "--json"), ("complete", "--instruct", "--prompt=x")):
        name, *options = command
        outcome = run(name, folder, *options, f"--system=@{told}", *QUICK, stdin=b"x\n")
        assert outcome.code == 0 and note not in outcome.err
        written = ids(17, "First.\n", THINK, "Your thoughts.", END, "Then the answer.", 18)
        assert prompts.pop()[1 : 1 + len(written)] == written
    for command in (("interactive", "--no_instruct"), ("complete", "--prompt=x")):
        name, *options = command
        assert note not in run(name, folder, *options, *QUICK, stdin=b"x\n").err


def test_think_marks_are_the_operators_alone(run: CommandLine, thinker: Path, prompts: list[list[int]]) -> None:
    marks = "[THINK]a[/THINK]"
    run("interactive", thinker, "--instruct", "--max_tokens=1", *QUICK, stdin=f"{marks}\n/system {marks}\nx\n".encode())
    assert THINK not in prompts[0] and prompts[1][1:5] == ids(17, THINK, "a", END)[:4]
    turns = [{"role": "system", "content": marks}, {"role": "user", "content": marks}]
    run("complete", thinker, "--input=-", "--max_tokens=1", *QUICK, stdin=json.dumps({"messages": turns}).encode())
    assert THINK not in prompts[-1]
    parts = [{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "b"}]
    turns[0] = {"role": "system", "content": parts}  # type: ignore[dict-item]
    run("complete", thinker, "--input=-", "--max_tokens=1", *QUICK, stdin=json.dumps({"messages": turns}).encode())
    assert prompts[-1].count(THINK) == 1 and prompts[-1][1:6] == ids(17, THINK, "a", END, "b")


def test_what_the_template_cannot_hold_is_refused_before_loading(
    run: CommandLine, thinker: Path, v15: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mistral.cli.session.load_model", lambda *_: pytest.fail("loaded"))
    for name, more in (("interactive", ["--instruct"]), ("complete", ["--instruct", "--prompt=x"])):
        assert run(name, v15, *more, "--system=[THINK]a[/THINK]").error.startswith(
            "--system: the system prompt has [THINK], and templates of version v15 have none there"
        )
        assert (
            "--system: the system prompt has a [THINK] without" in run(name, thinker, *more, "--system=[THINK]").error
        )
        error = run(name, thinker, *more, "--reasoning_effort=high").error
        assert error.startswith("--reasoning_effort high: the chat template (tekken v13) has no such setting")
        error = run(name, v15, *more, "--reasoning_effort=low").error
        assert error == "--reasoning_effort low: must be one of none, high"
    assert "add --instruct" in run("interactive", v15, "--no_instruct", "--reasoning_effort=high").error
    assert "add --instruct" in run("complete", v15, "--prompt=x", "--reasoning_effort=high").error
    line = json.dumps({"prompt": "x", "reasoning_effort": "high"}).encode()
    assert "line 1: reasoning_effort: only messages have that" in run("complete", v15, "--input=-", stdin=line).error
    line = json.dumps({"messages": [{"role": "user", "content": "x"}], "reasoning_effort": 7}).encode()
    assert "line 1: reasoning_effort must be a text" in run("complete", v15, "--input=-", stdin=line).error


def test_reasoning_effort_is_written(run: CommandLine, v15: Path, prompts: list[list[int]]) -> None:
    expected = [
        load("v15 tekken").encode_chat([Message("user", "x")], (), effort) for effort in (None, "none", "high", "high")
    ]
    prompts.clear()
    run("interactive", v15, "--instruct", *QUICK, stdin=b"x\n")
    run("interactive", v15, "--instruct", "--reasoning_effort=none", *QUICK, stdin=b"x\n")
    run("complete", v15, "--instruct", "--prompt=x", "--reasoning_effort=high", *QUICK)
    line = json.dumps({"messages": [{"role": "user", "content": "x"}], "reasoning_effort": "high"}).encode()
    assert run("complete", v15, "--input=-", *QUICK, stdin=line).code == 0
    assert prompts == expected and expected[0] == expected[1] != expected[2]


def test_a_system_prompt_that_no_template_takes_changes_nothing(run: CommandLine, v15: Path) -> None:
    outcome = run("interactive", v15, "--instruct", *QUICK, stdin=b"/system [THINK]a[/THINK]\nx\n")
    assert "error: /system: the system prompt has [THINK]" in outcome.err and outcome.out == "Yes\n"
