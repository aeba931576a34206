"""Constraints in llguidance's syntax."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mistral.grammar.constraint import Constraint

# Between JSON's tokens: nothing, a space, or a line break with an indentation. So white space has a limited length.
JSON_OPTIONS: Mapping[str, Any] = {
    "whitespace_pattern": r"\x20|\x0D?\x0A[\x20\x09]{0,32}",
    "whitespace_flexible": True,
    "item_separator": ",",
    "key_separator": ":",
    "lenient": False,
    "coerce_one_of": False,
}
# Otherwise llguidance would force one tokenization of a forced text; this program uses the tokenizer's own.
OPTIONS = '%llguidance {"no_forcing": true}\n'


def source(constraint: Constraint, behind_space: bool = False) -> str:
    """The grammar of a constraint; with `behind_space`, preceded by a space."""
    outer = f"{OPTIONS}start: {chr(34) + ' ' + chr(34) + ' ' if behind_space else ''}@answer"
    return json.dumps({"grammars": [{"lark_grammar": outer}, {"name": "answer", **_inner(constraint)}]})


def _inner(constraint: Constraint) -> dict[str, Any]:
    text = constraint.text
    if constraint.kind == "json_object":
        return {"json_schema": json_schema({"type": "object"})}
    if constraint.kind == "json_schema":
        return {"json_schema": json_schema(json.loads(text))}
    if constraint.kind == "regex":
        return {"lark_grammar": f"start: TEXT\nTEXT: /{_between_slashes(text)}/"}
    if constraint.kind == "choice":
        return {"lark_grammar": f"start: TEXT\nTEXT: {' | '.join(map(quoted, json.loads(text)))}"}
    return {"lark_grammar": text}


def json_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with this program's options for the JSON format, which replace its own."""
    return {**schema, "x-guidance": dict(JSON_OPTIONS)}


def quoted(text: str) -> str:
    """A text as a string of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _between_slashes(pattern: str) -> str:
    r"""An expression as Lark has it between slashes; \d, \w and \s mean ASCII, as with Python's re.ASCII."""
    from llguidance import regex_to_lark

    return str(regex_to_lark(pattern, "dws"))
