"""A read position in a header, with limits: a hostile file cannot cause much memory or work."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np

from mistral.errors import InputError
from mistral.gguf.value import ARRAY, NUMBERS, STRING, Value

MOST_TEXTS = 1 << 22  # in all arrays of a header together; a vocabulary with its merges has about 400,000
LONGEST_NAME = 1 << 16  # bytes of a key or a tensor's name
LONGEST_TEXT = 1 << 24  # bytes of a single text, such as a chat template
_LENGTH = struct.Struct("<Q")


class Cursor:
    """Reads a header from byte `at` on. Methods raise InputError, naming the file, beyond its end or a limit."""

    def __init__(self, path: Path, buffer: mmap.mmap, at: int) -> None:
        self.path, self.buffer, self.at, self.texts_left = path, buffer, at, MOST_TEXTS

    def integer(self, size: int) -> int:
        """An unsigned integer of `size` bytes."""
        data = self.buffer[self.at : self.at + size]
        if len(data) < size:
            raise self.truncated()
        self.at += size
        return int.from_bytes(data, "little")

    def name(self, what: str) -> str:
        """A text of at most LONGEST_NAME bytes; `what` describes it in errors."""
        length = self.integer(8)
        if length > LONGEST_NAME:
            raise self.damaged(f"{what} of {length} bytes")
        if self.at + length > len(self.buffer):
            raise self.truncated()
        self.at += length
        try:
            return self.buffer[self.at - length : self.at].decode()
        except UnicodeDecodeError:
            raise self.damaged(f"{what} that is not UTF-8 text") from None

    def value(self, key: str) -> Value:
        """The value of a key: its type and location."""
        kind = self.integer(4)
        if kind != ARRAY:
            return self._texts(1, None) if kind == STRING else self._numbers(key, kind, None)
        item, count = self.integer(4), self.integer(8)
        if item == ARRAY:
            raise self.damaged(f"a list of lists, {key!r:.100},")
        return self._texts(count, count) if item == STRING else self._numbers(key, item, count)

    def _numbers(self, key: str, kind: int, count: int | None) -> Value:
        if kind not in NUMBERS:
            raise self.damaged(f"a value of type {kind}, {key!r:.100},")
        start, size = self.at, np.dtype(NUMBERS[kind]).itemsize * (1 if count is None else count)
        if size > len(self.buffer) - start:
            raise self.truncated()
        self.at += size
        return Value(self.buffer, kind, start, count)

    def _texts(self, number: int, count: int | None) -> Value:
        """`number` consecutive texts: the length of each, then its bytes."""
        self.texts_left -= number
        if self.texts_left < 0:
            raise self.damaged(f"lists of more than {MOST_TEXTS} texts")
        at, size, length_at, bounds = self.at, len(self.buffer), _LENGTH.unpack_from, list[int]()
        try:
            for _ in range(number):
                bounds.append(at + 8)
                at += 8 + length_at(self.buffer, at)[0]
        except (struct.error, OverflowError):  # the length itself lies outside
            raise self.truncated() from None
        if at > size:
            raise self.truncated()
        if count is None and at - self.at > LONGEST_TEXT:
            raise self.damaged(f"a text of {at - self.at - 8} bytes")
        start, self.at = bounds[0] if bounds else at, at
        return Value(self.buffer, STRING, start, count, np.array([*bounds, at + 8], np.int64))

    def truncated(self) -> InputError:
        """The error for a header that continues beyond the file's end."""
        return InputError(f"{self.path}: truncated in its header; download it again")

    def damaged(self, what: str) -> InputError:
        """The error for something invalid in the header."""
        return InputError(f"{self.path}: has {what} in its header; the file is damaged, download it again")
