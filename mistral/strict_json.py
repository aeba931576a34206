"""JSON from strangers: only what can be written again as the same JSON, in UTF-8 and without deep recursion."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from mistral.args import one_line

MAX_DEPTH = 64  # lists and objects within each other


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, with one line, for anything that is not sound JSON.

    Refused beside broken syntax: NaN and infinities, numbers too large to hold, a key twice in one object, half of a
    surrogate pair, and more than `MAX_DEPTH` levels.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"more than {MAX_DEPTH} levels deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {one_line(error)}") from None
    if depth(value) > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} levels deep")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a string in it is not valid Unicode: half of a surrogate pair") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:64]!r} is there twice")
    return table


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"number {digits[:32]} is too large")
    return number


def depth(value: Any) -> int:
    """Levels of lists and objects within each other; counted one level at a time, without recursion."""
    levels, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        levels += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return levels
