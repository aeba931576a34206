"""The form of an answer: JSON, a JSON schema, a regular expression, a grammar, or a choice of texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mistral.errors import InputError, one_line
from mistral.text import parse_json

Kind = Literal["json_object", "json_schema", "regex", "lark", "choice"]
MAX_TEXT = 1 << 18  # characters of a schema, an expression or a grammar
MAX_CHOICES = 4096
NOT_SCHEMAS = ("const", "enum", "default", "examples")  # keys of a schema whose values are data


@dataclass(frozen=True)
class Constraint:
    """The form of an answer: `kind` says how to read `text`.

    json_object: any JSON object; `text` is empty. json_schema: the JSON text of a schema. regex: a regular expression
    that the whole answer matches, in the syntax of Rust's crate regex, with ASCII character classes. lark: a grammar in
    the Lark syntax of llguidance. choice: a JSON list of texts. `name`: the option's name in errors.
    """

    kind: Kind
    text: str = ""
    name: str = ""

    @classmethod
    def json_object(cls, name: str = "response_format") -> Constraint:
        """Any JSON object."""
        return cls("json_object", "", name)

    @classmethod
    def json_schema(cls, schema: object, name: str = "json_schema") -> Constraint:
        """JSON by a schema: a dictionary, its JSON text, or a class with `model_json_schema`, such as a pydantic model.

        Raises InputError, naming the option `name`, for anything else, and for references to other documents.
        """
        made = getattr(schema, "model_json_schema", None)
        if callable(made):
            schema = made()
        try:
            text = schema if isinstance(schema, str) else json.dumps(schema)
            _check_size(text, name)
            table = parse_json(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"no JSON schema: {one_line(error)}", option=name) from None
        if not isinstance(table, dict):
            raise InputError("no JSON schema: it must be an object", option=name)
        _check_references(table, name)
        return cls("json_schema", json.dumps(table), name)

    @classmethod
    def regex(cls, pattern: str, name: str = "regex") -> Constraint:
        """A text that matches the whole regular expression. Raises InputError unless it is a text that is not empty."""
        return cls("regex", _checked_text(pattern, name), name)

    @classmethod
    def lark(cls, grammar: str, name: str = "grammar") -> Constraint:
        """A text in a grammar's language. Raises InputError unless it is a text that is not empty."""
        return cls("lark", _checked_text(grammar, name), name)

    @classmethod
    def choice(cls, texts: Sequence[str], name: str = "choice") -> Constraint:
        """One of these texts. Raises InputError for anything but a list of texts that are not empty."""
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not 1 <= len(texts) <= MAX_CHOICES:
            raise InputError(f"must be a list of 1 to {MAX_CHOICES} texts", option=name)
        found = list(dict.fromkeys(_checked_text(text, name) for text in texts))
        text = json.dumps(found)
        _check_size(text, name)
        return cls("choice", text, name)


def _checked_text(text: object, name: str) -> str:
    if not isinstance(text, str) or not text:
        raise InputError("must be a text that is not empty", option=name)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("holds half of a surrogate pair, which is no character", option=name) from None
    _check_size(text, name)
    return text


def _check_size(text: str, name: str) -> None:
    if len(text) > MAX_TEXT:
        raise InputError(f"is longer than {MAX_TEXT} characters; make it smaller", option=name)


def _check_references(table: dict[str, Any], name: str) -> None:
    left: list[Any] = [table]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            reference = each.get("$ref")
            if isinstance(reference, str) and not reference.startswith("#"):
                raise InputError(
                    f"refers to {reference[:60]!r}, and nothing outside of the schema is read; put it under $defs",
                    option=name,
                )
            left.extend(value for key, value in each.items() if key not in NOT_SCHEMAS)
        elif isinstance(each, list):
            left.extend(each)
