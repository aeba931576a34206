"""Text and JSON from untrusted sources: only valid UTF-8, and JSON that can be written again unchanged."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from mistral.errors import InputError, one_line

MAX_FILE = 1 << 25  # bytes of a JSON file
LFS_POINTER = b"version https://git-lfs"  # start of the small file that Git leaves in place of a large one
MAX_DIGITS = 1000  # of a whole number
_LONG = re.compile(f"[0-9]{{{MAX_DIGITS + 1}}}")
MAX_DEPTH = 64  # lists and objects within each other
_AS_IS = json.JSONEncoder(ensure_ascii=False)
_ESCAPED = {code: f"\\u{code:04x}" for code in (*range(127, 160), 0x2028, 0x2029)}  # by json_line


def shown(value: object, most: int = 40) -> str:
    """A value of a file for an error message: quoted, on one line, at most `most` characters."""
    try:
        return repr(value if isinstance(value, str) and len(value) <= most else str(value)[:most])
    except (ValueError, RecursionError):  # a number of too many digits, or lists too deep in each other
        return f"one {type(value).__name__} too large to show"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of at most 32 MiB, with or without a byte order mark.

    Raises InputError, naming the file, for anything else.
    """
    try:
        if path.exists() and not path.is_file():  # a named pipe would block
            raise InputError(f"{path}: is no file; download it again")
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise InputError(f"{path}: larger than 32 MiB, so not the JSON file it should be; download it again")
        table = json.loads(data.decode("utf-8-sig"), parse_int=_whole)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise InputError(f"{path}: cannot be read ({reason}); check the file and its permissions") from None
    except (ValueError, RecursionError) as error:
        if data.startswith(LFS_POINTER):
            raise InputError(f"{path}: is a Git LFS pointer; run `git lfs pull` in its folder") from None
        raise InputError(f"{path}: not readable as JSON ({one_line(error)}); download it again") from None
    if not isinstance(table, dict):
        raise InputError(f"{path}: holds a JSON {type(table).__name__}, not an object; download it again")
    return table


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, with a one-line message, for invalid JSON.

    Refused beside broken syntax are NaN and infinities, numbers too large to hold, a key twice in one object, half of a
    surrogate pair, and more than `MAX_DEPTH` levels.
    """
    parse_int = _whole if _LONG.search(text) else None  # asked for each of them, it would take most of the time
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite, parse_int=parse_int
        )
    except RecursionError:
        raise ValueError(f"more than {MAX_DEPTH} levels deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {one_line(error)}") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and depth(value) > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} levels deep")
    if text.isascii() and "\\u" not in text:  # most are, and then no surrogate can be in it
        return value
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


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits is too large")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"number {digits[:32]} is too large")
    return number


def depth(value: Any) -> int:
    """The nesting depth of lists and objects in a JSON value, computed without recursion."""
    levels, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        levels += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return levels


def check_text(text: object) -> None:
    """Raise InputError for anything but a str, and for a str with half of a surrogate pair, which is no character."""
    if not isinstance(text, str):
        raise InputError(f"the text is of type {type(text).__name__}; pass it as str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the text is not valid Unicode at character {error.start}; give it as UTF-8") from None


def json_line(value: Any, encoding: str = "utf-8") -> str:
    """A value as JSON in one line; characters are escaped only if `encoding` lacks one of them.

    Control characters are always escaped, also those above ASCII, which some terminals execute.
    """
    text = _AS_IS.encode(value)
    if text.isascii() and "\x7f" not in text:  # most are, and then nothing is left to be escaped
        return text
    text = text.translate(_ESCAPED)
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return json.dumps(value)
    return text


def one_kind_of_line_break(text: str) -> str:
    r"""The text with \n for each \r\n and each \r alone."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decoded(data: bytes, where: str) -> str:
    """The text of bytes in UTF-8, without a byte order mark. Raises InputError naming `where` and the wrong byte."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{where}: not UTF-8 text in line {line}, at byte {error.start}; convert it") from None
