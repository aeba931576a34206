"""A loaded tokenizer file, independent of the library that reads it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from mistral.errors import InputError
from mistral.tokenizer.chat_template import Template, ToolTokens
from mistral.tokenizer.codec import Codec
from mistral.tokenizer.fill_in_middle import FillInMiddle
from mistral.tokenizer.thoughts import ThinkTokens

MOST_IDS = 1 << 24  # no vocabulary has more; bounds what a hostile file can make us hold
MOST_MISSING = 1 << 16  # ids without a piece below the highest that has one


@dataclass(frozen=True)
class SpecialToken:
    """A control token in chat templates. lstrip, rstrip: spaces on that side belong to it."""

    id: int
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's file, loaded.

    size: one more than the highest id. specials: the control tokens by their spelling. `encode_part` encodes a text
    that follows a control token. missing: the ids below `size` that have no piece. adds_bos: whether a text starts with
    bos. `template`, `tool_tokens` and `fim` are those of mistral-common, if the file has them. `encode_whole` encodes a
    text with spelled-out control tokens, if the library does that itself.
    """

    version: str
    size: int
    bos_id: int
    eos_id: int
    codec: Codec
    specials: Mapping[str, SpecialToken]
    encode_part: Callable[[str], list[int]]
    missing: frozenset[int] = frozenset()
    adds_bos: bool = True
    template: Template | None = None
    tool_tokens: ToolTokens | None = None
    fim: FillInMiddle | None = None
    encode_whole: Callable[[str], list[int]] | None = None

    @property
    def think_tokens(self) -> ThinkTokens | None:
        """The control tokens around thinking, if it has them."""
        return ThinkTokens.among({name: token.id for name, token in self.specials.items()})


def missing_ids(path: Path, size: int, known: Collection[int], start: int = 0) -> frozenset[int]:
    """The ids from `start` to `size` that are not known. Raises InputError if there are very many."""
    if size - start - len(known) > MOST_MISSING:
        raise InputError(
            f"{path}: has an id {size - 1} but no more than {start + len(known)} tokens; download it again"
        )
    if size - start == len(known):
        return frozenset()
    return frozenset(range(start, size)).difference(known)
