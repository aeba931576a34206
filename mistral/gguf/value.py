"""One metadata value of a GGUF file, and all of them by key."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral.errors import InputError
from mistral.mapped_file import quoted
from mistral.text import shown

# the NumPy dtype of each number type of the format
NUMBERS = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9


@dataclass(frozen=True)
class Value:
    """A value in the mapped file: of type `kind`, from byte `start` on; it is read only when it is asked for.

    count: the length of an array; None for a single value. bounds (count + 1,): for texts, the offset of each one after
    the eight bytes of its length; the last entry is eight bytes beyond the end of the last text.
    """

    buffer: mmap.mmap
    kind: int
    start: int
    count: int | None = None
    bounds: NDArray[np.int64] | None = None

    @property
    def is_text(self) -> bool:
        """Whether it is a single text."""
        return self.kind == STRING and self.count is None

    def numbers(self) -> NDArray[Any]:
        """The numbers of an array, or an array of the single number: a view of the file (a copy if not aligned)."""
        dtype, count = np.dtype(NUMBERS[self.kind]), 1 if self.count is None else self.count
        data = np.frombuffer(self.buffer, np.uint8, count * dtype.itemsize, self.start)
        if dtype.kind == "b":
            return np.not_equal(data, 0)
        return data.view(dtype) if self.start % dtype.itemsize == 0 else data.copy().view(dtype)

    def texts(self) -> list[str]:
        """The texts of an array, or the single text in a list. Raises UnicodeDecodeError for what is not UTF-8."""
        assert self.bounds is not None
        places = self.bounds.tolist()
        last = places[-1] - 8
        data = self.buffer[self.start : last]
        return [
            str(data[first - self.start : following - 8 - self.start], "utf-8") for first, following in pairwise(places)
        ]


@dataclass(frozen=True)
class Metadata:
    """The metadata of a file by key.

    Methods return None (or `default`) for an absent key, and raise InputError, naming the file and the key, for a value
    of another type.
    """

    path: Path
    values: Mapping[str, Value]

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def text(self, key: str) -> str | None:
        """A single text."""
        value = self.values.get(key)
        if value is None:
            return None
        if not value.is_text:
            raise self.unfit(key, "is no text")
        return self._texts(key, value)[0]

    def texts(self, key: str) -> list[str] | None:
        """The texts of an array."""
        value = self.values.get(key)
        if value is None:
            return None
        if value.kind != STRING or value.count is None:
            raise self.unfit(key, "is no list of texts")
        return self._texts(key, value)

    def numbers(self, key: str) -> NDArray[Any] | None:
        """The numbers of an array."""
        value = self.values.get(key)
        if value is None:
            return None
        if value.kind not in NUMBERS or value.count is None:
            raise self.unfit(key, "is no list of numbers")
        return value.numbers()

    def number(self, key: str) -> int | float | bool | None:
        """A single number or boolean; a float32 as the shortest decimal number that rounds to it."""
        value = self.values.get(key)
        if value is None:
            return None
        if value.kind not in NUMBERS or value.count is not None:
            raise self.unfit(key, "is no number")
        return plain_number(value.numbers()[0])

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self.values.get(key)
        if value is None:
            return default
        if value.kind != BOOL or value.count is not None:
            raise self.unfit(key, "is neither true nor false")
        return bool(value.numbers()[0])

    def unfit(self, key: str, what: str) -> InputError:
        """The error for a key's value."""
        return InputError(f"{self.path}: {shown(key)} {what}; download the file again")

    def _texts(self, key: str, value: Value) -> list[str]:
        try:
            return value.texts()
        except UnicodeDecodeError:
            raise InputError(f"{self.path}: {quoted(key)} is not UTF-8 text; download the file again") from None


def plain_number(number: Any) -> int | float | bool:
    """A NumPy number as a Python number; a float32 as the shortest decimal number that rounds to it."""
    return float(str(number)) if isinstance(number, np.float32) else number.item()
