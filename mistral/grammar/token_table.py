"""The vocabulary as grammars see it: the bytes of each id, and which ids are control tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class TokenTable:
    """The bytes of each id of a tokenizer. It can be sent to another process.

    pieces: by id, the bytes it stands for; None for a control token or nothing. end_ids: those that end an answer.
    """

    pieces: tuple[bytes | None, ...]
    end_ids: tuple[int, ...]
