"""Options: what a command takes, text turned into values, and the help that lists them."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mistral.cli.options
from mistral.cli.chat.command import Interactive
from mistral.cli.complete.command import Complete
from mistral.cli.demo import Demo
from mistral.cli.help_text import command_help, describe
from mistral.cli.info.command import Info
from mistral.cli.options import (
    checked_arguments,
    converted,
    fixed,
    operand,
    option,
    read_text,
    read_texts,
    text_option,
)
from mistral.cli.score import Score
from mistral.cli.synonyms import INSTEAD, SAME
from mistral.errors import InputError, visible


@dataclass(frozen=True)
class Cook:
    """Cook something.

    For a while.
    """

    dish: str | None = operand("What to cook.")
    minutes: int = option(5, "For how long.")
    salt: float = option(0.5, "How much.")
    guests: int | None = option(None, "How many eat.")
    notes: tuple[str, ...] = option((), "What else to know.")
    spicy_hot: bool = option(False, "With chilli.")


@dataclass(frozen=True)
class Bake(Cook):
    """Bake something."""

    title: str | None = text_option("How it is called.")
    between: tuple[str, str] | None = option(None, "What comes under it and over it.")
    salt: float = fixed(0.0)


def refused(*arguments: str) -> str:
    with pytest.raises(InputError) as caught:
        checked_arguments(arguments, Cook)
    return str(caught.value)


# Which arguments there are


def test_arguments_come_out_in_the_one_form_that_cannot_be_misread() -> None:
    given_arguments = ["soup", "--minutes", "-3", "--salt=", "--spicy-hot", "--notes", "-"]
    spelled = ["--minutes=-3", "--salt=", "--spicy_hot=true", "--notes=-", "--dish=soup"]
    assert checked_arguments(given_arguments, Cook) == spelled
    assert checked_arguments([], Cook) == []


def test_a_switch_takes_no_word_that_follows_it() -> None:
    assert checked_arguments(["--spicy_hot", "soup"], Cook) == ["--spicy_hot=true", "--dish=soup"]


@pytest.mark.parametrize(
    "off",
    [["--no_spicy_hot"], ["--no-spicy-hot"], ["--spicy_hot", "false"], ["--spicy-hot", "False"], ["--spicy_hot=false"]],
)
def test_a_switch_can_be_turned_off(off: list[str]) -> None:
    (first, *rest) = checked_arguments([*off, "soup"], Cook)
    assert first.lower() == "--spicy_hot=false" and rest == ["--dish=soup"]
    assert checked_arguments(["--spicy_hot", "true", "soup"], Cook) == ["--spicy_hot=true", "--dish=soup"]
    assert checked_arguments(["true"], Cook) == ["--dish=true"]


def test_only_switches_can_be_turned_off() -> None:
    assert refused("--no_minutes").startswith("--no_minutes: cook has no such option")
    assert "given twice" in refused("--spicy_hot", "--no_spicy_hot")


@pytest.mark.parametrize("word", ["-", "-5", "", "None", "a=b", "[1]", "@file"])
def test_a_word_is_an_operand_whatever_it_looks_like(word: str) -> None:
    assert checked_arguments([word], Cook) == [f"--dish={word}"]


def test_a_value_keeps_its_equals_signs_and_line_breaks() -> None:
    assert checked_arguments(["--notes=a=b\nc"], Cook) == ["--notes=a=b\nc"]


@pytest.mark.parametrize("flag", ["--minute", "--MINUTES", "-minutes", "-m", "--", "--=3", "--nospicy_hot", "--x=\n"])
def test_an_unknown_flag_is_refused_by_name(flag: str) -> None:
    assert refused(flag, "3").startswith(f"{flag.partition('=')[0]}: cook has no such option")


def test_a_near_miss_gets_a_hint() -> None:
    assert "did you mean --minutes?" in refused("--minuets=3")
    assert "did you mean --minutes?" in refused("-minutes", "3")
    assert "--help lists the options" in refused("--oven")


def test_a_repeated_flag_is_refused_however_it_is_written() -> None:
    assert "--minutes: given twice; leave one out" in refused("--minutes=1", "--minutes", "2")
    assert "--spicy-hot: given twice" in refused("--spicy_hot", "--spicy-hot")
    assert "'soup': one word too many" in refused("soup", "--dish=stew")
    assert "JSON list" in refused("--notes=a", "--notes=b")


@pytest.mark.parametrize("word", ["yes", "No", "on", "OFF"])
def test_a_switch_takes_the_word_that_was_meant_for_it(word: str) -> None:
    """It is refused as a value, as --spicy_hot=yes is; as one word too many the message would name no switch."""
    assert checked_arguments(["soup", "--spicy_hot", word], Cook) == [f"--spicy_hot={word}", "--dish=soup"]


def test_a_missing_value_is_refused() -> None:
    assert refused("--minutes") == "--minutes: needs a value"
    assert refused("--notes", "--spicy_hot").endswith("write --notes=--spicy_hot")


def test_too_many_words_are_refused() -> None:
    assert "'bread'" in refused("soup", "bread")
    assert "'bread'" in refused("--dish=soup", "bread")


# Their values


def test_text_becomes_the_types_of_the_fields() -> None:
    command = Cook("7", minutes="8", salt="1e-1", guests="2", notes='["a", "b"]', spicy_hot="TRUE")  # type: ignore[arg-type]
    assert converted(command) == Cook("7", minutes=8, salt=0.1, guests=2, notes=("a", "b"), spicy_hot=True)
    assert converted(Cook()) == Cook()


@pytest.mark.parametrize("value", ["", "x", "1.5", "1e3", "None", "9" * 5000, "0x10"])
def test_a_whole_number_is_asked_for_by_name(value: str) -> None:
    for name in ("minutes", "guests"):
        with pytest.raises(InputError, match=f"--{name} .*: must be a whole number") as caught:
            converted(replace(Cook(), **{name: value}))  # type: ignore[arg-type]
        assert len(str(caught.value)) < 100


def test_numbers_and_switches_are_asked_for_by_name() -> None:
    with pytest.raises(InputError, match=r"--salt much: must be a number"):
        converted(Cook(salt="much"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"--spicy_hot maybe: is a switch"):
        converted(Cook(spicy_hot="maybe"))  # type: ignore[arg-type]
    assert converted(Cook(spicy_hot="False")) == Cook()  # type: ignore[arg-type]


@given(st.text())
def test_text_stays_the_text_that_was_typed(text: str) -> None:
    assert converted(Cook(text)) == Cook(text)


@pytest.mark.parametrize("text", ["42", "None", "True", "1e5", '{"a": 1}', "[INST] hi", "[1, 2]", "[]", '["a", 1]', ""])
def test_a_text_that_is_no_list_of_texts_is_itself(text: str) -> None:
    assert read_texts("notes", text) == (text,)


@pytest.mark.parametrize("text", ["[" * 100_000, "[" + "9" * 5000 + "]", '["a"', '["a",]', "[nan]"])
def test_broken_json_is_a_text(text: str) -> None:
    assert read_texts("notes", text) == (text,)


def test_a_json_list_gives_each_of_its_texts() -> None:
    assert read_texts("notes", ' ["1", "", "\\u00e9", "@@x"] ') == ("1", "", "é", "@x")


def test_at_reads_a_file_and_at_at_does_not(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes("\ufeffdéjà\r\nvu\n\n".encode())
    assert read_text("notes", f"@{file}") == "déjà\nvu\n", "one line break at the end is the editor's"
    assert read_text("notes", "@@home") == "@home"
    assert read_texts("notes", f'["@{file}", "b"]') == ("déjà\nvu\n", "b")


def test_a_file_may_hold_a_list_that_names_files(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("first")
    (tmp_path / "list").write_text(json.dumps([f"@{tmp_path / 'one'}", "second"]))
    assert read_texts("notes", f"@{tmp_path / 'list'}") == ("first", "second")


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    (tmp_path / "long").write_text("four")
    monkeypatch.setattr(mistral.cli.options, "MAX_TEXT", 3)
    for name in (tmp_path / "missing", tmp_path, tmp_path / "latin", tmp_path / "long", "a\0b", "\ud800", "x" * 5000):
        with pytest.raises(InputError) as caught:
            read_text("notes", f"@{name}")
        assert str(caught.value).startswith(f"--notes @{visible(str(name))}: ")


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """As in a shell's --notes @<(command): whoever opens it again would find nothing, or wait."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=["hello\n"])
    writer.start()
    assert converted(Cook(notes=f"@{pipe}")).notes == ("hello",)  # type: ignore[arg-type]
    writer.join(timeout=5)
    assert not writer.is_alive()


# Help


@pytest.mark.parametrize("command", [Cook, Demo, Interactive])
def test_help_lists_every_option_with_its_text(command: type) -> None:
    text = describe(command.__name__.lower(), "prog", command)
    words = " ".join(text.split())
    assert text.startswith(f"usage: prog {command.__name__.lower()} [")
    for field in fields(command):
        assert (f"\n  --{field.name}" if field.kw_only else f"\n  {field.name.upper()}\n") in text
        assert field.metadata["help"] in words
    assert max(map(len, text.splitlines())) <= 88


def test_help_shows_defaults_but_not_empty_ones() -> None:
    text = describe("cook", "prog", Cook)
    assert "For how long. [5]" in text and "How much. [0.5]" in text
    assert "None" not in text and "()" not in text and "[False]" not in text
    assert "--spicy_hot\n" in text and "--minutes MINUTES\n" in text


# Texts in twos, texts from files, and options that a command does not take


def baked(*arguments: str) -> Bake:
    values = dict(each.removeprefix("--").split("=", 1) for each in checked_arguments(arguments, Bake))
    return converted(Bake(**values))  # type: ignore[arg-type]


def test_two_texts_follow_their_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from a file\n")
    assert baked("--between", "a b", "", "cake").between == ("a b", "")
    assert baked("--between", "-x", f"@{tmp_path / 'file'}", "--minutes", "3").between == ("-x", "from a file")
    assert baked('--between=["--a", "@@b"]').between == ("--a", "@b")
    assert baked("cake").between is None
    for arguments, message in (
        (["--between", "a"], "--between: needs two values"),
        (
            ["--between", "a", "--minutes=3"],
            "--between: needs a value; for a text that begins with --, write --between=[",
        ),
        (["--between=a"], "--between a: needs two texts"),
        (['--between=["a"]'], "needs two texts"),
        (['--between=["a", 1]'], "needs two texts"),
        (["--between", "a", "b", "--between", "a", "b"], "--between: given twice"),
    ):
        with pytest.raises(InputError) as caught:
            baked(*arguments)
        assert message in str(caught.value)


def test_one_text_stays_a_text_and_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('["a", "b"]\n')
    assert baked(f"--title=@{tmp_path / 'file'}").title == '["a", "b"]'
    assert baked('--title=["a"]').title == '["a"]' and baked("--title", "42").title == "42"


def test_a_switch_can_be_turned_off_and_words_find_the_operands_that_are_free() -> None:
    assert checked_arguments(["--spicy_hot", "false", "soup"], Cook) == ["--spicy_hot=false", "--dish=soup"]
    assert checked_arguments(["--no-spicy-hot"], Cook) == checked_arguments(["--no_spicy_hot"], Cook)
    assert checked_arguments(["--no_spicy_hot"], Cook) == ["--spicy_hot=false"]
    assert "--no_minutes: cook has no such option" in refused("--no_minutes")
    assert checked_arguments(["text"], Score) == ["--file=text"], "a single word is the text's"
    for line in (["model", "text"], ["text", "-m", "model"], ["-m=model", "text"], ["--file", "text", "model"]):
        assert sorted(checked_arguments(line, Score)) == ["--ckpt=model", "--file=text"]


@pytest.mark.parametrize(
    ("command", "line", "meant"),
    [
        (Complete, ["-m", "folder", "-p", "hi", "-n", "5"], ["--ckpt=folder", "--prompt=hi", "--max_tokens=5"]),
        (Complete, ["--n", "5", "-s", "1", "-t", "2"], ["--n=5", "--seed=1", "--threads=2"]),
        (Complete, ["--temp", "1", "--max-new-tokens=3"], ["--temperature=1", "--max_tokens=3"]),
        (Complete, ["-f", "file", "-c", "9"], ["--prompt=@file", "--max_context=9"]),
        (Complete, ["-i", "in", "-o", "out", "-b", "8"], ["--input=in", "--out=out", "--batch_size=8"]),
        (Complete, ["-md", "small"], ["--draft=small"]),
        (Complete, ["-sys", "be brief", "-cnv"], ["--system=be brief", "--instruct=true"]),
        (Demo, ["--model", "x", "-p", "hi", "--repeat-penalty", "1.1"],
         ["--ckpt=x", "--prompts=hi", "--repetition_penalty=1.1"]),
        (Interactive, ["--system-prompt=a", "--ctx-size", "64"], ["--system=a", "--max_context=64"]),
        (Info, ["--ctx-size", "64", "--batch", "2"], ["--context=64", "--batch=2"]),
        (Score, ["-f", "text", "--num-ranks", "2"], ["--file=text", "--num_pipeline_ranks=2"]),
    ],
)  # fmt: skip
def test_names_of_other_programs_mean_the_same_here(command: type, line: list[str], meant: list[str]) -> None:
    assert checked_arguments(line, command) == meant


@pytest.mark.parametrize(
    ("command", "flag", "hint"),
    [
        (Demo, "--gpu-layers", "--device says which"),
        (Demo, "-ngl", "--device says which"),
        (Demo, "--quantization", "--bits 8 or --bits 4"),
        (Demo, "--load-in-4bit", "write --bits 4"),
        (Complete, "--stream", "always shown as it is written"),
        (Complete, "--port", "it is an option of serve"),
        (Complete, "--max-length", "--max_context prompt and answer together"),
        (Complete, "--temprature", "did you mean --temperature?"),
        (Complete, "--max_new_token", "did you mean --max_tokens?"),
        (Interactive, "-p", "complete and demo take it"),
    ],
)
def test_what_is_not_here_gets_a_sentence_or_the_likest_name(command: type, flag: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        checked_arguments([flag, "1"], command)
    assert str(caught.value).startswith(f"{flag}: {command.__name__.lower()} has no such option; ")
    assert hint in str(caught.value)


def test_every_name_of_another_program_leads_to_an_option() -> None:
    names = {f.name for kind in (Complete, Demo, Info, Score) for f in fields(kind)}
    assert all(option.removeprefix("@") in names | {"batches"} for options in SAME.values() for option in options)
    assert not set(SAME) & (set(INSTEAD) - {"-p", "-f", "--prompt"})


def test_help_is_in_groups_as_wide_as_asked_and_has_short_names_and_examples() -> None:
    page = command_help("complete", "prog", Complete)
    text = page.plain(60)
    assert max(map(len, text.splitlines())) <= 60
    titles = [title for title, _ in page.groups]
    assert titles == [
        "What it works on", "Sampling", "Structured output", "Where it runs", "Several processes",
        "What comes out",
    ]  # fmt: skip
    rows = dict(row for _, group in page.groups for row in group)
    assert rows["--max_tokens TOKENS"].endswith("Also -n.") and rows["CKPT"].endswith("Also -m.")
    assert "example: prog complete CKPT --input prompts.jsonl --out answers.jsonl" in page.plain()


def test_an_inherited_option_that_is_not_taken_is_unknown_and_not_shown() -> None:
    assert baked("cake").salt == 0.0
    with pytest.raises(InputError, match="--salt: bake has no such option"):
        baked("--salt=1")
    text = describe("bake", "kitchen", Bake)
    assert "--salt" not in text and "  --between TEXT TEXT\n" in text and "  --title TITLE\n" in text
