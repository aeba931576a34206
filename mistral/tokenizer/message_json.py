"""Conversations in the JSON of chat interfaces: texts, thinking, tool calls and results, the start of an answer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from mistral.errors import InputError, one_line
from mistral.text import parse_json
from mistral.tokenizer.messages import Message, Role, ToolCall
from mistral.tokenizer.thoughts import BEGIN, BETWEEN, END, MARKS
from mistral.tokenizer.tool_file import TOOL_NAME, json_kind

ROLES: Mapping[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
}  # fmt: skip
TEXT_PARTS, THINKING = ("text", "input_text", "output_text"), "thinking"
THOUGHTS = ("reasoning_content", "reasoning")  # what other programs call an assistant's thoughts
SENSES = {"image": "images", "audio": "sounds", "video": "videos", "file": "files", "document": "documents"}
MEDIA = ("images", "audio")  # beside the content of a message
PART_BREAK = "\n\n"  # between the text parts of a message, as mistral-common joins them
CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")


def read_messages(found: object) -> tuple[Message, ...]:
    """The messages of a JSON list of objects with role and content.

    The content is a text or a list of text parts; that of an assistant with tool_calls may be missing. An assistant's
    thoughts are a text beside it, reasoning_content, or parts of type "thinking" before the text; a system prompt may
    have such parts, too. The last message may be an assistant's with "prefix": true. Ids of calls that templates cannot
    hold become ones of 9 letters and digits, in calls and results alike. Raises InputError, naming the message, for
    anything else.
    """
    if not isinstance(found, list) or not found:
        raise InputError("messages must be a list of objects with role and content")
    messages, calls = list[Message](), dict[str, ToolCall]()
    for number, turn in enumerate(found, 1):
        try:
            messages.append(_message(turn, number == len(found), number, calls))
        except ValueError as error:
            raise InputError(f"message {number} {one_line(error)}") from None
    return tuple(messages)


def _message(turn: object, last: bool, number: int, calls: dict[str, ToolCall]) -> Message:
    """One message. `calls`: those so far by the id that the JSON has for them; it takes those of this message."""
    role = turn.get("role") if isinstance(turn, dict) else None
    if not isinstance(turn, dict) or not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"needs a role, one of {', '.join(ROLES)}, and a text as content")
    for key in MEDIA:
        if turn.get(key):
            raise ValueError(f'has "{key}"; {_sense(key)} are not read, leave them out')
    prefix = turn.get("prefix") is True
    if prefix and not (last and role == "assistant"):
        raise ValueError('has "prefix"; only a last one, of the assistant, can be gone on from')
    if role == "tool":
        return _result(turn, calls)
    if ROLES[role] == "system":
        return _system(turn.get("content"))
    if role != "assistant":
        return Message(ROLES[role], _content(turn.get("content"), empty=False))
    asked = turn.get("tool_calls")
    thoughts, rest = _thoughts(turn)
    content = _content(rest, empty=bool(asked or thoughts))
    made = _calls(asked, number, calls) if asked else ()
    if last and not prefix:
        raise ValueError("is the assistant's and the last; end with a user's, or add \"prefix\": true to go on from it")
    if prefix and (not (content or thoughts) or made):
        raise ValueError('has "prefix" and no text, or calls beside it: there is nothing to go on from')
    return Message("assistant", content, made, prefix=prefix, thoughts=thoughts)


def _system(content: object) -> Message:
    """A system prompt; its parts of type "thinking" become what stands between marks in its text."""
    if not isinstance(content, list) or not any(map(_is_thinking, content)):
        return Message("system", _content(content, empty=False))
    text, after_text = "", False
    for number, part in enumerate(content, 1):
        found = _thinking(part, number) if _is_thinking(part) else _part(part, number)
        if MARKS.search(found):
            raise ValueError(f"spells {BEGIN} or {END} in part {number}, beside parts that are thoughts")
        text += f"{BEGIN}{found}{END}" if _is_thinking(part) else PART_BREAK * after_text + found
        after_text = not _is_thinking(part)
    return Message.system(text)


def _thoughts(turn: Mapping[str, Any]) -> tuple[str, object]:
    """The thoughts of an assistant's message, and its content without them. Raises ValueError."""
    found = [turn[name] for name in THOUGHTS if turn.get(name) is not None]
    if not all(isinstance(text, str) for text in found):
        raise ValueError(f"needs a text as {' or '.join(THOUGHTS)}")
    if len(set(found)) > 1:
        raise ValueError(f"has {' and '.join(THOUGHTS)}, which are not the same; leave one out")
    content = turn.get("content")
    if not isinstance(content, list) or not any(map(_is_thinking, content)):
        return (found[0] if found else ""), content
    if any(found):
        raise ValueError("has thoughts as a part of its content and beside it; leave one out")
    count = next((place for place, part in enumerate(content) if not _is_thinking(part)), len(content))
    if any(map(_is_thinking, content[count:])):
        raise ValueError("has a thought after its text; thoughts come first")
    return BETWEEN.join(_thinking(part, n) for n, part in enumerate(content[:count], 1)), content[count:] or None


def _is_thinking(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == THINKING


def _thinking(part: Mapping[str, Any], number: int) -> str:
    """The text of a part that is a thought: a text, or a list of text parts."""
    found = part.get(THINKING)
    try:
        return "" if found == "" else _content(found, empty=False)
    except ValueError:
        raise ValueError(f'has content that cannot be read: part {number} has no text as "{THINKING}"') from None


def _content(content: object, empty: bool) -> str:
    """The text of a message; `empty` says whether it may have none. Raises ValueError."""
    if content is None and empty:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        _part(content, 1)  # says what it is, where it is no text
    if not isinstance(content, list) or not content:
        raise ValueError("needs a text as content, or a list of text parts")
    return PART_BREAK.join(_part(part, number) for number, part in enumerate(content, 1))


def _part(part: object, number: int) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", _key(part)) if isinstance(part, dict) else json_kind(part) if part is not None else "null"
    if not isinstance(part, dict) or kind not in TEXT_PARTS:
        sense = _sense(str(kind))
        remedy = f"; {sense} are not read, leave it out" if sense else ""
        raise ValueError(f"has content that cannot be read: part {number} is {str(kind)[:40]!r}, not a text{remedy}")
    text = part.get("text")
    if not isinstance(text, str):
        raise ValueError(f'has content that cannot be read: part {number} has no "text"')
    return text


def _key(part: Mapping[str, Any]) -> str:
    """The type of a part without one, from its only key."""
    return next(iter(part)) if len(part) == 1 else "text"


def _sense(kind: str) -> str | None:
    """The name of a common kind of content that is not supported."""
    return next((name for word, name in SENSES.items() if word in kind), None)


def _calls(asked: object, number: int, calls: dict[str, ToolCall]) -> tuple[ToolCall, ...]:
    if not isinstance(asked, list):
        raise ValueError("needs a list as tool_calls")
    made = []
    for place, entry in enumerate(asked, 1):
        function = entry.get("function") if isinstance(entry, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(entry, dict) or not isinstance(function, dict) or not isinstance(name, str):
            raise ValueError(f'has a call, {place}, without "function": {{"name": ..., "arguments": ...}}')
        if not TOOL_NAME.fullmatch(name):
            raise ValueError(f'has a call, {place}, whose name is not 1 to 64 letters, digits, "_" or "-"')
        given = entry.get("id")
        given = given if isinstance(given, str) and given else f"{number}.{place}"
        call = ToolCall(name, _arguments(function.get("arguments"), place), call_id(given))
        calls[given] = call
        made.append(call)
    return tuple(made)


def _arguments(given: object, place: int) -> str:
    """The JSON text of a call's arguments, which are an object, or its text. Raises ValueError."""
    if given is None or given == "":
        return "{}"
    try:
        value = parse_json(given) if isinstance(given, str) else given
    except ValueError as error:
        raise ValueError(f"has a call, {place}, with arguments that are {one_line(error)}") from None
    if not isinstance(value, dict):
        raise ValueError(f"has a call, {place}, whose arguments are not an object")
    return given if isinstance(given, str) else json.dumps(value, ensure_ascii=False)


def _result(turn: Mapping[str, Any], calls: Mapping[str, ToolCall]) -> Message:
    given = turn.get("tool_call_id")
    call = calls.get(given) if isinstance(given, str) else None
    if call is None:
        shown = str(given)[:40] if given is not None else "missing"
        raise ValueError(f"has a tool_call_id ({shown}) that no call before it has")
    return Message.result(call, _content(turn.get("content"), empty=False))


def call_id(given: str) -> str:
    """The id itself if it is 9 letters and digits, as templates require; otherwise one computed from it."""
    return given if CALL_ID.fullmatch(given) else hashlib.sha256(given.encode()).hexdigest()[:9]
