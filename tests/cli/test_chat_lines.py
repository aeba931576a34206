"""What complete reads and writes as other programs do: chat, batches, line breaks, characters, seeds, and no limit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mistral.cli.input_text
from mistral import Message, Tokenizer, Transformer
from mistral.cli.complete.complete_options import CompleteOptions
from mistral.cli.complete.job import called
from mistral.cli.complete.plan import Item
from mistral.cli.complete.prompt_file import Prompt
from mistral.cli.console import result_line
from mistral.cli.model_options import shipped_checkpoint
from mistral.cli.token_records import PartialAnswer
from mistral.engine.engine import OPEN_ENDED, Engine
from mistral.engine.requests import Generated, Request
from mistral.text import json_line
from mistral.tokenizer.messages import Tool
from tests.support.command_line import ARGS, CommandLine, run_program, write_model

pytestmark = pytest.mark.usefixtures("all_compiled")
QUICK = ("--threads=1", "--backend=native", "--device=CPU")
QUESTION = "Tom was a little boy. That day, Tom got a green bell. What colour was the bell?"
TEXT = "Tom had a red ball.\nThe ball was"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("lines") / "model")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if '"timings"' not in line]


def lines(*objects: object) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in objects)


# Chat


def test_a_begun_answer_is_continued_and_is_no_part_of_the_result(run: CommandLine) -> None:
    begun = {"role": "assistant", "content": "The bell", "prefix": True}
    asked = {"messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}, begun], "max_tokens": 8}
    found = records(run("complete", *QUICK, "--input=-", stdin=lines(asked)).out)[0]
    assert found["text"].startswith(" was green") and found["messages"] == asked["messages"]


def test_lines_of_batch_files_are_taken_and_unknown_keys_are_named_once(run: CommandLine, folder: Path) -> None:
    body = {
        "model": "m", "messages": [{"role": "developer", "content": "x"}, {"role": "user", "content": "Hé"}],
        "max_completion_tokens": 3, "temperature": 0, "top_p": 1, "logprobs": True, "top_logprobs": 2, "stream": False,
        "stop": None, "n": 1, "user": "u",
    }  # fmt: skip
    batch = [
        {"custom_id": "a-1", "method": "POST", "url": "/v1/chat/completions", "body": body},
        {"custom_id": "a-2", "body": {"prompt": ["hi"], "max_tokens": 2, "random_seed": 4, "user": "u"}},
    ]
    outcome = run("complete", folder, *QUICK, "--input=-", stdin=b"\xef\xbb\xbf" + lines(*batch).replace(b"\n", b"\r"))
    first, second = sorted(records(outcome.out), key=lambda each: int(each["index"]))
    assert (first["custom_id"], len(first["ids"]), second["custom_id"], len(second["ids"])) == ("a-1", 3, "a-2", 2)
    assert [len(token["top"]) for token in first["logprobs"]] == [2, 2, 2] and second["prompt"] == "hi"
    assert "logprobs" not in second
    assert outcome.err.count("keys that are not used: 'stream', 'user'") == 1
    plain = {"messages": body["messages"], "max_tokens": 3}
    assert records(run("complete", folder, *QUICK, "--input=-", stdin=lines(plain)).out)[0]["ids"] == first["ids"]
    for wrong, message in (
        ({"custom_id": "a", "body": 1}, "line 1: body must be an object"),
        ({"body": {"input": "x"}, "url": "/v1/embeddings"}, "line 1: url '/v1/embeddings' is not of completions"),
        ({"prompt": "a", "tools": [{}]}, "line 1: tools need messages"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "line 1: tool 1: "),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "line 1: message 1 has content"),
    ):
        assert message in run("complete", folder, "--input=-", stdin=lines(wrong)).error


def test_calls_in_an_answer_are_in_the_result_as_chat_interfaces_have_them() -> None:
    tokenizer = Tokenizer.from_folder(shipped_checkpoint())
    assert tokenizer.tool_tokens
    prompt = Prompt("here", messages=(Message("user", "x"),), tools=(Tool("now", "", {}),))
    item = Item(0, 0, prompt, Request([1]), CompleteOptions(), "key")
    tail = tokenizer.encode('[{"name": "now", "arguments": {"a": "é"}}]', bos=False)

    def result(ids: list[int]) -> dict[str, Any]:
        answer = PartialAnswer(finish_reason="stop", steps=[Generated(0, each, 0.0, "", None) for each in ids])
        return called(item, answer, tokenizer)

    found = result([tokenizer.tool_tokens.calls, *tail])
    (call,) = found["tool_calls"]
    assert (found["text"], found["finish_reason"], call["type"]) == ("", "tool_calls", "function")
    assert call["function"] == {"name": "now", "arguments": '{"a": "é"}'} and len(call["id"]) == 9
    assert result(tail) == {}
    broken = result([tokenizer.tool_tokens.calls, *tail[:-4]])
    assert "finish_reason" not in broken and broken["warning"].startswith("malformed") and "now" in broken["text"]


def test_tool_turns_and_tools_of_a_line_are_written_by_the_template(run: CommandLine) -> None:
    tools = [{"type": "function", "function": {"name": "now", "description": "", "parameters": {}}}]
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": {"zone": "x"}}}
    turns = [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12"},
    ]
    asked = {"messages": turns, "tools": tools, "max_tokens": 1}
    assert run("complete", *QUICK, "--input=-", stdin=lines(asked)).code == 0
    without = {**asked, "messages": [turns[0], turns[2]]}
    assert "message 2 has a tool_call_id" in run("complete", *QUICK, "--input=-", stdin=lines(without)).error


# Text


@pytest.mark.parametrize("break_", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_line_breaks_are_the_same_wherever_a_text_comes_from(
    run: CommandLine, folder: Path, tmp_path: Path, break_: bytes, end: bytes
) -> None:
    data, file = b"\xef\xbb\xbf" + TEXT.encode().replace(b"\n", break_) + end, tmp_path / "text"
    file.write_bytes(data)
    options = ("complete", folder, *QUICK, "--max_tokens=0", "--json")
    prompts = [records(run(*options, f"--prompt=@{file}").out)[0], records(run(*options, stdin=data).out)[0]]
    assert [each["prompt"] for each in prompts] == [TEXT, TEXT]
    scores = [run("score", folder, file, "--json", *QUICK), run("score", folder, "-", "--json", *QUICK, stdin=data)]
    for score in scores:
        summary = next(each["summary"] for each in map(json.loads, score.out.splitlines()) if "summary" in each)
        assert summary["bytes"] == len(TEXT)


def test_an_escape_in_json_stays_what_it_is(run: CommandLine, folder: Path) -> None:
    found = records(run("complete", folder, *QUICK, "--input=-", stdin=lines({"prompt": "a\r\n", "max_tokens": 0})).out)
    assert found[0]["prompt"] == "a\r\n"


def test_what_never_ends_is_refused(run: CommandLine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mistral.cli.input_text, "MAX_BYTES", 1 << 20)
    assert run("complete", folder, "--input=/dev/zero").error == "/dev/zero: longer than 1 MiB; give it in parts"
    assert "longer than 1 MiB" in run("score", folder, "/dev/zero").error
    assert "standard input: longer than 1 MiB" in run("score", folder, "-", stdin=b"x" * (1 << 20 | 1)).error
    assert "longer than" in run("complete", folder, "--prompt=@/dev/zero").error
    assert run("score", folder, folder).error.endswith("Is a directory; name a text file")


def test_results_have_characters_as_themselves_where_the_encoding_has_them(
    run: CommandLine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, out = "é漢🙂", tmp_path / "out"
    options = ("complete", folder, *QUICK, "--max_tokens=1", "--prompt", text)
    assert f'"prompt": "{text}"' in run(*options, "--json").out
    assert run(*options, "--out", out).code == 0 and text in out.read_text(encoding="utf-8")
    assert f'"prompt": "{text}"' in run("demo", folder, *QUICK, "--max_tokens=0", "--prompts", text, "--json").out
    assert json_line(text) == f'"{text}"' and json_line(text, "latin-1") == json.dumps(text)
    assert json_line("\ud800\x9b\u2028") == json.dumps("\ud800\x9b\u2028")
    assert json_line("é\x9b\u2028\n") == r'"é\u009b\u2028\n"', "no control character reaches a terminal"
    assert result_line({"é": None}) == '{"é": null}'


def test_a_locale_without_the_characters_still_gets_json(folder: Path) -> None:
    outcome = run_program("complete", folder, *QUICK, "--max_tokens=0", "--json", "-p", "é", PYTHONIOENCODING="ascii")
    assert outcome.code == 0 and r'"prompt": "\u00e9"' in outcome.out
    assert json.loads(outcome.out.splitlines()[0])["prompt"] == "é"


# Seeds


def test_without_a_seed_each_run_draws_its_own_and_shows_it(run: CommandLine, folder: Path) -> None:
    options = ("complete", folder, *QUICK, "--max_tokens=12", "--prompt=a", "--temperature=2", "--json")
    drawn = [run(*options, *more).out for more in ((), (), ("--seed=-1",), ("--seed", "-1"))]
    found = [records(each)[0] for each in drawn]
    assert len({result["seed"] for result in found}) == 4 and len({result["text"] for result in found}) == 4
    for out, result in zip(drawn, found, strict=True):
        assert json.loads(out.splitlines()[-1])["timings"]["seed"] == result["seed"]
    again = records(run(*options, "--seed", found[0]["seed"]).out)[0]
    assert again == found[0]
    outcome = run("demo", folder, *QUICK, "--max_tokens=1", "--temperature=1", "--seed=7")
    assert outcome.err.endswith(" | seed 7\n")
    assert run("demo", "--seed=-2").error.startswith("seed must be a whole number, 0 or more, not -2")


def test_at_temperature_0_nothing_is_drawn(run: CommandLine, folder: Path) -> None:
    options = (folder, *QUICK, "--max_tokens=3", "--json")
    for command in (("complete", *options, "--prompt=a"), ("demo", *options, "--prompts=a")):
        found = [run(*command, *seed).out.splitlines() for seed in ((), ("--seed=-1",), ("--seed=3",))]
        assert found[0][0] == found[1][0] == found[2][0]
        assert "seed" not in found[0][0] + found[0][1]


def test_a_run_goes_on_with_the_seed_that_it_has_drawn(run: CommandLine, folder: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts", tmp_path / "out"
    prompts.write_bytes(
        lines({"prompt": "a", "temperature": 0}, {"prompt": "b", "seed": 5}, *({"prompt": c} for c in "cdef"))
    )
    command = ("complete", folder, *QUICK, "--input", prompts, "--out", out, "--max_tokens=6", "--temperature=1")
    assert run(*command).code == 0
    whole = sorted(out.read_text().splitlines())
    seeds = [json.loads(line).get("seed") for line in whole]
    assert seeds[:2] == [None, 5] and len(set(seeds[2:])) == 1
    out.write_text("\n".join(whole[:3]) + "\n")
    assert run(*command).code == 0
    assert sorted(out.read_text().splitlines()) == whole
    out.write_text("".join(f"{line}\n" for line in whole[:2]))  # none of these was drawn with the seed of the run
    assert run(*command).code == 0
    assert {json.loads(line).get("seed") for line in out.read_text().splitlines()[2:]} != {seeds[2]}


def test_results_of_a_time_without_drawn_seeds_are_gone_on_from(run: CommandLine, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("complete", folder, *QUICK, "--prompt=a", "--n=3", "--out", out, "--max_tokens=4", "--temperature=1")
    assert run(*command, "--seed=0").code == 0
    found = records(out.read_text())
    for each in found:
        del each["seed"]
    out.write_text("".join(json.dumps(each) + "\n" for each in found[:2]))
    outcome = run(*command)
    assert outcome.code == 0 and f"{out} has 2 of 3 results already" in outcome.err
    assert records(out.read_text())[2]["text"] == found[2]["text"]


# No limit


def test_without_a_limit_an_answer_goes_on_to_its_end_or_that_of_the_context(
    run: CommandLine, folder: Path, tmp_path: Path
) -> None:
    told = ("complete", *QUICK, "--prompt", "Tom had a red ball. The ball was", "--json")
    ended = records(run(*told).out)[0]
    assert ended["finish_reason"] == "stop" and len(ended["ids"]) > 35
    limited = run("complete", folder, *QUICK, "--prompt=a", "--max_context=50")
    assert "note: the answer is cut at the context limit of 50 tokens" in limited.err
    endless = lines({"prompt": "a"}, {"prompt": "a b c"}, {"prompt": "a", "max_tokens": 4})
    outcome = run("complete", folder, *QUICK, "--input=-", "--max_context=50", "--json", stdin=endless)
    found = sorted(records(outcome.out), key=lambda each: int(each["index"]))
    prompts = [len(Tokenizer.from_folder(folder).encode(each["prompt"])) for each in found]
    assert [len(each["ids"]) for each in found] == [50 - prompts[0], 50 - prompts[1], 4]
    assert {each["finish_reason"] for each in found} == {"length"}
    named = write_model(tmp_path / "model", replace(ARGS, max_seq_len=40))
    assert len(records(run("complete", named, *QUICK, "--prompt=a", "--json").out)[0]["ids"]) == 40 - prompts[0]
    assert len(json.loads(run("demo", named, *QUICK, "--prompts=a", "--json").out.splitlines()[0])["ids"]) == 35


def test_memory_bounds_an_answer_without_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer.from_folder(folder, backend="native", device="CPU")
    assert Engine(model).answer_rooms([3, 5000]) == [OPEN_ENDED, OPEN_ENDED]
    assert Engine(model, max_context=100).answer_rooms([3, 99]) == [97, 1]
    assert Engine(model).answer_rooms([]) == []
    wide = write_model(folder.parent / "wide", replace(ARGS, sliding_windows=(None, 7)))
    engine = Engine(Transformer.from_folder(wide, backend="native", device="CPU"), max_context=131072)
    free = engine._nbytes(engine.model.layers, 1000)
    monkeypatch.setattr("mistral.engine.engine.available_memory", lambda: free)
    assert engine.answer_rooms([10, 999, 1005]) == [990, 1, 1]


def test_the_tokens_that_are_counted_are_those_of_the_answers(run: CommandLine, folder: Path) -> None:
    outcome = run("demo", *QUICK, "--json", "--prompts=This is a test")
    answer, last = map(json.loads, outcome.out.splitlines())
    assert answer["finish_reason"] == "stop", "the end is no token of the answer"
    assert last["timings"]["decode_tokens"] == len(answer["ids"]) == 27
    one = run("demo", folder, *QUICK, "--max_tokens=1", "--prompts=a")
    assert one.err.endswith("| decode 1 tokens, 0.0 tokens/s\n"), "its time is that of the prompt"
