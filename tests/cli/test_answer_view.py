"""Answers on a terminal: whole words, Markdown, nothing lost, nothing that acts on the terminal."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable

import pytest

from mistral.cli.chat.answer_view import PlainView, TerminalView
from mistral.cli.chat.markdown_line import rendered
from mistral.cli.chat.word_wrap import WordWrap
from tests.support.screen import Screen


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Screen]:
    """Shows an answer, in the pieces given or cut at random, at a terminal of some width."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def shown(
        text: str, width: int = 30, markdown: bool = True, seed: int = 0, thought: str = "", thoughts: bool = True
    ) -> Screen:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("LINES", "24")
        screen, cuts = Screen(width), random.Random(seed)
        monkeypatch.setattr(sys, "stdout", screen)
        view = TerminalView(markdown, thoughts)
        while thought:
            piece = cuts.randint(1, 7)
            view.think(thought[:piece])
            thought = thought[piece:]
        while text:
            piece = cuts.randint(1, 7)
            view.push(text[:piece])
            text = text[piece:]
        view.end()
        return screen

    return shown


def wrapped(text: str, width: int) -> str:
    wrap = WordWrap(width)
    return "".join(map(wrap.push, text)) + wrap.flush()


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one two three", ["one two", "three"]),
        ("one two  ", ["one two"]),
        ("one  ", ["one  "]),
        ("a\n\n  b c", ["a", "", "  b c"]),
        ("1234567 8", ["1234567", "8"]),
        ("123456789012345 7", ["12345678", "9012345", "7"]),
        ("ab 12345678901", ["ab", "12345678", "901"]),
        ("漢字漢字漢", ["漢字漢字", "漢"]),
        ("ab漢字c漢", ["ab漢字c", "漢"]),
        ("a\tb c", ["a", "b c"]),
        ("e\u0301e\u0301 x e\u0301e\u0301e\u0301e\u0301", ["e\u0301e\u0301 x", "e\u0301e\u0301e\u0301e\u0301"]),
    ],
)
def test_lines_are_broken_between_words(text: str, lines: list[str]) -> None:
    assert wrapped(text, 8).split("\n") == lines


def test_nothing_but_spaces_is_lost_by_breaking_lines() -> None:
    draw = random.Random(1)
    for _ in range(300):
        text = "".join(draw.choice("ab  \t\n漢e\u0301-") for _ in range(draw.randint(0, 60)))
        width = draw.randint(1, 12)
        found = wrapped(text, width)
        assert re.sub(r"\s", "", found) == re.sub(r"\s", "", text)


def test_a_word_is_shown_as_soon_as_it_is_whole() -> None:
    wrap = WordWrap(20)
    assert [wrap.push(piece) for piece in ("On", "ce", " up", "on\n", "a")] == ["", "", "Once", " upon\n", ""]
    assert (wrap.flush(), wrap.column) == ("a", 1)


def test_markdown_is_shown_without_its_marks(show: Callable[..., Screen]) -> None:
    text = "# A **bold** head\n\nSome *words* and `code`.\n- item that is long enough to go on\n2. two\n> said\n**it**"
    screen = show(text)
    assert screen.rows() == [
        "A bold head", "", "Some words and code.", "• item that is long enough to", "  go on", "2. two", "│ said", "it"
    ]  # fmt: skip
    assert "\x1b[1m" in screen.getvalue() and "\x1b[36m" in screen.getvalue()


@pytest.mark.parametrize(
    "line",
    [
        "2*3*4 and a**b**c",
        "*args and **kwargs",
        "__init__ and snake_case_name",
        "a * b * c",
        r"\*no\*",
        "5 > 4",
        "#tag",
    ],
)
def test_marks_that_are_none_stay(line: str) -> None:
    assert rendered(line, 79, colour=True) is None


def test_code_and_tables_are_left_as_they_are(show: Callable[..., Screen]) -> None:
    code = "```python\nx = a ** b  # longer than a line, **not** bold, _\n# no heading\n```"
    text = (
        f"{code}\n    indented **code** that is longer than a line\n| a | **b** | and more columns than fit |\n**bold**"
    )
    copied = re.sub("\x1b\\[[0-9;]*m", "", show(text).getvalue())
    assert copied.startswith(text.removesuffix("**bold**")), "no line break of ours, no mark taken away"
    assert show("```\n**a**\n````\n**b**\n").rows() == ["```", "**a**", "````", "b"], "a longer fence ends the block"


def test_no_words_are_lost_or_moved_whatever_comes(show: Callable[..., Screen]) -> None:
    draw = random.Random(2)
    parts = [
        "word",
        "**b**",
        "*i*",
        "`c`",
        "- ",
        "1. ",
        "# ",
        "> ",
        "\n",
        "```\n",
        " ",
        "    ",
        "|",
        "漢",
        "x" * 40,
        "*",
        "`",
    ]
    for seed in range(200):
        text = "".join(draw.choice(parts) for _ in range(30))
        found = "".join(show(text, width=draw.randint(8, 40), seed=seed).rows())
        kept = re.sub(r"[^a-z漢]", "", text)
        assert re.sub(r"[^a-z漢]", "", found) == kept, text


def test_without_a_chat_template_marks_stay(show: Callable[..., Screen]) -> None:
    assert show("some **bold** words that are long", width=20, markdown=False).rows() == [
        "some **bold** words", "that are long"
    ]  # fmt: skip


def test_control_characters_of_an_answer_are_visible(show: Callable[..., Screen]) -> None:
    screen = show("a\x1b[2Jb **c\x07** \u009b31m\rd")
    assert screen.rows() == [r"a\x1b[2Jb c\x07 \x9b31md"]


def test_a_stop_is_told_at_once_and_makes_way(show: Callable[..., Screen], monkeypatch: pytest.MonkeyPatch) -> None:
    show("")
    screen = Screen(80)
    monkeypatch.setattr(sys, "stdout", screen)
    view = TerminalView(True)
    view.push("one two")
    view.stop()
    assert screen.rows() == ["one [stopping]"]
    view.push(" three")
    assert screen.rows() == ["one two"]
    view.end()
    assert screen.rows() == ["one two three"]


# Thoughts


def test_thoughts_stand_before_the_answer_dim_in_whole_words_without_markdown(show: Callable[..., Screen]) -> None:
    thought = "\n\nI need **the** clock, and a bit more room.\n\n- `now`\x1b[2J\n\n"
    screen = show("\n\nIt's **noon**.\n", thought=thought)
    assert screen.rows() == [
        "I need **the** clock, and a", "bit more room.", "", r"- `now`\x1b[2J", "", "It's noon.",
    ]  # fmt: skip
    text = screen.getvalue()
    dim = re.findall(r"\x1b\[2m(.*?)\x1b\[0m", text, re.DOTALL)
    assert re.sub(r"\s", "", "".join(dim)) == re.sub(r"\s", "", thought.replace("\x1b", r"\x1b"))
    assert not re.search("clock|now", re.sub(r"\x1b\[2m.*?\x1b\[0m", "", text, flags=re.DOTALL))


def test_without_colours_thoughts_are_marked(show: Callable[..., Screen], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    screen = show("Noon.", thought="\nI need the clock, all of it.")
    assert screen.rows() == ["[thinking] I need the clock,", "all of it. [/thinking]", "", "Noon."]
    assert "\x1b[2m" not in screen.getvalue()


def test_hidden_thoughts_leave_a_word_until_the_answer_begins(show: Callable[..., Screen]) -> None:
    screen = show("Noon.", thought="I need the clock.", thoughts=False)
    assert screen.rows() == ["Noon."]
    assert screen.getvalue().count("thinking ...") == 1 and "clock" not in screen.getvalue()
    assert show("", thought="I need the clock.", thoughts=False).rows() == []


def test_an_answer_may_end_in_a_thought_or_think_again(
    show: Callable[..., Screen], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert show("", thought="I need the clock.\n").rows() == ["I need the clock."]
    screen = Screen(80)
    monkeypatch.setattr(sys, "stdout", screen)
    for thoughts, rows in ((True, ["a", "", "one two", "b"]), (False, ["one two"])):
        screen.seek(0)
        view = TerminalView(True, thoughts)
        view.think("a")
        view.push("")
        view.push("one **two**")
        view.think("b")
        view.end()
        assert view.ends_in_thought == thoughts
        assert screen.rows() == rows
        screen = Screen(80)
        monkeypatch.setattr(sys, "stdout", screen)


def test_a_stop_is_told_within_a_thought(show: Callable[..., Screen], monkeypatch: pytest.MonkeyPatch) -> None:
    show("")
    screen = Screen(80)
    monkeypatch.setattr(sys, "stdout", screen)
    view = TerminalView(True)
    view.think("one two")
    view.stop()
    assert screen.rows() == ["one [stopping]"]
    view.end()
    assert screen.rows() == ["one two"]


def test_in_a_pipe_thoughts_are_no_part_of_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    for thoughts, err in ((True, "[thinking] I need it. [/thinking]\n"), (False, "")):
        view = PlainView(True, thoughts)
        for piece in ("I need", " it."):
            view.think(piece)
            view.push("")
        view.push("Noon.")
        view.end()
        assert capsys.readouterr() == ("Noon.", err)
    view = PlainView(False, True)
    view.think("x")
    view.push("y")
    view.end()
    assert capsys.readouterr() == ("", "")
