"""Tokens that a fine-tune has added beyond its tokenizer's file, from the JSON files beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mistral.errors import InputError
from mistral.text import read_json
from mistral.tokenizer.vocabulary import MOST_IDS

SOURCES = ("added_tokens.json", "tokenizer.json", "tokenizer_config.json")
PADDING = {"pad", "padding", "unk", "unknown", "bos", "eos", "s", "/s", "mask", "sep", "cls"}  # in any brackets


@dataclass(frozen=True)
class AddedToken:
    """A token and its spelling. special: a control token, which no text is encoded to and which is not shown."""

    id: int
    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False

    @property
    def is_control(self) -> bool:
        """Whether no text may be encoded to it: it is special, or spelled in brackets like a control token."""
        return self.special or (self.content[0] in "<[" and self.content[-1] in ">]")

    @property
    def is_padding(self) -> bool:
        """Whether its name marks it as padding, which has no meaning in a conversation."""
        return self.content.strip("<>[]|").lower() in PADDING


def read_added_tokens(folder: Path, sources: Sequence[str] = SOURCES) -> tuple[AddedToken, ...]:
    """The tokens in added_tokens.json, tokenizer.json and tokenizer_config.json of a folder, by id.

    Of these, the files in `sources` are read. For an id in several files, tokenizer_config.json comes first, then
    tokenizer.json, then added_tokens.json. Raises InputError, naming the file, for an invalid table.
    """
    found = dict[int, AddedToken]()
    for name, parse in zip(SOURCES, (_names, _list, _decoder), strict=True):
        path = folder / name
        try:
            if path.is_file() and name in sources:
                found |= {token.id: token for token in parse(read_json(path))}
        except (TypeError, ValueError, AttributeError, KeyError):
            raise InputError(f"{path}: its table of added tokens is damaged; download it again") from None
        except InputError:
            if name != "tokenizer.json":  # another file is the tokenizer
                raise
    for token in found.values():
        if not 0 <= token.id < MOST_IDS:
            raise InputError(
                f"{folder}: an added token has the id {token.id}, which no vocabulary has; check its files"
            )
    return tuple(found[number] for number in sorted(found))


def _names(table: Mapping[str, Any]) -> list[AddedToken]:
    return [AddedToken(_id(number), name) for name, number in table.items() if name]


def _list(table: Mapping[str, Any]) -> list[AddedToken]:
    return [_token(entry["id"], entry) for entry in table.get("added_tokens") or []]


def _decoder(table: Mapping[str, Any]) -> list[AddedToken]:
    entries = table.get("added_tokens_decoder") or {}
    return [_token(int(number), entry) for number, entry in entries.items()]


def _token(number: object, entry: Mapping[str, Any]) -> AddedToken:
    content = entry["content"]
    if not isinstance(content, str) or not content:
        raise ValueError("a token without a text")
    flags = (entry.get(name, False) is True for name in ("special", "lstrip", "rstrip"))
    return AddedToken(_id(number), content, *flags)


def _id(number: object) -> int:
    if type(number) is not int:
        raise ValueError("an id that is no number")
    return number
