"""Structured output: the form of answers in a request's fields."""

from __future__ import annotations

from mistral.errors import InputError
from mistral.grammar.constraint import Constraint
from mistral.grammar.response_format import read_response_format
from mistral.server.api_error import wrong
from mistral.server.fields import Fields

GUIDED = ("guided_json", "guided_regex", "guided_grammar", "guided_choice", "regex", "json_schema")


def read_constraint(fields: Fields) -> Constraint | None:
    """The constraint of a request; None without one. Raises ApiError for several, and for an invalid one.

    llama.cpp's `grammar` is refused: ignoring it would silently give an answer without the requested form.
    """
    if fields.has("grammar"):
        raise fields.wrong("grammar", "GBNF is not read; give guided_grammar, in llguidance's Lark syntax")
    given = [name for name in GUIDED if fields.has(name)]
    formed = fields.inner("response_format")
    found = None if formed is None else read_format(formed)
    if len(given) + (found is not None) > 1:
        raise fields.wrong(given[-1], "is a second form for one answer; leave one out")
    return read_guided(fields, given[0]) if given else found


def read_guided(fields: Fields, name: str) -> Constraint:
    """The constraint of one of `GUIDED`."""
    try:
        if name in ("guided_json", "json_schema"):  # the latter is llama.cpp's name
            return Constraint.json_schema(fields.any(name), name)
        if name == "guided_choice":
            return Constraint.choice(fields.items(name), name)
        if name == "guided_grammar":
            return Constraint.lark(fields.text(name), name)
        return Constraint.regex(fields.text(name), name)
    except InputError as error:
        raise fields.wrong(name, str(error).removeprefix(f"{name}: ")) from None


def read_format(formed: Fields) -> Constraint | None:
    """The constraint of OpenAI's response_format, or of the format of a response's text; None for plain text."""
    held = formed.inner("json_schema") if isinstance(formed.any("json_schema"), dict) else None
    for each in (formed, *([held] if held else [])):
        each.switch("strict")
        each.text("name")
        each.text("description")
    try:
        return read_response_format(formed.table, formed.where)
    except InputError as error:
        raise wrong(formed.where, str(error).removeprefix(f"{formed.where}: ")) from None
