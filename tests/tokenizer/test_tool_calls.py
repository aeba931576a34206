"""Tool calls: in conversations, as mistral-common writes them, and in what a model generates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral.errors import InputError
from mistral.tokenizer.call_stream import CALL_ID, CallPart, JsonStream
from mistral.tokenizer.messages import Message, ToolCall
from mistral.tokenizer.streaming import TextStream
from mistral.tokenizer.tokenizer import Tokenizer
from mistral.tokenizer.tool_calls import Reply, ReplyStream, assistant_message, parse_reply
from tests.support.tool_cases import CALL, LATER, OTHER, TOOLS, WITH_TOOLS, by_library, conversation, library, load


def generated(kind: str, *calls: ToolCall, text: str = "") -> list[int]:
    """Ids with which mistral-common writes an assistant's message: what a model that calls generates."""
    start = [Message("user", "x")]
    answer = [*start, Message("assistant", text, calls), *(Message.result(call, "1") for call in calls)]
    whole, before = by_library(kind, answer, ()), by_library(kind, start, ())
    assert whole[: len(before)] == before
    ids = whole[len(before) :]
    return ids[: ids.index(load(kind).eos_id) + 1]


def call_tokens(kind: str) -> tuple[int, int]:
    tokens = load(kind).tool_tokens
    assert tokens
    return tokens.calls, tokens.args or -1


def plain(kind: str, text: str) -> list[int]:
    return load(kind).encode(text, bos=False)


def by_hand(kind: str, text: str) -> list[int]:
    """Ids of a call with these arguments, or this list of calls, sound or not."""
    calls, args = call_tokens(kind)
    return [calls, *plain(kind, "now"), args, *plain(kind, text)] if args > 0 else [calls, *plain(kind, text)]


# ---- conversations


@pytest.mark.parametrize("kind", WITH_TOOLS)
def test_a_conversation_with_tools_is_encoded_as_the_library_does(kind: str) -> None:
    messages = conversation(kind)
    for end in (2, len(messages)):
        ids = load(kind).encode_chat(messages[:end], TOOLS)
        assert ids == by_library(kind, messages[:end], TOOLS)
        raw = library(kind).instruct_tokenizer.tokenizer
        assert ids.count(raw.get_special_token("[AVAILABLE_TOOLS]")) == 1
    assert load(kind).encode_chat(messages) == by_library(kind, messages, ())


def test_v1_and_files_without_a_template_have_no_tools() -> None:
    for tools, messages in ((TOOLS, [Message("user", "x")]), ((), conversation("v1"))):
        with pytest.raises(InputError, match=r"tokenizer\.model\.v1: a v1 tokenizer has no tools; v2 and later"):
            load("v1").encode_chat(messages, tools)
    ids = load("v1").encode('[TOOL_CALLS] [{"name": "now", "arguments": {}}]', bos=False)
    assert parse_reply(load("v1"), ids) == Reply('[TOOL_CALLS] [{"name": "now", "arguments": {}}]')


@pytest.mark.parametrize("kind", WITH_TOOLS)
@pytest.mark.parametrize(
    ("call", "defect"),
    [
        (ToolCall("now", "[1]", CALL.id), "are not a JSON object"),
        (ToolCall("now", '{"a": ', CALL.id), "not JSON"),
        (ToolCall("now", '{"a": "\\ud800"}', CALL.id), "surrogate"),
        (ToolCall("no w", "{}", CALL.id), "Function name was no w"),
    ],
)
def test_a_call_that_no_template_takes_is_one_line(kind: str, call: ToolCall, defect: str) -> None:
    with pytest.raises(InputError, match=defect) as caught:
        load(kind).encode_chat([Message("user", "x"), Message("assistant", "", (call,)), Message.result(call, "1")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["v3", "v3 tekken", "v7"])
def test_an_id_of_another_form_is_refused(kind: str) -> None:
    call = ToolCall("now", "{}", "call_1")
    with pytest.raises(InputError, match="Tool call id was call_1"):
        load(kind).encode_chat([Message("user", "x"), Message("assistant", "", (call,)), Message.result(call, "1")])


@pytest.mark.parametrize("kind", WITH_TOOLS)
@pytest.mark.parametrize("content", ["[" * 100_000, "9" * 5000, '"\\ud800"', "NaN", '{"a": 1, "a": 2}', "", "null"])
def test_any_result_of_a_tool_can_be_encoded(kind: str, content: str) -> None:
    messages = [Message("user", "x"), Message("assistant", "", (CALL,)), Message.result(CALL, content)]
    assert load(kind).encode_chat(messages, TOOLS)


# ---- what a model generates


@pytest.mark.parametrize("kind", WITH_TOOLS)
def test_what_the_library_writes_is_read_back(kind: str) -> None:
    for calls in ((CALL,), (OTHER,)) if kind == "v2" else ((CALL,), (CALL, OTHER)):
        reply = parse_reply(load(kind), generated(kind, *calls), TOOLS)
        assert [(call.name, call.arguments) for call in reply.calls] == [(call.name, call.arguments) for call in calls]
        assert (reply.text, reply.warning) == ("", None)
        assert all(CALL_ID.fullmatch(call.id) for call in reply.calls)
        assert len({call.id for call in reply.calls}) == len(reply.calls)
        if kind not in ("v2", "v13 tekken", "v15 tekken"):  # which write no ids
            assert reply.calls == calls


@pytest.mark.parametrize("kind", ["v7", *LATER])
def test_text_may_stand_before_calls(kind: str) -> None:
    reply = parse_reply(load(kind), generated(kind, CALL, text="I shall look."))
    assert (reply.text, len(reply.calls)) == ("I shall look.", 1)
    message = assistant_message(load(kind), reply)
    assert message == Message("assistant", "I shall look.", reply.calls)


@pytest.mark.parametrize("kind", ["v2", "v3", "v3 tekken"])
def test_templates_without_room_for_it_lose_the_text_beside_calls(kind: str) -> None:
    reply = parse_reply(load(kind), plain(kind, "Hm.") + generated(kind, CALL))
    assert reply.text == "Hm."
    message = assistant_message(load(kind), reply)
    assert (message.content, message.calls) == ("", reply.calls)
    assert load(kind).encode_chat([Message("user", "x"), message, Message.result(reply.calls[0], "1")], TOOLS)


@pytest.mark.parametrize("kind", WITH_TOOLS)
def test_made_ids_are_repeatable_and_new_in_the_conversation(kind: str) -> None:
    text = "{}" if call_tokens(kind)[1] > 0 else '[{"name": "now", "arguments": {}}]'
    ids = by_hand(kind, text)
    (first,), (again,) = (parse_reply(load(kind), ids).calls for _ in range(2))
    (other,) = parse_reply(load(kind), ids, taken={first.id}).calls
    assert first == again
    assert CALL_ID.fullmatch(first.id)
    assert CALL_ID.fullmatch(other.id)
    assert first.id != other.id


@pytest.mark.parametrize("written", ['"abcDEF123"', '"call_1"', "7", "null", '""', '"abcDEF12\\n"'])
def test_an_id_that_is_of_no_use_is_made_anew(written: str) -> None:
    call = f'{{"name": "now", "arguments": {{}}, "id": {written}}}'
    first, second = parse_reply(load("v3"), by_hand("v3", f"[{call}, {call}]")).calls
    assert (first.id == CALL.id) == ("abcDEF123" in written)
    assert first.id != second.id
    assert CALL_ID.fullmatch(first.id)
    assert CALL_ID.fullmatch(second.id)


MALFORMED = [
    '[{"name": "now", "arguments": {"a": ', "", "null", "7", "{}x", "[]", "[1]", '[{"name": "now"}]', '["now"]',
    '[{"name": "n w", "arguments": {}}]', '[{"name": 1, "arguments": {}}]', '[{"name": "now", "arguments": "{}"}]',
    '[{"name": "now", "arguments": {"a": 1, "a": 2}}]', '[{"name": "now", "arguments": {"a": NaN}}]',
    '[{"name": "now", "arguments": {"a": 1e999}}]', "[" * 3000, '{"a": ' * 200 + "1" + "}" * 200,
    '[{"name": "now", "arguments": {"a": "\\ud800"}}]', f'[{{"name": "now", "arguments": {{"a": {"9" * 5000}}}}}]',
]  # fmt: skip


@pytest.mark.parametrize("kind", ["v2", "v3", "v7", "v3 tekken", "v11 tekken", "v13 tekken", "v15 tekken"])
@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: body[:40])
def test_a_malformed_call_is_text_with_a_warning(kind: str, body: str) -> None:
    before = plain(kind, "So:")
    reply = parse_reply(load(kind), [*before, *by_hand(kind, body), load(kind).eos_id])
    head = "now[ARGS]" if call_tokens(kind)[1] > 0 else ""
    assert reply.text == f"So:[TOOL_CALLS]{head}{body}"
    assert reply.calls == ()
    assert reply.warning
    assert reply.warning.startswith("malformed tool call: ")
    assert "\n" not in reply.warning
    assert len(reply.warning) < 300


@pytest.mark.parametrize("kind", ["v11 tekken", "v13 tekken"])
def test_one_malformed_call_makes_all_of_them_text(kind: str) -> None:
    calls, _ = call_tokens(kind)
    reply = parse_reply(load(kind), [*by_hand(kind, "{}"), calls, *plain(kind, "now{}")])
    assert (reply.text, reply.calls) == ("[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]now{}", ())


def test_a_call_of_something_else_is_warned_of() -> None:
    reply = parse_reply(load("v3"), generated("v3", CALL, OTHER), TOOLS[1:])
    assert reply.calls == (CALL, OTHER)
    assert reply.warning == "the model calls get_weather, which is not among the tools"


@pytest.mark.parametrize("kind", WITH_TOOLS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_no_ids_are_too_strange(kind: str, data: st.DataObject) -> None:
    tokenizer = load(kind)
    marks = st.sampled_from([*call_tokens(kind), 2, 3, 4]).filter(lambda token_id: token_id >= 0)
    ids = data.draw(st.lists(marks | st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    reply = parse_reply(tokenizer, ids, TOOLS)
    assert reply.text or reply.calls or reply.thoughts or not tokenizer.decode(ids)
    assert bool(reply.warning) or call_tokens(kind)[0] not in ids or bool(reply.calls)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("kind", WITH_TOOLS)
@given(value=json_values, call=json_values)
@settings(max_examples=40, deadline=None)
def test_any_json_is_a_call_or_text_and_a_call_can_be_encoded(kind: str, value: Any, call: Any) -> None:
    in_list = call_tokens(kind)[1] < 0
    whole = [{"name": "now", "arguments": value}] if not isinstance(call, dict) else [call | {"arguments": value}]
    reply = parse_reply(load(kind), by_hand(kind, json.dumps(whole if in_list else value)))
    assert bool(reply.calls) != bool(reply.warning)
    if reply.calls:
        assert json.loads(reply.calls[0].arguments) == value
        message = assistant_message(load(kind), reply)
        results = [Message.result(made, "1") for made in reply.calls]
        assert load(kind).encode_chat([Message("user", "x"), message, *results], TOOLS)


# ---- the stream


def streamed(kind: str, ids: list[int]) -> tuple[list[str], str, Reply]:
    stream, decoder = ReplyStream(load(kind), TOOLS), load(kind).stream()
    shown = [stream.push(token_id, decoder.push(token_id)) for token_id in ids]
    rest, reply = stream.finish()
    return shown, rest, reply


@pytest.mark.parametrize("kind", WITH_TOOLS)
def test_a_call_is_held_back_and_text_is_not(kind: str) -> None:
    text = plain(kind, "Grüße 🙂")
    ids = [*text, *generated(kind, CALL)]
    shown, rest, reply = streamed(kind, ids)
    assert "".join(shown[: len(text)]) == "Grüße 🙂"
    assert "".join(shown[len(text) :]) == rest == ""
    assert reply == parse_reply(load(kind), ids, TOOLS)
    assert reply.calls
    shown, rest, reply = streamed(kind, text)
    assert ("".join(shown), rest, reply) == ("Grüße 🙂", "", Reply("Grüße 🙂"))


def told(kind: str, ids: list[int], salt: tuple[int, ...] = ()) -> tuple[list[CallPart], Reply]:
    """The parts of calls as they come, and the reply."""
    stream, decoder, parts = ReplyStream(load(kind), TOOLS, salt=salt), load(kind).stream(), list[CallPart]()
    for token_id in ids:
        stream.push(token_id, decoder.push(token_id))
        parts += stream.call_parts
    return parts, stream.finish()[1]


def joined(parts: list[CallPart]) -> tuple[ToolCall, ...]:
    """The calls that parts are of: the first of each has its id and name, and the others do not."""
    found = list[ToolCall]()
    for part in parts:
        if part.id:
            assert part.number == len(found)
            found.append(ToolCall(part.name, "", part.id))
        assert bool(part.id) == bool(part.name) and part.arguments and part.number == len(found) - 1
        found[-1] = ToolCall(found[-1].name, found[-1].arguments + part.arguments, found[-1].id)
    return tuple(found)


@pytest.mark.parametrize("kind", LATER)
def test_calls_are_told_while_they_are_written(kind: str) -> None:
    """Where arguments have a mark of their own: the same calls as in the reply, with the same ids."""
    ids = generated(kind, CALL, OTHER)
    parts, reply = told(kind, ids, (1, 2))
    if call_tokens(kind)[1] < 0:
        assert not parts and reply.calls
        return
    assert joined(parts) == reply.calls == parse_reply(load(kind), ids, TOOLS, salt=(1, 2)).calls
    assert [part.number for part in parts].count(0) > 5 and len(reply.calls) == 2
    assert [call.arguments for call in reply.calls] == [CALL.arguments, OTHER.arguments]
    same = told(kind, ids, (1, 3))[1].calls == reply.calls
    assert same == (kind == "v11 tekken")  # elsewhere ids are made, and depend on what came before the answer


@pytest.mark.parametrize(
    "arguments", ['{"a": [1, {"b": nul}]}', '{"a": 1} 2', '{"a": "b', "[1]", '{"a": 1e999}', '{"a" 1}']
)
def test_a_call_that_is_malformed_or_cut_is_text_in_the_end(arguments: str) -> None:
    parts, reply = told("v13 tekken", by_hand("v13 tekken", arguments))
    assert not reply.calls and reply.warning and arguments in reply.text
    assert all(call.name == "now" for call in joined(parts)) and bool(parts) == (arguments[0] == "{")


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8,
), st.booleans(), st.sampled_from([None, 1, "\t"]), st.integers(1, 7))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_json_in_pieces_is_what_the_whole_is(value: Any, escapes: bool, indent: int | str | None, size: int) -> None:
    """However it is written, and wherever it is cut; and what has come is never taken back."""
    text = json.dumps({"a": value}, ensure_ascii=escapes, indent=indent)
    stream = JsonStream()
    parts = [stream.push(text[i : i + size]) for i in range(0, len(text), size)]
    assert "".join(parts) == json.dumps({"a": value}, ensure_ascii=False) and stream.ended
    assert not stream.push("x")


def test_what_might_have_been_a_stop_string_is_shown_in_the_end() -> None:
    stream, text = ReplyStream(load("v3"), TOOLS), TextStream(load("v3").stream(), ["END"])
    ids = [*plain("v3", "Hm. EN"), *generated("v3", CALL)]
    shown = "".join(stream.push(token_id, text.push(token_id)) for token_id in ids) + stream.push(None, text.flush())
    rest, reply = stream.finish()
    assert (shown, rest) == ("Hm. ", "EN")
    assert reply == Reply("Hm. EN", (CALL,))


def test_the_small_checkpoint_has_the_tokens_of_tools() -> None:
    tokenizer = Tokenizer.from_folder(Path(__file__).parents[2] / "checkpoints" / "tiny")
    question = [Message("user", "x")]
    answered = [*question, Message("assistant", "", (CALL, OTHER)), Message.result(CALL, "1")]
    ids = tokenizer.encode_chat(answered, TOOLS)
    answer = ids[len(tokenizer.encode_chat(question, TOOLS)) :]
    assert parse_reply(tokenizer, answer[: answer.index(tokenizer.eos_id)], TOOLS) == Reply("", (CALL, OTHER))


@pytest.mark.parametrize("kind", WITH_TOOLS)
def test_a_malformed_call_is_shown_at_the_end(kind: str) -> None:
    ids = [*plain(kind, "So:"), *by_hand(kind, "[{")]
    shown, rest, reply = streamed(kind, ids)
    assert "".join(shown) == "So:"
    assert "So:" + rest == reply.text
    assert rest.startswith("[TOOL_CALLS]")
    assert reply.warning
