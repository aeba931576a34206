"""What a vocabulary does: text to ids, and the piece of text that an id stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Piece = str | bytes | None  # text (U+2581 for a space), raw bytes, or None: a control token


@dataclass(frozen=True)
class Codec:
    """What one vocabulary does, the control tokens around a text aside."""

    encode: Callable[[str], list[int]]
    piece: Callable[[int], Piece]
    adds_space: bool = False  # encode puts a space in front of a text, so decoding takes one away
    mark_each_byte: bool = False  # broken UTF-8: one U+FFFD for each byte, as SentencePiece has it
