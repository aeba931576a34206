"""What an answer must be: JSON, JSON by a schema, a text by a regular expression or a grammar, or one of some texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["json_object", "json_schema", "regex", "lark", "choice"]
MAX_TEXT = 1 << 18  # characters of a schema, an expression or a grammar


@dataclass(frozen=True)
class Constraint:
    """The form of an answer: what kind of description `text` is, and that.

    json_object: any JSON object, without a text. json_schema: the JSON text of a schema. regex: an expression that the
    whole answer matches. lark: a grammar in the Lark syntax of llguidance. choice: a JSON list of texts. `name`: the
    option that it came by, which errors name.
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
        """JSON by a schema: a table, the JSON text of one, or a class with `model_json_schema`, as pydantic's have.

        Raises InputError for anything else.
        """
        raise NotImplementedError

    @classmethod
    def regex(cls, pattern: str, name: str = "regex") -> Constraint:
        """A text that the whole of an expression matches. Raises InputError for what is no text."""
        raise NotImplementedError

    @classmethod
    def lark(cls, grammar: str, name: str = "grammar") -> Constraint:
        """A text of a grammar's language. Raises InputError for what is no text."""
        raise NotImplementedError

    @classmethod
    def choice(cls, texts: Sequence[str], name: str = "choice") -> Constraint:
        """One of these texts. Raises InputError for anything but texts, or none."""
        raise NotImplementedError
