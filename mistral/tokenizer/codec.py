"""The functions of a vocabulary: text to ids, and an id to its piece of text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mistral.errors import InputError, one_line

Piece = str | bytes | None  # text (U+2581 for a space), raw bytes, or None: a control token, or an id without a piece
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
LONG_RUN = re.compile(r"\s{100000,}")


@dataclass(frozen=True)
class Codec:
    """The functions of one vocabulary: `encode` a text, without control tokens, and the `piece` of an id.

    adds_space: `encode` adds a space before a text, and decoding removes it. mark_each_byte: invalid UTF-8 becomes one
    U+FFFD for each byte, as in SentencePiece, and not one for each invalid character.
    """

    encode: Callable[[str], list[int]]
    piece: Callable[[int], Piece]
    adds_space: bool = False
    mark_each_byte: bool = False


def guarded(path: Path, encode: Callable[..., list[int]]) -> Callable[..., list[int]]:
    """A library's function from texts to ids with all failures as InputError, also panics, which are no Exception."""

    def safe(*arguments: Any) -> list[int]:
        try:
            return encode(*arguments)
        except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            raise unencodable(path, arguments, error) from None

    return safe


def unencodable(path: Path, texts: Iterable[object], error: BaseException) -> InputError:
    """The error for texts on which a library failed."""
    runs = [len(match[0]) for text in texts if isinstance(text, str) for match in LONG_RUN.finditer(text)]
    cause = f"it has {max(runs)} white-space characters in a row" if runs else one_line(error)
    return InputError(f"{path.name}: cannot encode this text ({cause}); shorten or change it")


def text_or_byte(piece: str) -> str | bytes:
    """The meaning of a SentencePiece piece: <0x41> is a byte, anything else a text."""
    match = BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece
