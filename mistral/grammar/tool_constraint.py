"""Grammars of answers that must be tool calls, in the model's own format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mistral.errors import InputError
from mistral.grammar.constraint import Constraint
from mistral.grammar.source import json_schema, quoted
from mistral.tokenizer.chat_template import ToolTokens
from mistral.tokenizer.messages import Tool
from mistral.tokenizer.tokenizer import Tokenizer

REQUIRED = "required"
CALL_ID = "CALL_ID: /[a-zA-Z0-9]{9}/"


def tool_constraint(
    tokenizer: Tokenizer,
    tools: Sequence[Tool],
    choice: str = REQUIRED,
    parallel: bool = True,
    name: str = "tool_choice",
) -> Constraint:
    """An answer that is a call of one of the tools, or with `parallel` several calls.

    choice: "required" for any of the tools, or the name of one. The arguments of each call follow the parameters of its
    tool. Raises InputError for an unknown tool, and for a model without a known format of tool calls.
    """
    tokens = tokenizer.tool_tokens
    if tokens is None:
        raise InputError("this model has no known form of tool calls; leave it out", option=name)
    offered = [tool for tool in tools if choice in (REQUIRED, tool.name)]
    if not offered:
        raise InputError("is not among the tools; name one of them", option=name, value=choice)
    arguments = [f"arguments_{i}: %json {json.dumps(_parameters(tool, name))}" for i, tool in enumerate(offered)]
    rules = _list_of_calls(tokens, offered, parallel) if tokens.args is None else _calls(tokens, offered, parallel)
    return Constraint.lark("\n".join([*rules, CALL_ID, *arguments]), name)


def _list_of_calls(tokens: ToolTokens, tools: Sequence[Tool], parallel: bool) -> list[str]:
    """Up to v7: a JSON list of objects with a name, arguments and an id."""
    more = '("," " "? call)*' if parallel else ""
    begin = ['"{" ' + _key("name") + f' {quoted(json.dumps(tool.name))} "," " "? {_key("arguments")}' for tool in tools]
    end = f'("," " "? {_key("id")} {quoted(chr(34))} CALL_ID {quoted(chr(34))})? "}}"'
    calls = " | ".join(f"call_{i}" for i in range(len(tools)))
    each = [f"call_{i}: {start} arguments_{i} {end}" for i, start in enumerate(begin)]
    return [f'start: <[{tokens.calls}]> " "? "[" call {more} "]"', f"call: {calls}", *each]


def _key(name: str) -> str:
    return f'{quoted(json.dumps(name) + ":")} " "?'


def _calls(tokens: ToolTokens, tools: Sequence[Tool], parallel: bool) -> list[str]:
    """From v11 on: for each call a control token, the name, in v11 an id, and the arguments."""
    call_id = "" if tokens.call_id is None else f"(<[{tokens.call_id}]> CALL_ID)?"
    calls = " | ".join(f"call_{i}" for i in range(len(tools)))
    each = [
        f"call_{i}: <[{tokens.calls}]> {quoted(tool.name)} {call_id} <[{tokens.args}]> arguments_{i}"
        for i, tool in enumerate(tools)
    ]
    return [f"start: call{'+' if parallel else ''}", f"call: {calls}", *each]


def _parameters(tool: Tool, name: str) -> Mapping[str, Any]:
    """The schema of a tool's arguments, which are an object; without parameters, an empty one."""
    schema = dict(tool.parameters) or {"properties": {}, "additionalProperties": False}
    if schema.setdefault("type", "object") != "object":
        raise InputError(f"the parameters of {tool.name} are not those of an object; mend its schema", option=name)
    return json_schema(json.loads(Constraint.json_schema(schema, name).text))
