"""Tool calls in streams: told while they are written, and in the end the same as in a whole answer."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from mistral.server.chat_completions import ARGUMENTS_PIECE
from tests.support.local_server import LocalServer

ARGUMENTS = {"city": 'Zürich 🙂 "x"\n', "days": [1, 2.5, None]}
SCHEMA = {"type": "object", "properties": {name: {"const": value} for name, value in ARGUMENTS.items()},
          "required": list(ARGUMENTS), "additionalProperties": False}  # fmt: skip
FUNCTION = {"name": "get_weather", "description": "The weather", "parameters": SCHEMA}
TEXT = json.dumps(ARGUMENTS, ensure_ascii=False)
SAID = [{"role": "user", "content": "What time is it?"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": SAID, "tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required",
        "parallel_tool_calls": False, "max_tokens": 100,
    },
    "/v1/messages": {
        "messages": SAID, "max_tokens": 100,
        "tools": [{"name": "get_weather", "description": "The weather", "input_schema": SCHEMA}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    },
    "/v1/responses": {
        "input": SAID, "tools": [{"type": "function", **FUNCTION}], "tool_choice": "required",
        "parallel_tool_calls": False, "max_output_tokens": 100,
    },
}  # fmt: skip


def body(server: LocalServer, path: str) -> dict[str, Any]:
    """Without white space between the parts of JSON, of which the scripted model would write nothing else."""
    tokenizer = server.service.tokenizer
    pieces = ((token_id, tokenizer.piece(token_id)) for token_id in range(tokenizer.vocab_size))
    return {**BODIES[path], "logit_bias": {str(i): -100 for i, piece in pieces if piece and not piece.strip()}}


def events(server: LocalServer, path: str, **more: Any) -> list[Any]:
    found = httpx.post(f"{server.url}{path}", json={**body(server, path), "stream": True, **more}, timeout=60).text
    data = [line.removeprefix("data: ") for line in found.split("\n") if line.startswith("data: {")]
    return [json.loads(each) for each in data]


def pieces(path: str, found: list[Any]) -> list[str]:
    """The arguments as they came, without empty ones."""
    if path == "/v1/chat/completions":
        deltas = [event["choices"][0]["delta"].get("tool_calls", []) for event in found]
        texts = [call["function"]["arguments"] for calls in deltas for call in calls]
    elif path == "/v1/messages":
        texts = [event["delta"].get("partial_json", "") for event in found if event["type"] == "content_block_delta"]
    else:
        kind = "response.function_call_arguments.delta"
        texts = [event["delta"] for event in found if event["type"] == kind]
    return [text for text in texts if text]


def whole_call(path: str, answer: Any) -> tuple[str, str, str]:
    """Id, name and arguments."""
    if path == "/v1/chat/completions":
        call = answer["choices"][0]["message"]["tool_calls"][0]
        return call["id"], call["function"]["name"], call["function"]["arguments"]
    if path == "/v1/messages":
        (block,) = [block for block in answer["content"] if block["type"] == "tool_use"]
        return block["id"], block["name"], json.dumps(block["input"], ensure_ascii=False)
    (item,) = [item for item in answer["output"] if item["type"] == "function_call"]
    return item["call_id"], item["name"], item["arguments"]


def begun(path: str, found: list[Any]) -> tuple[str, str]:
    """Id and name, which come first."""
    if path == "/v1/chat/completions":
        calls = [call for event in found for call in event["choices"][0]["delta"].get("tool_calls", [])]
        assert calls[0]["type"] == "function" and calls[0]["function"]["arguments"] == ""
        assert all(set(call) == {"index", "function"} and set(call["function"]) == {"arguments"} for call in calls[1:])
        return calls[0]["id"], calls[0]["function"]["name"]
    if path == "/v1/messages":
        blocks = [event["content_block"] for event in found if event["type"] == "content_block_start"]
        (block,) = [block for block in blocks if block["type"] == "tool_use"]
        assert block["input"] == {}
        return block["id"], block["name"]
    items = [event["item"] for event in found if event["type"] == "response.output_item.added"]
    (item,) = [item for item in items if item["type"] == "function_call"]
    assert item["arguments"] == "" and item["status"] == "in_progress"
    return item["call_id"], item["name"]


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_tells_a_call_while_it_is_written(thinker: LocalServer, path: str) -> None:
    whole, found = thinker.answer(path, **body(thinker, path)), events(thinker, path)
    call_id, name, arguments = whole_call(path, whole)
    told = pieces(path, found)
    assert arguments == "".join(told) == TEXT and name == "get_weather"
    assert begun(path, found) == (call_id, name)
    assert len(told) > len(TEXT) // ARGUMENTS_PIECE + 1  # as many as there would be if all came at once


@pytest.mark.parametrize("path", BODIES)
def test_a_call_that_is_cut_says_so(thinker: LocalServer, path: str) -> None:
    """What has come is a beginning of the arguments; the reason is that of an answer that was cut."""
    most = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    found = events(thinker, path, **{most: 40})
    told = "".join(pieces(path, found))
    assert 0 < len(told) < len(TEXT) and TEXT.startswith(told)
    last = [event for event in found if event.get("type") != "message_stop"][-1]
    if path == "/v1/chat/completions":
        assert last["choices"][0]["finish_reason"] == "length"
    elif path == "/v1/messages":
        assert last["delta"]["stop_reason"] == "max_tokens"
    else:
        assert last["type"] == "response.incomplete"
        (item,) = [item for item in last["response"]["output"] if item["type"] == "function_call"]
        assert (item["status"], item["arguments"]) == ("incomplete", told)
