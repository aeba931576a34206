"""Which tools an answer may or must call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mistral.errors import InputError
from mistral.grammar.constraint import Constraint
from mistral.grammar.tool_constraint import tool_constraint
from mistral.server.fields import Fields
from mistral.server.settings import MAX_TOOLS
from mistral.tokenizer.messages import Tool
from mistral.tokenizer.tokenizer import Tokenizer
from mistral.tokenizer.tool_file import read_tools


@dataclass(frozen=True)
class ToolChoice:
    """The tools that an answer may call; `must`: it is a call and nothing else. one_call: at most one call."""

    tools: tuple[Tool, ...] = ()
    must: bool = False
    one_call: bool = False


def read_tool_choice(fields: Fields) -> ToolChoice:
    """OpenAI's tools, tool_choice and parallel_tool_calls. Raises ApiError naming the field."""
    tools = _tools(fields, fields.items("tools", MAX_TOOLS))
    one_call = not fields.switch("parallel_tool_calls", True)
    choice: Any = fields.any("tool_choice")
    if choice is None or isinstance(choice, str):
        mode, name = choice or "auto", None
    else:
        chosen = Fields(choice, fields.name("tool_choice"))
        if chosen.text("type") == "allowed_tools":
            tools, mode, name = *_allowed(chosen, tools), None
        else:
            mode, name = "auto", function_name(chosen)
    if mode not in ("auto", "none", "required", "any"):
        raise fields.wrong("tool_choice", "must be none, auto, required, or an object that names a function")
    return chosen_tools(fields, tools, mode, name, one_call)


def function_name(chosen: Fields) -> str:
    """The function that an object names, as in chat completions or responses. Raises ApiError without one."""
    inner = chosen.inner("function")
    name = (inner or chosen).text("name") if inner or chosen.has("name") else ""
    if not name:
        raise chosen.wrong("function.name", "is required")
    return name


def _allowed(chosen: Fields, tools: Sequence[Tool]) -> tuple[tuple[Tool, ...], str]:
    """OpenAI's `allowed_tools`: the tools that may be called, and whether one must be."""
    allowed = chosen.inner("allowed_tools") or chosen
    names = [
        function_name(Fields(each, f"{allowed.name('tools')}[{number}]"))
        for number, each in enumerate(allowed.items("tools", MAX_TOOLS))
    ]
    known = {tool.name for tool in tools}
    if unknown := [name for name in names if name not in known]:
        raise allowed.wrong("tools", f"names {unknown[0][:64]!r}, which is not among the tools")
    mode = allowed.choice("mode", ("auto", "required"), "auto")
    return tuple(tool for tool in tools if tool.name in names), mode


def chosen_tools(fields: Fields, tools: tuple[Tool, ...], mode: str, name: str | None, one_call: bool) -> ToolChoice:
    """The tool choice for the offered tools and the caller's choice. Raises ApiError for an invalid one."""
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


def call_constraint(tokenizer: Tokenizer, choice: ToolChoice) -> Constraint:
    """The form of an answer that must be a call. Raises InputError if the model's template has no calls."""
    return tool_constraint(tokenizer, [_closed(tool) for tool in choice.tools], parallel=not choice.one_call)


def _closed(tool: Tool) -> Tool:
    """The tool without additional arguments, unless its schema allows them: models would invent some."""
    combined = any(key in tool.parameters for key in ("anyOf", "oneOf", "allOf", "$ref", "patternProperties"))
    given = {} if combined else {"properties": {}, "additionalProperties": False}
    return replace(tool, parameters={**given, **tool.parameters})
