"""A JSON object that describes a model, read key by key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mistral.errors import InputError
from mistral.model.args import ModelArgs
from mistral.text import shown

SMALL = 1 << 24  # larger than any dimension of a model: limits the work that a hostile file can cause
MAX_LAYERS = 4096


class Keys:
    """A JSON object that is being read; it remembers the keys that were read, so that others can be reported.

    `source` is its name in errors. All methods raise InputError, naming source and key, for an invalid value.
    """

    def __init__(self, table: Mapping[str, Any], source: str) -> None:
        self.table, self.source, self.taken = table, source, set[str]()

    def take(self, key: str) -> Any:
        """The value of a key, None if it is absent; the key counts as read."""
        self.taken.add(key)
        return self.table.get(key)

    def number(self, key: str, default: float | None = None, zero: bool = False) -> float:
        """A positive, finite number, or 0 if `zero` allows it; a decimal text is accepted.

        `default` if the key is absent or null.
        """
        value = self.take(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise InputError(f"{self.source}: {key} is missing")
        try:
            number = math.nan if isinstance(value, bool) else float(value)  # decimal strings count as numbers
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not (math.isfinite(number) and (number > 0 or (zero and number == 0))):
            kind = "a positive number or 0" if zero else "a positive number"
            raise InputError(f"{self.source}: {key} must be {kind}, not {shown(value)}")
        return number

    def integer(self, key: str, default: int | None = None, limit: int = SMALL) -> int:
        """An integer from 1 to `limit`; `default` if the key is absent or null."""
        if default is not None and self.table.get(key) is None:
            self.taken.add(key)
            return default
        number = self.number(key)
        if number != int(number) or number > limit:
            raise InputError(
                f"{self.source}: {key} must be a whole number of at most {limit}, not {shown(self.table[key])}"
            )
        return int(number)

    def boolean(self, key: str) -> bool:
        """A boolean; false if the key is absent or null."""
        value = self.take(key)
        if value not in (None, True, False):
            raise InputError(f"{self.source}: {key} must be true or false, not {shown(value)}")
        return bool(value)

    def window(self, value: Any, key: str) -> int | None:
        """A sliding window from the value of `key`: None for null, otherwise an integer."""
        return None if value is None else Keys({key: value}, self.source).integer(key)

    def window_list(self) -> list[int | None]:
        """The windows to repeat over the layers, of `sliding_window` or `_sliding_window`.

        Either key may be absent, null, a number, a digit string, or a list of these.
        """
        given = [key for key in ("sliding_window", "_sliding_window") if self.take(key) is not None]
        if len(given) > 1:
            raise InputError(f"{self.source}: sliding_window and _sliding_window are both set; keep the one that holds")
        value = self.table[given[0]] if given else None
        values = value if isinstance(value, list) else [value]
        if not values:
            raise InputError(f"{self.source}: {given[0]} is an empty list")
        return [self.window(v, given[0] if given else "sliding_window") for v in values]

    def refuse(self, unsupported: Mapping[str, str]) -> None:
        """Raise InputError for one of these keys that is set: neither absent, null nor false.

        `unsupported`: the meaning of each key; empty if the key is clear by itself.
        """
        for key in sorted(unsupported.keys() & self.table.keys()):
            if self.take(key) not in (None, False):
                reason = unsupported[key] and f": {unsupported[key]}"
                raise InputError(f"{self.source}: {key} is set, and this program does not support it{reason}")

    def refuse_unknown(self) -> None:
        """Raise InputError for a key that was not read."""
        for key in sorted(self.table.keys() - self.taken):
            raise InputError(f"{self.source}: {shown(key)} is set, and this program does not support it")

    def build(self, harmless: frozenset[str], **fields: Any) -> ModelArgs:
        """The architecture with these fields; keys neither read nor `harmless` are noted as ignored."""
        ignored = tuple(sorted(str(key)[:40] for key in self.table.keys() - self.taken - harmless))
        try:
            return ModelArgs(**fields, ignored_keys=ignored)
        except InputError as error:
            raise error.within(self.source) from None
