"""Thoughts in what a model writes: from ids, as they come, whatever else the model writes around them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral.tokenizer.messages import Message
from mistral.tokenizer.streaming import TextStream
from mistral.tokenizer.thoughts import ThinkTokens, ThoughtStream, system_parts
from mistral.tokenizer.tool_calls import Reply, ReplyStream, assistant_message, parse_reply
from tests.support.tool_cases import CALL, OTHER, TOOLS, by_library, load

KIND = "v13 tekken"
BEGIN, END, CALLS, ARGS, EOS = 34, 35, 9, 32, 2


def ids(*parts: int | str) -> list[int]:
    """Control tokens as they are, and the ids of texts."""
    return [token for part in parts for token in ([part] if isinstance(part, int) else plain(part))]


def plain(text: str) -> list[int]:
    return load(KIND).encode(text, bos=False)


def streamed(
    written: list[int], stop: tuple[str, ...] = (), thinking: bool = False, has_calls: bool = True
) -> tuple[str, str, Reply]:
    """What is shown as text and as thoughts while ids come one by one, and the reply."""
    tokenizer = load(KIND)
    text = TextStream(tokenizer.stream(), stop, tokenizer.think_tokens, thinking)
    stream, shown, thoughts = ReplyStream(tokenizer, TOOLS, (), thinking, has_calls), "", ""
    for token_id in written:
        shown += stream.push(token_id, text.push(token_id))
        thoughts += stream.thought
        if text.stopped:
            break
    shown += stream.push(None, text.flush())
    thoughts += stream.thought
    rest, reply = stream.finish()
    return shown + rest, thoughts, reply


@pytest.mark.parametrize(
    ("written", "reply"),
    [
        (ids(BEGIN, "Hm. 🙂", END, "Fine."), Reply("Fine.", thoughts="Hm. 🙂")),
        (ids("So: ", BEGIN, "Hm.", END, "Fine."), Reply("So: Fine.", thoughts="Hm.")),
        (ids(BEGIN, "Hm."), Reply("", thoughts="Hm.")),
        (ids(BEGIN), Reply("")),
        (ids(BEGIN, END, "Fine."), Reply("Fine.")),
        (ids(END, "Fine.", END), Reply("Fine.")),
        (ids(BEGIN, "a", BEGIN, "b", END, "c"), Reply("c", thoughts="a\nb")),
        (ids(BEGIN, "a", END, "b", BEGIN, "c", END, "d"), Reply("bd", thoughts="a\nc")),
        (ids(BEGIN, "a", END, BEGIN, END, "b"), Reply("b", thoughts="a")),
        (ids(BEGIN, "\n a\n", END, "\n\nb\n"), Reply("\n\nb\n", thoughts="\n a\n")),
        (ids("[THINK]a[/THINK]b"), Reply("[THINK]a[/THINK]b")),
        (ids(BEGIN, "[/THINK]", END, "b"), Reply("b", thoughts="[/THINK]")),
        (ids(BEGIN, "a", EOS), Reply("", thoughts="a")),
    ],
)
def test_thoughts_are_told_from_the_answer(written: list[int], reply: Reply) -> None:
    assert parse_reply(load(KIND), written, TOOLS) == reply
    assert streamed(written) == (reply.text, reply.thoughts, reply)
    message = assistant_message(load(KIND), reply)
    assert message == Message("assistant", reply.text, thoughts=reply.thoughts)


def test_half_a_character_ends_where_its_thought_ends() -> None:
    cut = plain("🙂")[:-1]
    assert cut, "several tokens"
    assert parse_reply(load(KIND), [BEGIN, *cut, END, *plain("b")]) == Reply("b", thoughts="\ufffd")
    assert streamed([BEGIN, *cut, END, *plain("b")])[:2] == ("b", "\ufffd")


def test_calls_come_after_thoughts_or_end_them() -> None:
    call = ids(CALLS, "now", ARGS, "{}")
    for written in (ids(BEGIN, "Hm.", END) + call, ids(BEGIN, "Hm.") + call):
        reply = parse_reply(load(KIND), written, TOOLS)
        assert (reply.text, reply.thoughts, [made.name for made in reply.calls]) == ("", "Hm.", ["now"])
        assert streamed(written) == ("", "Hm.", reply)
    reply = parse_reply(load(KIND), ids(BEGIN, "Hm.", END, "I look.") + call + ids(EOS), TOOLS)
    assert (reply.text, reply.thoughts, len(reply.calls)) == ("I look.", "Hm.", 1)


def test_what_the_library_writes_is_read_back() -> None:
    start = [Message("user", "x")]
    said = Message("assistant", "I look.", (CALL, OTHER), thoughts="Hm.\n")
    whole = by_library(KIND, [*start, said, Message.result(CALL, "1"), Message.result(OTHER, "2")])
    written = whole[len(by_library(KIND, start)) :]
    reply = parse_reply(load(KIND), written[: written.index(EOS)], TOOLS)
    assert (reply.text, reply.thoughts) == ("I look.", "Hm.\n")
    assert [(made.name, made.arguments) for made in reply.calls] == [(c.name, c.arguments) for c in (CALL, OTHER)]


@pytest.mark.parametrize("tail", ["{", "{}[", ""])
def test_a_malformed_call_keeps_the_thoughts_apart(tail: str) -> None:
    written = ids(BEGIN, "Hm.", END, CALLS, "now", ARGS, tail or "[1]", BEGIN, "x")
    reply = parse_reply(load(KIND), written, TOOLS)
    assert (reply.text, reply.thoughts) == (f"[TOOL_CALLS]now[ARGS]{tail or '[1]'}[THINK]x", "Hm.")
    assert reply.warning and not reply.calls
    assert streamed(written) == (reply.text, "Hm.", reply)


def test_where_calls_are_not_looked_for_thoughts_still_are() -> None:
    written = ids(BEGIN, "Hm.", END, CALLS, "now{}")
    assert streamed(written, has_calls=False) == ("now{}", "Hm.", Reply("now{}", thoughts="Hm."))


def test_stop_strings_end_the_answer_and_not_the_thoughts() -> None:
    written = ids(BEGIN, "a END b EN", END, "D, c EN", "D d")
    assert streamed(written, ("END",))[:2] == ("D, c ", "a END b EN"), "and none is made of the end of both"
    assert streamed(ids("a EN", BEGIN, "D", END, "b"), ("END",))[:2] == ("a ENb", "D")


def test_an_answer_may_begin_within_a_thought() -> None:
    prompt = load(KIND).encode_chat([Message("user", "x"), Message("assistant", "", thoughts="H", prefix=True)])
    assert load(KIND).thinks_after(prompt)
    written = ids("m. END", END, "Fine. END")
    assert parse_reply(load(KIND), written, thinking=True) == Reply("Fine. END", thoughts="m. END")
    assert streamed(written, ("END",), thinking=True)[:2] == ("Fine. ", "m. END")
    call = ids("m.", CALLS, "now", ARGS, "{}")
    assert parse_reply(load(KIND), call, TOOLS, thinking=True).thoughts == "m." == streamed(call, (), True)[1]


def test_tokenizers_without_think_tokens_have_no_thoughts() -> None:
    for kind in ("v1", "v3", "v7", "v11 tekken"):
        tokenizer = load(kind)
        assert tokenizer.think_tokens is None and not tokenizer.thinks_after([1, 34])
        text = "<think>a</think>[THINK]b[/THINK]"
        assert parse_reply(tokenizer, tokenizer.encode(text, bos=False)) == Reply(text)


def test_think_tokens_of_other_makers_are_found_by_name() -> None:
    assert ThinkTokens.among({"<think>": 7, "</think>": 8}) == ThinkTokens(7, 8)
    assert ThinkTokens.among({"[THINK]": 7}) is None


@given(st.lists(st.sampled_from([BEGIN, END, CALLS, ARGS, EOS, 33]) | st.integers(1000, 2999), max_size=25))
@settings(max_examples=150, deadline=None)
def test_whatever_comes_nothing_is_lost_or_in_two_places(written: list[int]) -> None:
    tokenizer = load(KIND)
    shown, thoughts, reply = streamed(written)
    assert reply == parse_reply(tokenizer, written, TOOLS)
    assert (shown, thoughts) == (reply.text, reply.thoughts)
    if CALLS not in written:
        letters = sorted((reply.text + reply.thoughts).replace("\n", ""))
        assert letters == sorted(tokenizer.decode(written).replace("\n", ""))


@given(st.lists(st.tuples(st.sampled_from([None, 1, 2, 3]), st.text(max_size=3)), max_size=12), st.booleans())
def test_a_stream_gives_what_it_adds_up(events: list[tuple[Any, str]], inside: bool) -> None:
    stream = ThoughtStream(ThinkTokens(1, 2), inside)
    added = [stream.push(token_id, text) for token_id, text in events]
    assert "".join(text for text, _ in added) == stream.text
    assert "".join(thought for _, thought in added) == stream.thoughts


def test_system_prompts_are_cut_at_their_marks() -> None:
    assert system_parts("a[THINK]b[/THINK]c") == [("a", False), ("b", True), ("c", False)]
    assert system_parts("[THINK][/THINK]") == [("", True)]
    assert system_parts("a [think] b") == [("a [think] b", False)]
    assert system_parts("") == []
