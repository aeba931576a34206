"""Conversations in JSON as chat interfaces write them, and as ids of the templates."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from mistral.errors import InputError
from mistral.tokenizer.message_json import PART_BREAK, read_messages
from mistral.tokenizer.messages import Message, ToolCall
from mistral.tokenizer.tokenizer import Tokenizer
from tests.support.tool_cases import DATA, FILES

USER = {"role": "user", "content": "Hello"}
CALLS = [{"id": "call_x8Yz", "type": "function", "function": {"name": "now", "arguments": '{"zone": "Zürich"}'}}]


def test_texts_parts_and_roles() -> None:
    found = read_messages([
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "a\r\nb"}, "c", {"type": "input_text", "text": ""}]},
        {"role": "assistant", "content": "d", "refusal": None},
        {"role": "user", "content": ""},
    ])  # fmt: skip
    parts = PART_BREAK.join(["a\r\nb", "c", ""])
    assert found == (Message("system", "Be brief."), Message("user", parts), Message("assistant", "d"),
                     Message("user", ""))  # fmt: skip


@pytest.mark.parametrize("kind", ["v1", "v3", "v3 tekken", "v7"])
def test_parts_are_joined_as_the_templates_own_library_joins_them(kind: str) -> None:
    reference: MistralTokenizer[Any, Any, Any, Any, Any] = MistralTokenizer.from_file(DATA / FILES[kind])
    chunks = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    request: ChatCompletionRequest[Any] = ChatCompletionRequest(messages=[UserMessage(content=chunks)])  # type: ignore[arg-type]
    messages = read_messages([{"role": "user", "content": chunks}])
    ids = Tokenizer.from_file(DATA / FILES[kind]).encode_chat(messages)
    assert ids == reference.encode_chat_completion(request).tokens


@pytest.mark.parametrize("kind", ["v1", "v2", "v3", "v3 tekken", "v7"])
def test_a_begun_answer_is_gone_on_from(kind: str) -> None:
    reference: MistralTokenizer[Any, Any, Any, Any, Any] = MistralTokenizer.from_file(DATA / FILES[kind])
    turns = [UserMessage(content="Hello"), AssistantMessage(content="The bell", prefix=True)]
    request: ChatCompletionRequest[Any] = ChatCompletionRequest(messages=turns)
    messages = read_messages([USER, {"role": "assistant", "content": "The bell", "prefix": True}])
    tokenizer = Tokenizer.from_file(DATA / FILES[kind])
    ids = tokenizer.encode_chat(messages)
    assert ids == reference.encode_chat_completion(request).tokens
    assert ids[-1] != tokenizer.eos_id and tokenizer.decode(ids).endswith("The bell")


def test_calls_and_results_have_ids_that_templates_can_hold() -> None:
    made, kept = dict(CALLS[0]), {"id": "abcDEF123", "function": {"name": "now", "arguments": {"a": "é"}}}
    found = read_messages([
        USER,
        {"role": "assistant", "content": None, "tool_calls": [made, kept]},
        {"role": "tool", "tool_call_id": "call_x8Yz", "content": "12:00"},
        {"role": "tool", "tool_call_id": "abcDEF123", "content": [{"type": "text", "text": "13:00"}], "name": "x"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": ""}}]},
        {"role": "tool", "tool_call_id": "5.1", "content": ""},
    ])  # fmt: skip
    first, second = found[1].calls
    assert second == ToolCall("now", '{"a": "é"}', "abcDEF123")
    assert first.arguments == '{"zone": "Zürich"}' and first.id.isalnum() and len(first.id) == 9
    assert [(each.call_id, each.name, each.content) for each in found[2:4]] == [
        (first.id, "now", "12:00"), ("abcDEF123", "now", "13:00"),
    ]  # fmt: skip
    assert found[4].calls[0].arguments == "{}" and found[5].call_id == found[4].calls[0].id
    again = read_messages([USER, {"role": "assistant", "tool_calls": CALLS}, {**USER}])
    assert again[1].calls[0].id == first.id, "the same id every time"


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "messages must be a list"),
        ({}, "messages must be a list"),
        (["x"], "message 1 needs a role, one of system, developer, user, assistant, tool"),
        ([{"role": "human", "content": "x"}], "message 1 needs a role"),
        ([{"role": "user"}], "message 1 needs a text as content, or a list of text parts"),
        ([{"role": "user", "content": None}], "message 1 needs a text"),
        ([{"role": "user", "content": []}], "message 1 needs a text"),
        ([USER, {"role": "assistant", "content": None}, USER], "message 2 needs a text"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}],
         "message 1 has content that cannot be read: part 2 is 'image_url', not a text"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "part 1 is 'input_audio'"),
        ([{"role": "user", "content": [7]}], "part 1 is 'int'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "part 1 has no \"text\""),
        ([USER, {"role": "assistant", "content": "x"}], 'message 2 is the assistant\'s and the last; end with a user\'s'
         ', or add "prefix": true'),
        ([USER, {"role": "assistant", "content": "x", "prefix": True}, USER], 'message 2 has "prefix"; only a last'),
        ([{**USER, "prefix": True}], 'message 1 has "prefix"; only a last one, of the assistant'),
        ([USER, {"role": "assistant", "content": "", "prefix": True}], 'message 2 has "prefix" and no text'),
        ([USER, {"role": "tool", "tool_call_id": "a", "content": "x"}], "tool_call_id (a) that no call"),
        ([USER, {"role": "tool", "content": "x"}], "message 2 has a tool_call_id (missing)"),
        ([USER, {"role": "assistant", "tool_calls": 1}, USER], "message 2 needs a list as tool_calls"),
        ([USER, {"role": "assistant", "tool_calls": [{}]}, USER], "message 2 has a call, 1, without"),
        ([USER, {"role": "assistant", "tool_calls": [{"function": {"name": "a b"}}]}, USER], "whose name is not"),
        ([USER, {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "[1]"}}]}, USER],
         "whose arguments are not an object"),
        ([USER, {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}, USER],
         "with arguments that are not JSON"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_named_by_its_place(turns: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_messages(json.loads(json.dumps(turns)))
    assert message in str(caught.value) and "\n" not in str(caught.value)
