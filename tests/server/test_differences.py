"""Fields of the vendors' that are taken without effect, answered differently, or refused; docs/SERVER.md lists them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.local_server import LocalServer

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
ASKED = "Tom got a green bell. What colour was the bell?"
TURNS = [{"role": "user", "content": ASKED}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": TURNS, "max_tokens": 8},
    MESSAGES: {"messages": TURNS, "max_tokens": 8},
    RESPONSES: {"input": ASKED, "max_output_tokens": 8},
}
SCHEMA = {"type": "object", "properties": {}}
FUNCTION = {"name": "now", "parameters": SCHEMA}
NOW, LATER = ({"type": "function", "function": {**FUNCTION, "name": name}} for name in ("now", "later"))


def said(path: str, answer: dict[str, Any]) -> str:
    """The text of an answer."""
    if path == CHAT:
        return str(answer["choices"][0]["message"]["content"])
    content = answer["content"] if path == MESSAGES else answer["output"][0]["content"]
    return str(content[0]["text"])


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "flex", "verbosity": "low"}),
        (CHAT, {"safety_identifier": "x", "prompt_cache_key": "k", "prompt_cache_retention": "24h"}),
        (CHAT, {"modalities": ["text"], "audio": {"voice": "alloy"}, "web_search_options": {}, "n": 1}),
        (CHAT, {"safe_prompt": True, "prompt_mode": "reasoning", "guardrails": []}),
        (CHAT, {"tools": [{"type": "function", "function": {**FUNCTION, "strict": True}}], "tool_choice": "none"}),
        (CHAT, {"prediction": {"type": "content", "content": "green"}, "stop": ["x"] * 64, "logprobs": True}),
        (MESSAGES, {"metadata": {"user_id": "u"}, "service_tier": "auto", "cache_control": {"type": "ephemeral"}}),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 1024}, "output_config": {"effort": "low"}}),
        (MESSAGES, {"container": "c", "mcp_servers": [], "inference_geo": "us", "context_management": {"edits": []}}),
        (RESPONSES, {"truncation": "auto", "reasoning": {"summary": "auto"}, "max_tool_calls": 1, "store": True}),
        (RESPONSES, {"include": ["reasoning.encrypted_content"], "text": {"verbosity": "low"}, "background": False}),
        (RESPONSES, {"user": "u", "safety_identifier": "x", "prompt_cache_key": "k", "context_management": []}),
    ],
)
def test_fields_without_effect(server: LocalServer, path: str, fields: dict[str, Any]) -> None:
    """The answer is the one without them."""
    answer = server.answer(path, **BODIES[path], **fields)
    assert said(path, answer) == said(path, server.answer(path, **BODIES[path])) == "The bell was green."
    if path == RESPONSES:
        assert answer["store"] is False and answer["truncation"] == "disabled"


def test_no_frame_is_padded(server: LocalServer) -> None:
    padded = server.events(CHAT, **BODIES[CHAT], stream_options={"include_obfuscation": True})
    assert all("obfuscation" not in event for event in padded)


def test_thoughts_that_are_encrypted_are_left_out(server: LocalServer) -> None:
    """And an answer that has begun goes on; results of tools are read whether they are errors or not."""
    begun, hidden = {"type": "text", "text": "The"}, {"type": "redacted_thinking", "data": "x"}
    answers = [
        server.answer(MESSAGES, max_tokens=8, messages=[*TURNS, {"role": "assistant", "content": content}])["content"]
        for content in ([begun], [hidden, begun])
    ]
    assert answers[0] == answers[1] == [{"type": "text", "text": " bell was green."}]
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "now", "input": {}}]}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "noon"}
    tools = [{"name": "now", "input_schema": SCHEMA}]
    texts = [
        server.answer(
            MESSAGES, max_tokens=4, tools=tools, messages=[*TURNS, call, {"role": "user", "content": [each]}]
        )["content"]
        for each in (result, {**result, "is_error": True})
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("path", "fields", "field"),
    [
        (CHAT, {"functions": [FUNCTION]}, "functions"),
        (CHAT, {"function_call": {"name": "now"}}, "function_call"),
        (CHAT, {"modalities": ["text", "audio"]}, "modalities"),
        (CHAT, {"temperature": 101}, "temperature"),
        (CHAT, {"n": 129}, "n"),
        (CHAT, {"stop": ["x"] * 65}, "stop"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"reasoning_effort": "low"}, "reasoning_effort"),
        (CHAT, {"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
        (RESPONSES, {"prompt": {"id": "pmpt_1"}}, "prompt"),
        (RESPONSES, {"previous_response_id": "resp_1"}, "previous_response_id"),
        (RESPONSES, {"conversation": "conv_1"}, "conversation"),
        (RESPONSES, {"background": True}, "background"),
        (RESPONSES, {"tools": [{"type": "web_search"}]}, "tools"),
    ],
)
def test_what_would_be_a_silent_fault_is_refused(
    server: LocalServer, path: str, fields: dict[str, Any], field: str
) -> None:
    response = server.post(path, **BODIES[path], **fields)
    assert response.status_code == 400 and response.json()["error"]["param"] == field, response.text


@pytest.mark.parametrize(
    ("path", "tools", "choice"),
    [
        (CHAT, [NOW, LATER], {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [LATER]}}),
        (
            RESPONSES,
            [{"type": "function", "name": name, "parameters": SCHEMA} for name in ("now", "later")],
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "later"}]},
        ),
    ],
)
def test_only_the_allowed_tools_are_called(
    server: LocalServer, path: str, tools: list[Any], choice: dict[str, Any]
) -> None:
    """Of several tools, as OpenAI's tool_choice names them; one that is none of them is refused."""
    body = {**BODIES[path], "tools": tools, "parallel_tool_calls": False}
    body |= {"max_tokens": 60} if path == CHAT else {"max_output_tokens": 60}
    answer = server.answer(path, **body, tool_choice=choice)
    called = answer["choices"][0]["message"]["tool_calls"][0]["function"] if path == CHAT else answer["output"][0]
    assert called["name"] == "later" and called["arguments"] == "{}"
    unknown = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "never"}]}
    refused = server.post(path, **body, tool_choice=unknown)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "tool_choice.tools"
