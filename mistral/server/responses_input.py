"""Items of OpenAI's responses, converted to messages of chat completions."""

from __future__ import annotations

import json
from typing import Any

from mistral.server.fields import Fields
from mistral.server.settings import MAX_MESSAGES

Turn = dict[str, Any]


def conversation(fields: Fields) -> list[Turn]:
    """The messages, the instructions first. Raises ApiError naming an invalid item."""
    found: list[Turn] = []
    if instructions := fields.text("instructions"):
        found.append({"role": "system", "content": instructions})
    given = fields.required("input")
    if isinstance(given, str):
        return [*found, {"role": "user", "content": given}]
    for number, item in enumerate(fields.items("input", MAX_MESSAGES)):
        add_item(found, Fields(item, f"input[{number}]"))
    return found


def add_item(found: list[Turn], item: Fields) -> None:
    """Add one item: a message, a call, its result, or reasoning; those of one answer become one message."""
    kind = item.text("type") or "message"
    if kind == "message":
        role = item.choice("role", ("user", "assistant", "system", "developer"), "")
        content = item.required("content")
        if role == "assistant":
            said = _assistant(found)
            said["content"] = _joined(said["content"], content, item)
        else:
            found.append({"role": role, "content": content})
    elif kind == "function_call":
        for name in ("call_id", "name"):
            item.required(name)
        function = {"name": item.text("name"), "arguments": item.text("arguments")}
        _assistant(found).setdefault("tool_calls", []).append({"id": item.text("call_id"), "function": function})
    elif kind == "function_call_output":
        item.required("call_id")
        output = item.required("output")
        result = output if isinstance(output, str | list) else json.dumps(output, ensure_ascii=False)
        found.append({"role": "tool", "tool_call_id": item.text("call_id"), "content": result})
    elif kind == "reasoning":
        if thoughts := _thoughts(item):
            _assistant(found)["reasoning_content"] = thoughts
    else:
        raise item.wrong("type", f"{kind[:40]!r} is not read; leave it out")


def _assistant(found: list[Turn]) -> Turn:
    """The assistant's message that is being put together."""
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": ""})
    return found[-1]


def _joined(before: str, content: Any, item: Fields) -> str:
    parts = [content] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise item.wrong("content", "must be a text or a list of parts")
    texts = [before] if before else []
    for number, part in enumerate(parts):
        texts.append(part if isinstance(part, str) else Fields(part, f"{item.name('content')}[{number}]").text("text"))
    return "\n\n".join(texts)


def _thoughts(item: Fields) -> str:
    parts = item.items("content") or item.items("summary")
    return "\n".join(Fields(part, item.name("content")).text("text") for part in parts)
