"""Inputs that nobody would write: sound ones with bytes, or values of their JSON, changed at random."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

INTERESTING = (
    b"\x00", b"\xff", b"\xff\xff\xff\xff", b"\x80", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\n", b"\r\n", b"'", b'"',
    b"{", b"[", b"-1", b"0", b"1e999", b"NaN", b"9" * 30, b"null", b"true", b"..", b"/", b"%s", b"{{", b"\x1b[2J",
    b"<s>", b"[INST]",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, 1 << 31, 1 << 32, 1 << 63, 1 << 70, 10**40, float("inf"),
    float("nan"),
    "", "0", "-1", "1e9", "x", "\x00", "\ud800", "a" * 5000, "../x", "/dev/zero", "\u202e", "{{ 1 }}",
    "{% for i in x %}",
    [], {}, [[]], [None], {"": None}, {"a": {"b": [1]}}, [1, 2, 3], ["x", "y"],
)  # fmt: skip
MAX_BYTES = 1 << 17


def mutated(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """One of the seeds, changed in one to eight places; now and then as it is."""
    data = chance.choice(seeds)
    if chance.random() < 0.02:
        return data
    if chance.random() < 0.5 and (changed := _changed_json(data, chance)) is not None:
        data = changed
        if chance.random() < 0.8:
            return data[:MAX_BYTES]
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        data = _changed_bytes(data, seeds, chance)
    return data[:MAX_BYTES]


def _changed_bytes(data: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """Bytes with one change: a bit, a byte, a piece taken out, doubled, put in, or the end of another seed."""
    start = chance.randrange(len(data) + 1)
    end = min(len(data), start + chance.choice((1, 1, 2, 4, 8, 64, 1024)))
    kind = chance.randrange(7)
    if kind == 0 and start < len(data):
        return data[:start] + bytes([data[start] ^ 1 << chance.randrange(8)]) + data[start + 1 :]
    if kind == 1:
        return data[:start] + chance.randbytes(end - start) + data[end:]
    if kind == 2:
        return data[:start] + data[end:]
    if kind == 3:
        return data[:end] + data[start:end] * chance.choice((1, 2, 50)) + data[end:]
    if kind == 4:
        return data[:start] + chance.choice(INTERESTING) + data[start:]
    if kind == 5:
        other = chance.choice(seeds)
        return data[:start] + other[chance.randrange(len(other) + 1) :]
    return data[:start]


def _changed_json(data: bytes, chance: random.Random) -> bytes | None:
    """A JSON text with some of its values changed; None for bytes that are none."""
    try:
        value = json.loads(data)
        for _ in range(chance.choice((1, 1, 2, 4))):
            value = _changed_value(value, value, chance)
        return json.dumps(value, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError, UnicodeDecodeError):
        return None


def _changed_value(value: Any, whole: Any, chance: random.Random) -> Any:
    """A JSON value with one place in it changed: dropped, renamed, doubled, nested, or another value."""
    if isinstance(value, dict | list) and value and chance.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = chance.choice(keys)
        kind = chance.random()
        changed: Any = dict(value) if isinstance(value, dict) else list(value)
        if kind < 0.1:
            del changed[key]
        elif kind < 0.2 and isinstance(changed, dict):
            changed[chance.choice(["", "\x00", "x" * 300, str(chance.choice(list(value))) + "_"])] = changed.pop(key)
        elif kind < 0.25 and isinstance(changed, list):
            changed += [changed[key]] * chance.choice((1, 3, 300))
        else:
            changed[key] = _changed_value(changed[key], whole, chance)
        return changed
    kind = chance.random()
    if kind < 0.1:
        return whole
    if kind < 0.2:
        return [value] * chance.choice((1, 2, 100))
    if kind < 0.3 and isinstance(value, int | float) and not isinstance(value, bool):
        return value * chance.choice((-1, 0, 2, 1000, 0.5)) + chance.choice((0, 1, -1))
    if kind < 0.3 and isinstance(value, str):
        return value * chance.choice((0, 2, 100)) + chance.choice(("", "\x00", " ", "\n"))
    return chance.choice(VALUES)
