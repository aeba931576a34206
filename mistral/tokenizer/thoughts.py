"""Thinking: what a model writes between [THINK] and [/THINK] before its answer, and such texts in system prompts."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mistral.errors import InputError

BEGIN, END = "[THINK]", "[/THINK]"
PAIRS = ((BEGIN, END), ("<think>", "</think>"))  # the second in fine-tunes of other makers
MARKS = re.compile(r"(\[/?THINK\])")
BETWEEN = "\n"  # two blocks of thoughts, as mistral-common joins them
SystemThoughts = Literal["written", "refused", "text"]
"""What becomes of [THINK] in a system prompt: control tokens, an error, or plain characters."""


@dataclass(frozen=True)
class ThinkTokens:
    """Ids of the control tokens around thinking."""

    begin: int
    end: int

    @classmethod
    def among(cls, ids: Mapping[str, int]) -> ThinkTokens | None:
        """Those of a vocabulary, given its control tokens by their spelling; None where it has none."""
        found = next((pair for pair in PAIRS if all(name in ids for name in pair)), None)
        return cls(ids[found[0]], ids[found[1]]) if found else None


class ThinkState:
    """Whether the current position is within thinking, updated with each id. `inside`: the state at the start."""

    def __init__(self, tokens: ThinkTokens | None, inside: bool = False) -> None:
        self.tokens, self.inside = tokens, inside
        self._marks: Container[int | None] = (tokens.begin, tokens.end) if tokens else ()

    def is_mark(self, token_id: int | None) -> bool:
        """Whether an id starts or ends thinking."""
        return token_id in self._marks

    def push(self, token_id: int | None) -> bool:
        """Process an id -> whether it starts or ends thinking."""
        mark = self.is_mark(token_id)
        if mark:
            assert self.tokens
            self.inside = token_id == self.tokens.begin
        return mark

    def after(self, ids: Sequence[int]) -> ThinkState:
        """Process all of `ids` -> this state."""
        if self.tokens:
            last = next((token_id for token_id in reversed(ids) if self.is_mark(token_id)), None)
            self.push(last)
        return self


class ThoughtStream:
    """Separates an answer into `text` and `thoughts` while it is generated."""

    def __init__(self, tokens: ThinkTokens | None, inside: bool = False) -> None:
        """`inside`: whether the answer starts within thinking."""
        self._state, self._block = ThinkState(tokens, inside), 0
        self._last = 0  # the block that thoughts have come from
        self.text = self.thoughts = ""

    def push(self, token_id: int | None, text: str) -> tuple[str, str]:
        """What one more event adds to the text and to the thoughts.

        The text that comes beside a control token is the end of what came before it, as `TextStream` has it.
        """
        inside = self._state.inside
        if inside and text and self.thoughts and self._block != self._last:
            text = BETWEEN + text
        if inside and text:
            self._last = self._block
        self._block += self._state.push(token_id)
        self.text += "" if inside else text
        self.thoughts += text if inside else ""
        return ("", text) if inside else (text, "")


def system_parts(text: str) -> list[tuple[str, bool]]:
    """The parts of a system prompt in order, without empty texts, and whether each is a thought.

    Raises InputError where a [THINK] has no [/THINK], or the other way round.
    """
    parts, inside = list[tuple[str, bool]](), False
    for piece in MARKS.split(text):
        if piece in (BEGIN, END):
            if inside == (piece == BEGIN):
                raise InputError(f"the system prompt has {piece} where it cannot be; write {BEGIN} ... {END}")
            inside = piece == BEGIN
            parts += [("", True)] if inside else []
        elif inside:
            parts[-1] = piece, True
        elif piece:
            parts.append((piece, False))
    if inside:
        raise InputError(f"the system prompt has a {BEGIN} without {END}; add that")
    return parts
