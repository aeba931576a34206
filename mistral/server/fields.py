"""A JSON object of a request, read field by field: other fields are ignored, errors name the field."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from mistral.server.api_error import ApiError, wrong

MOST = 1 << 53  # whole numbers that JSON carries exactly

Given = TypeVar("Given")


class Fields:
    """The fields of one object. A field that is null counts as left out."""

    def __init__(self, table: object, where: str = "", size: int = MOST) -> None:
        """`where`: the name of the object within the body, "" for the body itself; `size`: bytes of the body.

        Raises ApiError for no object.
        """
        if not isinstance(table, Mapping):
            raise wrong(where, "must be an object") if where else ApiError(400, "the body must be a JSON object")
        self.table: Mapping[str, Any] = table
        self.where, self.size = where, size

    def name(self, field: str) -> str:
        """The full name of a field."""
        return f"{self.where}.{field}" if self.where else field

    def has(self, field: str) -> bool:
        """Whether the field is there and not null."""
        return self.table.get(field) is not None

    def any(self, field: str) -> Any:
        """The value, unchecked; None if it was left out."""
        return self.table.get(field)

    def wrong(self, field: str, what: str) -> ApiError:
        """The error for a field."""
        return wrong(self.name(field), what)

    def required(self, field: str) -> Any:
        """The value. Raises ApiError if it was left out."""
        if not self.has(field):
            raise self.wrong(field, "is required")
        return self.table[field]

    def text(self, field: str, default: str = "") -> str:
        """A text."""
        value = self.table.get(field)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(field, "must be a text")
        return value

    def switch(self, field: str, default: bool = False) -> bool:
        """True or false."""
        value = self.table.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(field, "must be true or false")
        return value

    def whole(self, field: str, least: int = 0, most: int = MOST) -> int | None:
        """An integer in a range; 3.0 is accepted. None if it was left out."""
        value = self.table.get(field)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(field, "must be a whole number")
        if not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most}"
            raise self.wrong(field, f"must be {bound}")
        return value

    def number(self, field: str, least: float = -math.inf, most: float = math.inf) -> float | None:
        """A number in a range; None if it was left out."""
        value = self.table.get(field)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.wrong(field, "must be a number")
        if not least <= value <= most:
            bound = f"at least {least:g}" if value < least else f"at most {most:g}"
            raise self.wrong(field, f"must be {bound}")
        return float(value)

    def texts(self, field: str) -> tuple[str, ...]:
        """A text, or a list of texts."""
        value = self.table.get(field)
        if value is None:
            return ()
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise self.wrong(field, "must be a text or a list of texts")
        return tuple(found)

    def items(self, field: str, most: int | None = None) -> list[Any]:
        """A list with a limited number of items; empty if it was left out."""
        value = self.table.get(field)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(field, "must be a list")
        if most is not None and len(value) > most:
            raise self.wrong(field, f"has {len(value)} items, and {most} are the most")
        return value

    def inner(self, field: str) -> Fields | None:
        """An inner object; None if it was left out."""
        return Fields(self.table[field], self.name(field)) if self.has(field) else None

    def choice(self, field: str, known: Sequence[str], default: str) -> str:
        """One of several words."""
        value = self.text(field, default)
        if value not in known:
            raise self.wrong(field, f"must be one of {', '.join(known)}")
        return value


def first_given(*values: Given | None) -> Given | None:
    """The first given value of fields with one meaning, all of which have been read and so checked."""
    return next((value for value in values if value is not None), None)
