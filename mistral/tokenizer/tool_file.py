"""A file of tools that a model may call, in the JSON of chat interfaces."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mistral.errors import InputError, one_line
from mistral.text import parse_json
from mistral.tokenizer.files import as_path
from mistral.tokenizer.messages import Tool

TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # what the templates allow
MAX_BYTES = 1 << 20
REMEDY = 'give a list of {"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'


def load_tools(path: str | Path) -> tuple[Tool, ...]:
    """The tools of a JSON file: a list of {"type": "function", "function": {...}}, or of the inner objects alone.

    Raises InputError, naming the file and the entry, for anything else.
    """
    path = as_path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # and no more of a device or a pipe
        if len(data) > MAX_BYTES:
            raise InputError(f"{path}: larger than 1 MiB, so not a list of tools; {REMEDY}")
        entries = parse_json(data.decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: not readable ({error.strerror}); name a JSON file of tools") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except ValueError as error:
        raise InputError(f"{path}: {one_line(error)}; {REMEDY}") from None
    try:
        return read_tools([entries] if isinstance(entries, dict) else entries)
    except InputError as error:
        raise error.within(str(path)) from None


def read_tools(entries: object) -> tuple[Tool, ...]:
    """The tools of a JSON list, of which each entry is as `load_tools` says. Raises InputError naming the entry."""
    if not isinstance(entries, list) or not entries:
        raise InputError(f"holds no list of tools; {REMEDY}")
    numbers = dict[str, int]()
    tools = []
    for number, entry in enumerate(entries, 1):
        try:
            tool = _tool(entry)
        except ValueError as error:
            raise InputError(f"tool {number}: {one_line(error)}") from None
        first = numbers.setdefault(tool.name, number)
        if first != number:
            raise InputError(f"tool {number}: the name {tool.name} is that of tool {first}; rename one of them")
        tools.append(tool)
    return tuple(tools)


def _tool(entry: Any) -> Tool:
    """The tool that an entry of the file describes. Raises ValueError saying what is wrong with the entry."""
    if not isinstance(entry, dict):
        raise ValueError(f"is {json_kind(entry)}, not an object; {REMEDY}")
    if "function" in entry or "type" in entry:
        if entry.get("type") not in (None, "function"):
            raise ValueError('its "type" is not "function"; only functions can be called')
        function = entry.get("function")
    else:
        function = entry
    if not isinstance(function, dict):
        raise ValueError(f'its "function" is {json_kind(function)}, not an object; {REMEDY}')
    name, description, parameters = (function.get(key) for key in ("name", "description", "parameters"))
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        raise ValueError('its "name" must be 1 to 64 letters, digits, "_" or "-"')
    if not isinstance(description, str | None):
        raise ValueError(f'({name}) its "description" is {json_kind(description)}, not a text')
    if not isinstance(parameters, dict | None):
        raise ValueError(f'({name}) its "parameters" is {json_kind(parameters)}, not a JSON schema')
    _check_schema(name, parameters or {})
    return Tool(name, description or "", parameters or {})


def _check_schema(name: str, schema: dict[str, Any]) -> None:
    from mistral_common.utils.json_utils import validate_json_schema_by_draft7

    try:
        validate_json_schema_by_draft7(schema)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'({name}) its "parameters" is not a JSON schema: {one_line(error)}') from None


def json_kind(value: Any) -> str:
    """The kind of a JSON value, in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "missing"}
    return names.get(type(value), "a number")
