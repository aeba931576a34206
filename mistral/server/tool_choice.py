"""Which tools an answer may or must call, and the beginning that makes it do so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mistral.errors import InputError
from mistral.grammar.constraint import Constraint
from mistral.grammar.source import json_schema, quoted
from mistral.llm.partial_completion import Prompt
from mistral.server.fields import Fields
from mistral.server.settings import MAX_TOOLS
from mistral.tokenizer.chat_template import ToolTokens
from mistral.tokenizer.messages import Tool
from mistral.tokenizer.tokenizer import Tokenizer
from mistral.tokenizer.tool_file import read_tools

MOST_CALLS = 16  # that an answer can be made to have


@dataclass(frozen=True)
class ToolChoice:
    """The tools that an answer may call; `must`: it calls one of them and says nothing else. one_call: not several."""

    tools: tuple[Tool, ...] = ()
    must: bool = False
    one_call: bool = False


def read_tool_choice(fields: Fields) -> ToolChoice:
    """OpenAI's tools, tool_choice and parallel_tool_calls. Raises ApiError naming the field."""
    entries = fields.items("tools", MAX_TOOLS)
    one_call = not fields.switch("parallel_tool_calls", True)
    choice: Any = fields.any("tool_choice")
    mode: Literal["auto", "none", "required"] | str = choice if isinstance(choice, str) else "auto"
    name = None
    if choice is not None and not isinstance(choice, str):
        chosen = Fields(choice, fields.name("tool_choice"))
        inner = chosen.inner("function")
        name = (inner or chosen).text("name") if inner or chosen.has("name") else ""
        if not name:
            raise chosen.wrong("function.name", "is required")
    if mode not in ("auto", "none", "required", "any"):
        raise fields.wrong("tool_choice", "must be none, auto, required, or an object that names a function")
    return chosen_tools(fields, _tools(fields, entries), mode, name, one_call)


def chosen_tools(fields: Fields, tools: tuple[Tool, ...], mode: str, name: str | None, one_call: bool) -> ToolChoice:
    """The tools as they are offered, by how a caller chooses among them. Raises ApiError for what cannot be."""
    must = mode in ("required", "any") or name is not None
    if must and not tools:
        raise fields.wrong("tool_choice", "wants a call, and there are no tools")
    if name is not None:
        tools = tuple(tool for tool in tools if tool.name == name)
        if not tools:
            raise fields.wrong("tool_choice", f"names {name[:64]!r}, which is not among the tools")
    return ToolChoice(() if mode == "none" else tools, must, one_call or name is not None)


def _tools(fields: Fields, entries: list[Any]) -> tuple[Tool, ...]:
    try:
        return read_tools(entries) if entries else ()
    except InputError as error:
        raise fields.wrong("tools", str(error)) from None


def forced(tokenizer: Tokenizer, prompt: Prompt, choice: ToolChoice) -> tuple[Prompt, int, Constraint]:
    """The prompt with the beginning of a call, how many ids that is, and what must follow.

    Raises InputError where the template has no calls.
    """
    tokens = tokenizer.tool_tokens
    if tokens is None:
        raise InputError("tool_choice: this model's template has no control tokens of calls; use auto")
    if tokens.args is None:
        schema = _list_of_calls(choice.tools, choice.one_call)
        constraint = Constraint.json_schema(schema, "tool_choice")
    else:
        constraint = Constraint.lark(_marked_calls(tokens, choice), "tool_choice")
    return replace(prompt, ids=[*prompt.ids, tokens.calls]), 1, constraint


def _marked_calls(tokens: ToolTokens, choice: ToolChoice) -> str:
    """The grammar of what follows [TOOL_CALLS] from v11 on: a name, [ARGS] and arguments, then maybe other calls."""
    others = "" if choice.one_call else f"(<[{tokens.calls}]> call)*"
    calls, bodies = list[str](), list[str]()
    for number, tool in enumerate(choice.tools):
        call_id = "" if tokens.call_id is None else f"<[{tokens.call_id}]> CALL_ID "
        calls.append(f"{quoted(tool.name)} {call_id}<[{tokens.args}]> arguments_{number}")
        bodies.append(f"arguments_{number}: %json {json.dumps(json_schema(_arguments(tool)))}")
    ids = [] if tokens.call_id is None else ["CALL_ID: /[a-zA-Z0-9]{9}/"]
    return "\n".join([f"start: call {others}", f"call: {' | '.join(calls)}", *bodies, *ids])


def _list_of_calls(tools: Sequence[Tool], one_call: bool) -> dict[str, Any]:
    """The schema of what follows [TOOL_CALLS] in templates before v11: a list of calls."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": _arguments(tool)},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return {"type": "array", "items": {"anyOf": calls}, "minItems": 1, "maxItems": 1 if one_call else MOST_CALLS}


def _arguments(tool: Tool) -> dict[str, Any]:
    """The schema of a call's arguments: those that the tool names, and others only where it says so."""
    schema: dict[str, Any] = json.loads(json.dumps(dict(tool.parameters)))
    combined = any(key in schema for key in ("anyOf", "oneOf", "allOf", "$ref", "patternProperties"))
    return schema if combined else {"type": "object", "properties": {}, "additionalProperties": False, **schema}
