"""The vocabulary for grammars: the bytes of each id, and which ids are control tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mistral.tokenizer.streaming import SPACE
from mistral.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

AHEAD = "\n"  # precedes a text that is encoded as the continuation of another one
Bits = NDArray[np.uint8]  # one bit for each id, the lowest first in each byte, padded to 32 bits


@dataclass(frozen=True, eq=False)
class TokenTable:
    """The bytes of each id of a tokenizer. It can be sent to another process.

    pieces: by id, its bytes; None for a control token, or an id without a piece. names: of control tokens, by id.
    end_ids: those that end an answer. spaced: ids whose first space is not shown at the start of a text. `encode`:
    texts to ids; None if the table has come from another process.
    """

    pieces: tuple[bytes | None, ...]
    names: dict[int, str]
    end_ids: tuple[int, ...]
    spaced: frozenset[int]
    encode: Callable[[str], list[int]] | None = field(default=None, repr=False)
    _lock: list[threading.Lock] = field(default_factory=lambda: [threading.Lock()], repr=False)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TokenTable:
        """The table of a tokenizer; takes about a tenth of a second."""
        pieces, spaced = list[bytes | None](), set[int]()
        count = max(tokenizer.vocab_size, tokenizer.rows or 0, *(end + 1 for end in tokenizer.end_ids))
        for token in range(count):
            piece = tokenizer.piece(token)
            if isinstance(piece, str):
                if tokenizer.codec.adds_space and piece.startswith(SPACE):
                    spaced.add(token)
                piece = piece.replace(SPACE, " ").encode()
            pieces.append(piece or None)
        names = {token.id: name for name, token in tokenizer.vocabulary.specials.items()}
        return cls(tuple(pieces), names, tokenizer.end_ids, frozenset(spaced), tokenizer.vocabulary.encode_part)

    def continuation(self, text: bytes) -> list[int] | None:
        """The ids of a text that continues another one, as the tokenizer encodes it; None if they are not known."""
        try:
            found = self.encode(AHEAD + text.decode()) if self.encode else []
        except UnicodeDecodeError:
            return None
        before = len(self.encode(AHEAD)) if self.encode else 0
        ids = found[before:]
        return ids if found and b"".join(self.pieces[token] or b"" for token in ids) == text else None

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("pieces", "names", "end_ids", "spaced")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, encode=None, _lock=[threading.Lock()])

    @property
    def space(self) -> int | None:
        """The id of a single space; None if there is none."""
        return next((token for token, piece in enumerate(self.pieces) if piece == b" "), None)

    @cached_property
    def spaced_bits(self) -> Bits:
        """Which ids are `spaced`."""
        return self.bits(self.spaced)

    @cached_property
    def end_bits(self) -> Bits:
        """Which ids end an answer."""
        return self.bits(self.end_ids)

    def bits(self, ids: Iterable[int]) -> Bits:
        """A set of ids as bits."""
        flags = np.zeros(-(-len(self.pieces) // 32) * 32, np.uint8)
        flags[list(ids)] = 1
        return np.packbits(flags, bitorder="little")

    @property
    def tokenizer(self) -> LLTokenizer:
        """The vocabulary for llguidance; the first call takes about a second, and others wait for it."""
        with self._lock[0]:
            return self._tokenizer

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        vocabulary: Any = Words(self)
        return LLTokenizer(vocabulary, n_vocab=len(self.pieces), eos_token=list(self.end_ids))


class Words:
    """The tokenizer interface that llguidance needs."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, table: TokenTable) -> None:
        self.eos_token_id = table.end_ids[0]
        self.special_token_ids = [token for token, piece in enumerate(table.pieces) if piece is None]
        names = {token: table.names.get(token, f"<|id {token}|>") for token in self.special_token_ids}
        self.tokens = [
            b"\xff" + names[token].encode() if piece is None else piece for token, piece in enumerate(table.pieces)
        ]
        self._ids = {piece: token for token, piece in enumerate(table.pieces) if piece is not None}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: str | bytes) -> Sequence[int]:
        """Ids of a text that continues another one, by longest match: no space is added at its start."""
        data, ids, start = text.encode() if isinstance(text, str) else text, list[int](), 0
        while start < len(data):
            ends = range(min(len(data), start + self._longest), start, -1)
            end = next((end for end in ends if data[start:end] in self._ids), None)
            if end is not None:
                ids.append(self._ids[data[start:end]])
            start = end or start + 1
        return ids
