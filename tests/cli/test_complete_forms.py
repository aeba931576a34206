"""The complete command: answers of a given form, for all prompts or by line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support.command_line import CommandLine

pytestmark = pytest.mark.usefixtures("all_compiled")
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "maximum": 9, "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
QUICK = ("--threads=1", "--backend=native")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def test_all_prompts_by_a_file_and_each_line_as_it_says(run: CommandLine, tmp_path: Path) -> None:
    schema, lines = tmp_path / "schema.json", tmp_path / "lines.jsonl"
    schema.write_text(json.dumps(PERSON, indent=1), encoding="utf-8-sig")
    asked: list[dict[str, Any]] = [
        {"prompt": "Tom"},
        {"prompt": "Tom", "json_schema": {"enum": ["a", 1]}},
        {"messages": [{"role": "user", "content": "Hi"}], "response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}}}},
        {"prompt": "Tom", "regex": "[0-9]{3}", "min_tokens": 2, "presence_penalty": 0.5},
        {"prompt": "Tom", "grammar": 'start: "x" /y{2}/', "ignore_eos": True},
        {"prompt": "Tom", "regex": "[ab]{4}", "logit_bias": {"69": -100.0}, "frequency_penalty": 1},
    ]  # fmt: skip
    lines.write_text("".join(f"{json.dumps(line)}\n" for line in asked))
    out = tmp_path / "out.jsonl"
    command = ("complete", f"--input={lines}", f"--json_schema={schema}", f"--out={out}", "--max_tokens=60", *QUICK)
    assert run(*command).code == 0
    found = sorted((json.loads(line) for line in out.read_text().splitlines()), key=lambda each: int(each["index"]))
    assert [each["finish_reason"] for each in found] == ["stop"] * len(asked)
    texts = [each["text"] for each in found]
    jsonschema.validate(json.loads(texts[0]), PERSON)
    assert json.loads(texts[1]) in ("a", 1)
    assert [type(each) for each in json.loads(texts[2])] == [bool, bool]
    assert re.fullmatch("[0-9]{3}", texts[3]) and texts[4] == "xyy" and re.fullmatch("[ab]{4}", texts[5])
    again = run(*command)
    assert again.code == 0 and "6 of 6 results already" in again.err
    schema.write_text('{"type": "null"}')
    assert "answers another prompt, model or setting" in run(*command).error


def test_one_prompt_by_an_expression_or_a_grammar(run: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "grammar.lark"
    file.write_text('start: "no" | "never"\n')
    assert run("complete", "--prompt=Tom", f"--grammar={file}", *QUICK).out in ("no\n", "never\n")
    assert re.fullmatch(r"\d{4}\n", run("complete", "--prompt=Tom", r"--regex=\d{4}", "--instruct", *QUICK).out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json_schema=/nowhere"], "--json_schema: /nowhere: No such file or directory"),
        (["--regex=("], "--regex: cannot be used"),
        (["--regex=a", "--grammar=x"], "--grammar: cannot be together with --regex"),
        (["--presence_penalty=3"], "presence_penalty must be a number from -2 to 2"),
        (["--min_tokens=-1"], "--min_tokens -1: must be 0 or more"),
    ],
)
def test_options_that_cannot_be_are_refused(run: CommandLine, options: list[str], message: str) -> None:
    assert message in run("complete", "--prompt=x", *options, *QUICK).error.replace("--prompt: ", "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"json_schema": 3}, "line 1: json_schema: no JSON schema"),
        ({"json_schema": {"type": "odd"}}, "line 1: json_schema: cannot be used"),
        ({"json_schema": {"$ref": "http://x"}}, "line 1: json_schema: refers to 'http://x'"),
        ({"response_format": {"type": "xml"}}, "line 1: response_format: its type must be one of"),
        ({"regex": "a", "grammar": "b"}, "line 1: grammar: cannot be together with regex"),
        ({"logit_bias": {"a": 1}}, "line 1: logit_bias must have ids as its keys, not 'a'"),
        ({"logit_bias": [1]}, "line 1: logit_bias must be an object"),
        ({"ignore_eos": 1}, "line 1: ignore_eos must be true or false"),
        ({"min_tokens": True}, "line 1: min_tokens must be a whole number"),
    ],
)
def test_lines_that_cannot_be_are_named(run: CommandLine, tmp_path: Path, line: dict[str, Any], message: str) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text(json.dumps({"prompt": "x", **line}))
    assert message in run("complete", f"--input={file}", *QUICK).error
