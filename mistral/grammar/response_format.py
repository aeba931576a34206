"""The form of an answer in OpenAI's interface: `response_format`."""

from __future__ import annotations

from mistral.errors import InputError
from mistral.grammar.constraint import Constraint
from mistral.text import shown

TYPES = ("text", "json_object", "json_schema")


def read_response_format(value: object, name: str = "response_format") -> Constraint | None:
    """The constraint that {"type": "text" | "json_object" | "json_schema", ...} stands for; None for any text.

    The schema is in "json_schema": {"schema": {...}}, or beside the type, where json_object may have one, too. Raises
    InputError naming what is wrong.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InputError('must be an object with a "type"', option=name)
    kind = value.get("type")
    if kind not in TYPES:
        raise InputError(f"its type must be one of {', '.join(TYPES)}, not {shown(kind)}", option=name)
    if kind == "text":
        return None
    if kind == "json_object" and value.get("schema") is None:
        return Constraint.json_object(name)
    held = value if kind == "json_object" else value.get("json_schema", value)
    schema = held.get("schema") if isinstance(held, dict) else None
    if not isinstance(schema, dict):
        place = "" if kind == "json_object" else ' in its "json_schema"'
        raise InputError(f'has no "schema"{place} that is an object', option=name)
    return Constraint.json_schema(schema, name)
