"""Tool calls parsed while they are generated: the name of each, then its arguments in pieces."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mistral.text import parse_json
from mistral.tokenizer.chat_template import ToolTokens
from mistral.tokenizer.tokenizer import Tokenizer
from mistral.tokenizer.tool_file import TOOL_NAME

CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
SPACES = re.compile(r"[ \t\n\r]*")
SIGNS = {"{": "{", "}": "}", "[": "[", "]": "]", ",": ", ", ":": ": "}
WORD = re.compile(r"[-+.0-9A-Za-z]+(?=[^-+.0-9A-Za-z])")  # a number, true, false or null, and what comes after it
# Characters of a string that can be written; both halves of a surrogate pair at once.
IN_STRING = re.compile(
    r'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}'
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})+"
)


@dataclass(frozen=True)
class CallPart:
    """An addition to the call with this number: id and name in the first part ("" in others), and arguments."""

    number: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class JsonStream:
    """The text of a JSON object -> the same as `json.dumps` writes it, as far as it is certain.

    After invalid JSON nothing more is returned. Whether an object is valid is known only at its end.
    """

    def __init__(self) -> None:
        self._left, self._inside, self._depth, self.ended = "", False, 0, False

    def push(self, text: str) -> str:
        """What some more text adds."""
        self._left, found = self._left + text, ""
        while not self.ended and (more := self._next()) is not None:
            found += more
        return found

    def _next(self) -> str | None:
        """The next part; None where more text is needed."""
        if self._inside:
            return self._of_string()
        self._left = self._left[SPACES.match(self._left).end() :]  # type: ignore[union-attr]  # it always matches
        sign = self._left[:1]
        if not sign or (not self._depth and sign != "{"):
            self.ended = bool(sign)
            return None
        if sign == '"':
            self._left, self._inside = self._left[1:], True
            return sign
        if sign in SIGNS:
            self._left = self._left[1:]
            self._depth += (sign in "{[") - (sign in "}]")
            self.ended = not self._depth
            return SIGNS[sign]
        return self._word()

    def _of_string(self) -> str | None:
        found = IN_STRING.match(self._left)
        if found:
            self._left = self._left[found.end() :]
            return json.dumps(json.loads(f'"{found[0]}"'), ensure_ascii=False)[1:-1]
        if self._left[:1] == '"':
            self._left, self._inside = self._left[1:], False
            return '"'
        return None

    def _word(self) -> str | None:
        found = WORD.match(self._left)
        if not found:
            return None
        try:
            word = json.dumps(parse_json(found[0]))
        except ValueError:
            self.ended = True
            return None
        self._left = self._left[found.end() :]
        return word


class CallStream:
    """Calls of templates that write a name, [ARGS] and an object, from ids; others can be parsed only when complete."""

    def __init__(self, tokenizer: Tokenizer, tokens: ToolTokens, taken: Collection[str], salt: Sequence[int]) -> None:
        """`taken` and `salt` as `parse_reply` has them."""
        self._tokenizer, self._tokens, self._salt, self._used = tokenizer, tokens, salt, set(taken)
        self._number, self._head, self._failed = -1, list[int](), tokens.args is None
        self._arguments: JsonStream | None = None
        self._text, self._call = tokenizer.stream(), ("", "")

    def push(self, before: Sequence[int], token_id: int) -> list[CallPart]:
        """What one more id adds; `before`: the answer's ids before it."""
        tokens = self._tokens
        if self._failed:
            return []
        if token_id == tokens.calls:
            self._failed = self._number >= 0 and (self._arguments is None or not self._arguments.ended)
            self._number, self._head, self._arguments = self._number + 1, [], None
        elif token_id == tokens.args:
            self._failed = self._arguments is not None or not self._named([*before, token_id])
            self._arguments, self._text = JsonStream(), self._tokenizer.stream()
        elif self._arguments is None:
            self._head.append(token_id)
        elif self._tokenizer.piece(token_id) is None:
            self._failed = True
        elif more := self._arguments.push(self._text.push(token_id)):
            (call_id, name), self._call = self._call, ("", "")
            return [CallPart(self._number, call_id, name, more)]
        return []

    def _named(self, ids: Sequence[int]) -> bool:
        """Note the name and the id of a call, after its [ARGS] -> whether they can be used."""
        mark, head = self._tokens.call_id, self._head
        place = head.index(mark) if mark in head else len(head)
        if any(self._tokenizer.piece(token_id) is None for token_id in (*head[:place], *head[place + 1 :])):
            return False
        name, given = (self._tokenizer.decode(part).strip() for part in (head[:place], head[place + 1 :]))
        call_id = usable_id(given, ids, self._used, self._salt)
        self._used.add(call_id)
        self._call = call_id, name
        return bool(TOOL_NAME.fullmatch(name))


def usable_id(given: str, ids: Sequence[int], used: Collection[str], salt: Sequence[int]) -> str:
    """The model's id of a call if it is usable, otherwise one computed from token ids, so that a run is repeatable."""
    attempt, found = 0, given
    while found in used or not CALL_ID.fullmatch(found):
        digest = hashlib.sha256(f"{attempt} {list(salt)} {list(ids)}".encode()).digest()
        found = "".join(ALPHABET[byte % len(ALPHABET)] for byte in digest[:9])
        attempt += 1
    return found
