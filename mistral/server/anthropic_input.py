"""Conversations and tools of Anthropic's interface, converted to those of chat completions."""

from __future__ import annotations

import json
from typing import Any

from mistral.errors import InputError
from mistral.server import tool_choice as choices
from mistral.server.api_error import wrong
from mistral.server.fields import Fields
from mistral.server.settings import MAX_MESSAGES, MAX_TOOLS
from mistral.server.tool_choice import ToolChoice
from mistral.tokenizer import tool_file
from mistral.tokenizer.messages import Tool

MODES = {"auto": "auto", "any": "required", "none": "none", "tool": "tool"}


def conversation(fields: Fields) -> list[dict[str, Any]]:
    """The messages, the system prompt first. Raises ApiError naming an invalid one."""
    fields.required("messages")
    found = list[dict[str, Any]]()
    if fields.has("system"):
        system = texts(fields.any("system"), "system")
        found += [{"role": "system", "content": system}] if system else []
    turns = fields.items("messages", MAX_MESSAGES)
    for number, given in enumerate(turns):
        turn = Fields(given, f"messages.{number}")
        role = turn.choice("role", ("user", "assistant", "system"), "")
        content = turn.required("content")
        if role == "user":
            found += user_turns(content, turn.name("content"))
        elif role == "system":
            found.append({"role": "system", "content": texts(content, turn.name("content"))})
        else:
            said = assistant_turn(content, turn.name("content"))
            found.append(said | ({"prefix": True} if number == len(turns) - 1 else {}))
    return found


def texts(content: object, where: str) -> str:
    """A text, or the texts of blocks. Raises ApiError for any other block."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong(where, "must be a text or a list of blocks")
    return "\n\n".join(block_text(block, f"{where}.{number}") for number, block in enumerate(content))


def block_text(given: object, where: str) -> str:
    """The text of a block. Raises ApiError for one that is none."""
    block = Fields(given, where)
    kind = block.text("type")
    if kind == "document":
        source = block.inner("source")
        if source and source.text("type") == "text":
            return source.text("data")
    if kind != "text":
        raise block.wrong("type", f"{kind[:40]!r} is not read; leave it out")
    block.required("text")
    return block.text("text")


def user_turns(content: object, where: str) -> list[dict[str, Any]]:
    """A user's message: tool results, which become messages of their own, and text."""
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    if not isinstance(content, list) or not content:
        raise wrong(where, "must be a text or a list of blocks")
    results, parts = list[dict[str, Any]](), list[str]()
    for number, given in enumerate(content):
        place = f"{where}.{number}"
        block = Fields(given, place)
        if block.text("type") == "tool_result":
            block.required("tool_use_id")
            said = texts(block.any("content") or "", f"{place}.content")
            results.append({"role": "tool", "tool_call_id": block.text("tool_use_id"), "content": said})
        else:
            parts.append(block_text(given, place))
    return results + ([{"role": "user", "content": "\n\n".join(parts)}] if parts else [])


def assistant_turn(content: object, where: str) -> dict[str, Any]:
    """An assistant's message: thinking, text and calls."""
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    if not isinstance(content, list) or not content:
        raise wrong(where, "must be a text or a list of blocks")
    thoughts, parts, calls = list[str](), list[str](), list[dict[str, Any]]()
    for number, given in enumerate(content):
        block = Fields(given, f"{where}.{number}")
        kind = block.text("type")
        if kind == "thinking":
            thoughts.append(block.text("thinking"))
        elif kind == "tool_use":
            calls.append(_call(block))
        elif kind != "redacted_thinking":
            parts.append(block_text(given, block.where))
    turn: dict[str, Any] = {"role": "assistant", "content": "\n\n".join(parts)}
    turn |= {"reasoning_content": "\n".join(thoughts)} if any(thoughts) else {}
    return turn | ({"tool_calls": calls} if calls else {})


def _call(block: Fields) -> dict[str, Any]:
    for name in ("id", "name"):
        block.required(name)
    given = block.any("input")
    if given is not None and not isinstance(given, dict):
        raise block.wrong("input", "must be an object")
    arguments = json.dumps(given or {}, ensure_ascii=False)
    return {"id": block.text("id"), "function": {"name": block.text("name"), "arguments": arguments}}


def read_tools(fields: Fields) -> tuple[Tool, ...]:
    """The tools of a request. Raises ApiError naming an invalid one."""
    entries = list[dict[str, Any]]()
    for number, given in enumerate(fields.items("tools", MAX_TOOLS)):
        tool = Fields(given, f"tools.{number}")
        if tool.text("type", "custom") != "custom":
            raise tool.wrong("type", "must be custom: this server has no tools of its own")
        schema = {"name": tool.required("name"), "parameters": tool.any("input_schema")}
        entries.append(schema | {"description": tool.any("description")})
    try:
        return tool_file.read_tools(entries) if entries else ()
    except InputError as error:
        raise wrong("tools", str(error)) from None


def tool_choice(fields: Fields, tools: tuple[Tool, ...]) -> ToolChoice:
    """The request's tool choice. Raises ApiError for an invalid one."""
    chosen = fields.inner("tool_choice")
    if chosen is None:
        return ToolChoice(tools)
    kind = chosen.choice("type", tuple(MODES), "")
    if kind == "tool":
        chosen.required("name")
    name = chosen.text("name") if kind == "tool" else None
    one_call = chosen.switch("disable_parallel_tool_use")
    return choices.chosen_tools(fields, tools, MODES[kind], name, one_call)
