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
         "message 1 has content that cannot be read: part 2 is 'image_url', not a text; images are not read"),
        ([{"role": "user", "content": {"type": "image_url", "image_url": {}}}], "part 1 is 'image_url', not a text"),
        ([{"role": "user", "content": [{"image_url": "data:,"}]}], "part 1 is 'image_url', not a text; images are not"),
        ([{"role": "user", "content": [{"type": "image"}]}], "part 1 is 'image', not a text; images are not read"),
        ([{"role": "user", "content": [{"type": "video_url"}]}], "videos are not read"),
        ([{"role": "system", "content": [{"type": "image_url"}]}, USER], "images are not read"),
        ([{"role": "system", "content": [{"type": "thinking", "thinking": "a"}, {"type": "image_url"}]}, USER],
         "part 2 is 'image_url', not a text; images are not read"),
        ([USER, {"role": "assistant", "content": [{"type": "image_url"}]}, USER], "message 2 has content that cannot"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": CALLS},
          {"role": "tool", "tool_call_id": "call_x8Yz", "content": [{"type": "image_url"}]}], "images are not read"),
        ([{**USER, "images": ["iVBOR"]}], 'message 1 has "images"; images are not read, leave them out'),
        ([USER, {"role": "assistant", "content": "x", "audio": {"id": "a"}}, USER],
         'message 2 has "audio"; sounds are'),
        ([{"role": "user", "content": [{"type": "thinking", "thinking": "a"}]}], "part 1 is 'thinking', not a text"),
        ([USER, {"role": "assistant", "content": "x", "reasoning_content": 7}, USER],
         "needs a text as reasoning_content"),
        ([USER, {"role": "assistant", "content": "x", "reasoning_content": "a", "reasoning": "b"}, USER],
         "message 2 has reasoning_content and reasoning, which are not the same; leave one out"),
        ([USER, {"role": "assistant", "content": [{"type": "thinking", "thinking": "a"}], "reasoning": "b"}, USER],
         "message 2 has thoughts as a part of its content and beside it; leave one out"),
        ([USER, {"role": "assistant", "content": ["a", {"type": "thinking", "thinking": "b"}]}, USER],
         "message 2 has a thought after its text; thoughts come first"),
        ([USER, {"role": "assistant", "content": [{"type": "thinking", "thinking": 7}, "a"]}, USER],
         'part 1 has no text as "thinking"'),
        ([{"role": "system", "content": [{"type": "thinking", "thinking": "a"}, "b [/THINK]"]}, USER],
         "message 1 spells [THINK] or [/THINK] in part 2, beside parts that are thoughts"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "part 1 is 'input_audio'"),
        ([{"role": "user", "content": [7]}], "part 1 is 'a number'"),
        ([{"role": "user", "content": [None]}], "part 1 is 'null'"),
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


def test_thoughts_come_beside_the_content_or_before_its_text() -> None:
    text = {"type": "text", "text": "Fine."}
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
             {"type": "thinking", "thinking": "c", "closed": True, "signature": "x"}]  # fmt: skip
    ways: list[dict[str, Any]] = [
        {"content": "Fine.", "reasoning_content": "a\n\nb\nc"}, {"content": "Fine.", "reasoning": "a\n\nb\nc"},
        {"content": [*parts, text]}, {"content": "Fine.", "reasoning": "a\n\nb\nc", "reasoning_content": "a\n\nb\nc"},
        {"content": [*parts, text], "reasoning_content": None},
    ]  # fmt: skip
    for way in ways:
        found = read_messages([USER, {"role": "assistant", **way}, USER])
        assert found[1] == Message("assistant", "Fine.", thoughts="a\n\nb\nc")
    alone = read_messages([USER, {"role": "assistant", "content": parts, "tool_calls": CALLS}, USER])[1]
    assert (alone.content, alone.thoughts, len(alone.calls)) == ("", "a\n\nb\nc", 1)
    assert (
        read_messages([USER, {"role": "assistant", "reasoning_content": "a", "content": None}, USER])[1].thoughts == "a"
    )
    assert read_messages([{**USER, "reasoning_content": 7}]) == (Message("user", "Hello"),), "of no meaning there"
    begun = read_messages([USER, {"role": "assistant", "content": "", "reasoning": "a", "prefix": True}])[1]
    assert begun == Message("assistant", "", prefix=True, thoughts="a")


def test_thoughts_of_a_system_prompt_are_parts_of_it() -> None:
    parts = ["a", {"type": "text", "text": "b"}, {"type": "thinking", "thinking": "c"}, {"type": "text", "text": "d"}]
    assert read_messages([{"role": "system", "content": parts}, USER])[0] == Message.system(
        f"a{PART_BREAK}b[THINK]c[/THINK]d"
    )
    assert read_messages([{"role": "system", "content": "[THINK]c[/THINK]"}, USER])[0] == Message(
        "system", "[THINK]c[/THINK]"
    )
