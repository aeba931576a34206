"""What a vocabulary does: text to ids, and the piece of text that an id stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Piece = str | bytes | None  # text (U+2581 for a space), raw bytes, or None: a control token


@dataclass(frozen=True)
class Codec:
    """The functions of one vocabulary: `encode` a text, without control tokens, and the `piece` that an id stands for.

    adds_space: `encode` puts a space in front of a text, so decoding takes one away. mark_each_byte: broken UTF-8
    becomes one U+FFFD for each byte, as SentencePiece has it, and not one for each broken character.
    """

    encode: Callable[[str], list[int]]
    piece: Callable[[int], Piece]
    adds_space: bool = False
    mark_each_byte: bool = False
