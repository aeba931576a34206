"""The interactive command: prompts from a pipe or a person, answers as they come."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import mistral.cli.chat.answer
from mistral.cli.chat.typed_ahead import MARK
from mistral.cli.console import ProgressLine
from mistral.engine.engine import Engine
from mistral.engine.requests import Generated, Request
from mistral.engine.scheduler import generate_stream
from mistral.tokenizer.messages import Message
from mistral.tokenizer.tokenizer import Tokenizer
from tests.support.command_line import CommandLine, write_model

pytestmark = pytest.mark.usefixtures("all_compiled")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("interactive") / "model")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


@pytest.fixture
def conversations(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, str]]]:
    """What `encode_chat` is given, call by call, as (role, content)."""
    seen: list[list[tuple[str, str]]] = []
    encode_chat = Tokenizer.encode_chat

    def spy(self: Tokenizer, messages: Sequence[Message], *more: Any) -> list[int]:
        seen.append([(message.role, message.content) for message in messages])
        return encode_chat(self, messages, *more)

    monkeypatch.setattr(Tokenizer, "encode_chat", spy)
    return seen


def answers(out: str) -> list[dict[str, Any]]:
    """The lines of --json without the timings at their end."""
    lines = [json.loads(line) for line in out.splitlines()]
    assert list(lines.pop()) == ["timings"]
    assert all(list(line)[:4] == ["prompt", "text", "ids", "finish_reason"] for line in lines)
    return lines


# From a pipe


def test_each_line_is_answered_and_the_end_of_input_ends_it(run: CommandLine, model: Path) -> None:
    command = ("interactive", model, "--max_tokens=4", "--temperature=0")
    plain, lines = run(*command, stdin=b"one\ntwo\n"), run(*command, "--json", stdin=b"one\ntwo\n")
    assert (plain.code, lines.code, lines.err) == (0, 0, "")
    found = answers(lines.out)
    assert [answer["prompt"] for answer in found] == ["one", "two"]
    assert all(len(answer["ids"]) == 4 and answer["finish_reason"] == "length" for answer in found)
    assert plain.out == "".join(answer["text"] + "\n" for answer in found)
    *cut, timings = plain.err.splitlines()
    assert cut == ["note: cut at --max_tokens 4; /more goes on"] * 2 and "decode 8 tokens" in timings
    assert MARK not in plain.out


def test_a_prompt_is_answered_as_the_demo_completes_it(run: CommandLine, model: Path) -> None:
    common = (model, "--max_tokens=5", "--temperature=0", "--json")
    completed = json.loads(run("demo", *common, "--prompts=one").out.splitlines()[0])
    assert answers(run("interactive", *common, stdin=b"one").out)[0]["ids"] == completed["ids"]


def test_empty_lines_are_passed_over_and_line_ends_belong_to_no_prompt(run: CommandLine, model: Path) -> None:
    found = answers(run("interactive", model, "--max_tokens=1", "--json", stdin=b"\n  \n\t\r\n one \r\n\ntwo").out)
    assert [answer["prompt"] for answer in found] == [" one ", "two"]


@pytest.mark.parametrize("stdin", [b"", b"\n\n  \n"])
def test_no_prompts_are_no_error(run: CommandLine, model: Path, stdin: bytes) -> None:
    outcome = run("interactive", model, stdin=stdin)
    assert (outcome.code, outcome.out) == (0, "")


def test_a_line_that_is_not_utf8_costs_no_other(run: CommandLine, model: Path) -> None:
    stdin = "\ufeffun\n".encode() + b"caf\xe9\n" + "été\n".encode()
    outcome = run("interactive", model, "--max_tokens=1", "--json", stdin=stdin)
    assert outcome.code == 0
    assert [answer["prompt"] for answer in answers(outcome.out)] == ["un", "été"]
    assert outcome.err == "error: standard input: a line is not UTF-8 text; it is left out\n"


def test_an_error_in_one_turn_does_not_end_the_session(run: CommandLine, model: Path) -> None:
    stdin = b"one\n" + b"word " * 50 + b"\ntwo\n"
    outcome = run("interactive", model, "--max_tokens=2", "--max_context=20", "--json", stdin=stdin)
    assert [answer["prompt"] for answer in answers(outcome.out)] == ["one", "two"]
    assert outcome.code == 0
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1 and "limit is 20" in outcome.err


def test_stop_and_seed_shape_every_answer(run: CommandLine, model: Path) -> None:
    command = ("interactive", model, "--max_tokens=9", "--json")
    first, again = (answers(run(*command, "--seed=3", stdin=b"one\none\n").out) for _ in range(2))
    assert first == again
    assert first != answers(run(*command, "--seed=4", stdin=b"one\none\n").out), "the default is not greedy"
    stop = first[0]["text"][3:6]
    assert answers(run(*command, "--seed=3", f"--stop={stop}", stdin=b"one").out)[0]["text"] == first[0]["text"][:3]


# Conversations


def test_without_instruct_each_prompt_stands_alone(
    run: CommandLine, model: Path, conversations: list[list[tuple[str, str]]]
) -> None:
    found = answers(run("interactive", model, "--max_tokens=2", "--temperature=0", "--json", stdin=b"one\none\n").out)
    assert found[0] == found[1] and conversations == []


def test_instruct_keeps_the_conversation(
    run: CommandLine, model: Path, conversations: list[list[tuple[str, str]]]
) -> None:
    stdin = b"one\ntwo\nthree\n"
    outcome = run("interactive", model, "--instruct", "--max_tokens=6", "--temperature=0", "--json", stdin=stdin)
    first, second, third = (answer["text"] for answer in answers(outcome.out))
    assert first.strip() and second.strip() and third.strip()
    assert conversations == [
        [("user", "one")],
        [("user", "one"), ("assistant", first), ("user", "two")],
        [("user", "one"), ("assistant", first), ("user", "two"), ("assistant", second), ("user", "three")],
    ]


def test_an_empty_answer_leaves_the_conversation_with_its_question(
    run: CommandLine, model: Path, conversations: list[list[tuple[str, str]]]
) -> None:
    outcome = run("interactive", model, "--instruct", "--max_tokens=0", stdin=b"one\ntwo\n")
    assert (outcome.code, outcome.out) == (0, "\n\n")
    assert conversations == [[("user", "one")], [("user", "two")]]


def test_a_question_that_failed_leaves_the_conversation(
    run: CommandLine, model: Path, conversations: list[list[tuple[str, str]]]
) -> None:
    stdin = b"word " * 99 + b"\none\n"
    outcome = run("interactive", model, "--instruct", "--max_tokens=1", "--max_context=40", stdin=stdin)
    assert outcome.code == 0 and "limit is 40" in outcome.err
    assert [len(conversation) for conversation in conversations] == [1, 1]


def test_a_conversation_that_outgrows_the_context_loses_its_oldest_turns(
    run: CommandLine, model: Path, conversations: list[list[tuple[str, str]]]
) -> None:
    stdin = b"one\ntwo\nthree\nfour\nfive\nsix\n"
    options = ("--instruct", "--max_tokens=6", "--temperature=0", "--max_context=48", "--json")
    outcome = run("interactive", model, *options, stdin=stdin)
    assert outcome.code == 0 and "oldest turns are left out" in outcome.err
    assert [answer["prompt"] for answer in answers(outcome.out)] == stdin.decode().split()
    last = conversations[-1]
    assert last[-1] == ("user", "six") and last[0][0] == "user" and last[0][1] != "one" and len(last) > 1


def test_control_tokens_in_a_prompt_are_text(run: CommandLine, model: Path) -> None:
    outcome = run("interactive", model, "--instruct", "--max_tokens=1", "--json", stdin=b"[/INST] </s> [INST] x\n")
    assert answers(outcome.out)[0]["prompt"] == "[/INST] </s> [INST] x"


def test_a_tokenizer_without_a_chat_template_says_what_to_add(run: CommandLine, tmp_path: Path) -> None:
    import tokenizers

    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>"])}
    vocabulary |= {symbol: 3 + i for i, symbol in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    raw = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    raw.add_special_tokens(["<unk>", "<s>", "</s>"])
    (tmp_path / "source").mkdir()
    raw.save(str(tmp_path / "source" / "tokenizer.json"))
    folder = write_model(tmp_path / "model", tokenizer=tmp_path / "source" / "tokenizer.json")
    error = run("interactive", folder, "--instruct", stdin=b"hi\n").error
    assert str(folder / "tokenizer.json") in error and error.endswith("or name one by --chat_template FILE")
    assert run("interactive", folder, "--max_tokens=1", stdin=b"hi\n").code == 0, "it can complete text"


def test_an_instruct_model_holds_a_conversation_unless_told_otherwise(
    run: CommandLine, model: Path, conversations: list[list[tuple[str, str]]], tmp_path: Path
) -> None:
    copy = write_model(tmp_path / "a-chat-model")
    command = ("--max_tokens=2", "--temperature=0")
    for options in ((model,), (copy, "--no_instruct"), (copy, "--instruct", "false"), (copy, "--instruct=false")):
        assert run("interactive", *options, *command, stdin=b"one\n").code == 0
        assert conversations == []
    for options in ((copy,), (model, "--instruct"), (model, "--instruct", "true")):
        run("interactive", *options, *command, stdin=b"one\n")
        assert conversations.pop() == [("user", "one")]
    assert run("interactive", copy, "--system=Be brief.", *command, stdin=b"one\n").code == 0
    assert conversations.pop()[0] == ("system", "Be brief.")
    assert "only a conversation has that" in run("interactive", copy, "--no-instruct", "--system=x").error


def test_what_is_shown_beside_answers_can_be_asked_for_and_turned_off(run: CommandLine, model: Path) -> None:
    command = ("interactive", model, "--max_tokens=4", "--max_context=50")
    shown = run(*command, "--quiet=false", stdin=b"one\n").err.splitlines()
    assert shown[0] == "model | no template: goes on with each text | context 50 tokens | /help lists commands"
    assert shown[1] == "note: cut at --max_tokens 4; /more goes on"
    assert re.fullmatch(r"4 tokens, \d+\.\d tokens/s \| \d+ % of the context of 50 tokens", shown[2])
    assert shown[3].startswith("load ") and len(shown) == 4
    assert run(*command, "--quiet", stdin=b"one\n").err == "note: cut at --max_tokens 4; /more goes on\n"


# Commands and tools


def test_commands_are_no_prompts(run: CommandLine, model: Path) -> None:
    settings = b"/set max_tokens 3\n/set stop Z\n/set stop []\n"
    stdin = b"//usr/bin\n/retry\n/more\n" + settings + b"/retry\n/set\n/stats\n/help\n/exit\nnever\n"
    outcome = run("interactive", model, "--max_tokens=2", "--json", stdin=stdin)
    found = answers(outcome.out)
    assert [answer["prompt"] for answer in found] == ["/usr/bin"] * 4
    assert [len(answer["ids"]) for answer in found] == [2, 2, 2, 3]
    assert found[0]["ids"] != found[1]["ids"], "another draw"
    assert all(
        f"\n{text}" in f"\n{outcome.err}"
        for text in ("max_tokens 3\n", "stop ()\n", " turn  prompt", "/load FILE ", "    4 ")
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nothing", "/nothing: no such command"), ("/stat", "did you mean /stats?"), ("/clea", "did you mean /clear?"),
        ("/", "/: no such command"), ("/undo", "nothing to take back"),
        ("/retry", "/retry: nothing has been asked"), ("/more", "/more: nothing has been answered"),
        ("/result 5", "/result: no call is waiting"), ("/set seed x", "/set: --seed x: must be a whole number"),
        ("/set seed -2", "/set: seed must be"), ("/set ckpt x", "/set: ckpt: cannot be set"), ("/save", "name a file"),
        ("/set max_tokens -5", "/set: --max_tokens -5"), ("/system Be brief.", "start with --instruct"),
        ("/load \0", "/load: "), ("/load " + "x" * 5000, "File name too long"), ("/load /tmp", "is no file"),
        ("/save " + "x" * 5000, "File name too long"), ("/save ~none-such/x", "~none-such/x: cannot be written"),
        ("/__class__", "no such command"), ("/set stop @/none", "/set: --stop @/none"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_is_one_line(run: CommandLine, model: Path, line: str, message: str) -> None:
    outcome = run("interactive", model, "--max_tokens=1", stdin=f"{line}\n".encode())
    error, timings = outcome.err.splitlines()
    assert (outcome.code, outcome.out) == (0, "") and error.startswith("error: ") and message in error
    assert timings.startswith("load ")


def test_commands_say_what_they_did_and_have_other_names(run: CommandLine, model: Path) -> None:
    stdin = b"one\n/undo\ntwo\n/set top_k 5\n/set stop []\n/system x\n/system\n/clear\n/?\n/bye\nnever\n"
    outcome = run("interactive", model, "--instruct", "--max_tokens=4", "--json", stdin=stdin)
    assert [answer["prompt"] for answer in answers(outcome.out)] == ["one", "two"]
    assert outcome.err.splitlines()[:6] == [
        "last question and its answer taken back; 0 messages left",
        "top_k is 5 now",
        "stop is [] now",
        "system prompt of 1 characters, from the next question on",
        "no system prompt",
        "2 messages forgotten",
    ]
    assert "\n/reset " in outcome.err


def test_a_word_that_leaves_at_a_terminal_is_a_text_in_a_pipe(run: CommandLine, model: Path) -> None:
    assert len(answers(run("interactive", model, "--max_tokens=1", "--json", stdin=b"exit\nquit\n").out)) == 2


def test_the_system_prompt_can_be_given_changed_and_taken_away(
    run: CommandLine, model: Path, conversations: list[list[tuple[str, str]]], tmp_path: Path
) -> None:
    (tmp_path / "told").write_text("From a file.\n")
    stdin = f"one\n/system Changed.\n/reset\ntwo\n/system @{tmp_path / 'told'}\n/undo\nthree\n/system\n/reset\nfour\n"
    options = ("interactive", model, "--instruct", "--max_tokens=4", "--temperature=0")
    assert run(*options, "--system=First.", stdin=stdin.encode()).code == 0
    assert [found[0] for found in conversations] == [
        ("system", "First."), ("system", "Changed."), ("system", "From a file."), ("user", "four")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--system=x"], "--system: "), (["--tools=x"], "--tools: "), 
        (["--instruct", "--system=@/none"], "--system @/none"),
        (["--instruct", "--tools=/none"], "/none: not readable"),
    ],
)  # fmt: skip
def test_what_no_conversation_can_have_is_refused_before_loading(
    run: CommandLine, model: Path, options: list[str], message: str
) -> None:
    assert message in run("interactive", model, *options).error


CALLS = '[{"name": "get_weather", "arguments": {"city": "Rome"}}, {"name": "now", "arguments": {}, "id": "abcDEF123"}]'


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Answers that the model gives, one after the other, as ids; the prompts it is given are taken away from none."""
    script: list[list[int]] = []

    def written(_: Engine, requests: Sequence[Request], *more: Any, **named: Any) -> Iterator[Any]:
        ids, text = script.pop(0), requests[0].text
        assert text
        for token in ids:
            yield Generated(0, token, 0.0, text.push(token), None)
        yield Generated(0, None, None, text.flush(), "stop")

    monkeypatch.setattr(mistral.cli.chat.answer, "generate_stream", written)
    return script


def test_calls_are_shown_and_their_results_go_back(
    run: CommandLine, model: Path, conversations: list[list[tuple[str, str]]], scripted: list[list[int]], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_folder(model)
    assert tokenizer.tool_tokens
    called = [tokenizer.tool_tokens.calls, *tokenizer.encode(CALLS, bos=False)]
    good, bad = tokenizer.encode("It is hot.", bos=False), [*called[:-1]]
    (tmp_path / "tools.json").write_text(json.dumps([{"name": "get_weather"}, {"name": "now"}]))
    (tmp_path / "result").write_text("noon")
    options = ("interactive", model, "--instruct", f"--tools={tmp_path / 'tools.json'}")
    stdin = f"Weather?\nsunny\n/result @{tmp_path / 'result'}\nAgain?\n/stats\n"
    scripted += [called, good, bad] * 2
    plain, lines = run(*options, stdin=stdin.encode()), run(*options, "--json", stdin=stdin.encode())
    first, second, third = plain.out.splitlines()[:3], plain.out.splitlines()[2], plain.out.splitlines()[3]
    assert first[0].endswith('] get_weather {"city": "Rome"}') and first[1] == "[call abcDEF123] now {}"
    assert second == "It is hot." and third.startswith("[TOOL_CALLS]")
    assert "note: the next line is the result of get_weather\nnote: the next line is the result of now\n" in plain.err
    assert "warning: malformed tool call" in plain.err
    found = answers(lines.out)
    assert [call["function"]["name"] for call in found[0]["tool_calls"]] == ["get_weather", "now"]
    assert [answer["prompt"] for answer in found] == ["Weather?", "noon", "Again?"]
    roles = ["user", "assistant", "tool", "tool"]
    assert [role for role, _ in conversations[1]] == roles
    assert [text for _, text in conversations[1]] == ["Weather?", "", "sunny", "noon"]
    assert [role for role, _ in conversations[2]] == [*roles, "assistant", "user"]


# Ctrl-C


def test_ctrl_c_before_an_answer_begins_costs_that_line_alone(
    run: CommandLine, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_chat = Tokenizer.encode_chat

    def pressed(self: Tokenizer, messages: Sequence[Message], *more: Any) -> list[int]:
        if messages[-1].content == "long":
            signal.raise_signal(signal.SIGINT)
        return encode_chat(self, messages, *more)

    monkeypatch.setattr(Tokenizer, "encode_chat", pressed)
    outcome = run("interactive", model, "--instruct", "--max_tokens=1", "--json", stdin=b"one\nlong\ntwo\n")
    assert [answer["prompt"] for answer in answers(outcome.out)] == ["one", "two"]
    assert (outcome.code, outcome.err) == (0, "interrupted\n")


def test_a_ctrl_c_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with mistral.cli.chat.answer.Interruption.watching(lambda: pytest.fail("heard")) as interruption:
            signal.raise_signal(signal.SIGINT)
            assert not interruption.pressed
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_within_a_long_prompt_does_not_wait_for_its_last_layer(
    run: CommandLine, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been read by half is not taken for read: the next answer is what it would have been."""
    shares = list[float]()

    def layer(self: ProgressLine, tokens: int, share: float) -> None:
        shares.append(share)
        if len(shares) == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ProgressLine, "layer", layer)
    command = ("interactive", model, "--max_tokens=3", "--temperature=0", "--json")
    stopped, given = answers(run(*command, stdin=b"one two three\none two three\n").out)
    assert (stopped["finish_reason"], stopped["ids"]) == ("interrupted", [])
    assert shares == [0.5, 0.5, 1.0], "of two layers"
    assert given["ids"] == answers(run(*command, stdin=b"one two three\n").out)[0]["ids"]


@pytest.mark.parametrize("presses", [1, 2])
def test_an_interrupted_answer_is_marked_and_the_next_prompt_answered(
    run: CommandLine, model: Path, monkeypatch: pytest.MonkeyPatch, presses: int
) -> None:
    """A second press does not wait for the step at hand; the engine is sound after it."""
    engines = []

    def pressed(engine: Engine, requests: Sequence[Request], *more: Any, **named: Any) -> Iterator[Any]:
        engines.append(engine)
        for count, event in enumerate(generate_stream(engine, requests, *more, **named)):
            if len(engines) == 1 and count == 3:
                for _ in range(presses):
                    signal.raise_signal(signal.SIGINT)
            yield event

    monkeypatch.setattr(mistral.cli.chat.answer, "generate_stream", pressed)
    command = ("interactive", model, "--max_tokens=9", "--temperature=0")
    first, second = answers(run(*command, "--json", stdin=b"one\none\n").out)
    assert first["finish_reason"] == "interrupted" and 0 < len(first["ids"]) < 9
    assert second["finish_reason"] == "length" and second["ids"][: len(first["ids"])] == first["ids"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    engines.clear()
    assert " [stopped]\n" in run(*command, stdin=b"one\n").out


@pytest.mark.parametrize("instruct", [True, False])
def test_each_answer_is_json_by_a_schema(run: CommandLine, model: Path, tmp_path: Path, instruct: bool) -> None:
    schema, tools = tmp_path / "schema.json", tmp_path / "tools.json"
    schema.write_text('{"enum": ["red", {"a": [1, null]}]}')
    tools.write_text("[]")
    command = ("interactive", model, f"--json_schema={schema}", "--json", f"--instruct={instruct}", "--max_tokens=200")
    outcome = run(*command, "--temperature=1", stdin=b"one\n/more\n/retry\ntwo\n")
    found = answers(outcome.out)
    assert len(found) == 3 and all(json.loads(each["text"]) in ("red", {"a": [1, None]}) for each in found)
    assert {each["finish_reason"] for each in found} == {"stop"}
    assert "error: /more: an answer in JSON cannot be continued; ask again with a larger --max_tokens" in outcome.err
    assert "--json_schema: an answer of that form" in run(*command, f"--tools={tools}", stdin=b"").err
    schema.write_text('{"type": "nothing"}')
    wrong = run(*command, stdin=b"one\n")
    assert wrong.code == 2 and wrong.error.startswith("--json_schema") and not wrong.out
