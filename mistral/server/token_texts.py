"""Single tokens in a response, as text and as bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mistral.llm.completion import TokenLogprob
from mistral.tokenizer.streaming import SPACE
from mistral.tokenizer.tokenizer import Tokenizer

LEAST = -9999.0  # stands for minus infinity, which JSON does not have


class TokenTexts:
    """The texts of a vocabulary's tokens. Control tokens are shown by their name, as </s>."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = dict[int, bytes]()
        self._names = {token.id: name for name, token in tokenizer.vocabulary.specials.items()}

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of an id; empty for one without a piece."""
        found = self._bytes.get(token_id)
        if found is None:
            piece = self._tokenizer.piece(token_id)
            if piece is None:
                piece = self._names.get(token_id, "").encode()
            found = self._bytes[token_id] = piece if isinstance(piece, bytes) else piece.replace(SPACE, " ").encode()
        return found

    def text_of(self, token_id: int) -> str:
        r"""The same as text; bytes that are no whole character are written as \xNN."""
        return self.bytes_of(token_id).decode(errors="backslashreplace")

    def length(self, token_id: int, begins: bool) -> int:
        """The number of characters that an id adds to a text, at its start or later."""
        piece = self._tokenizer.piece(token_id)
        if piece is None:
            return 0
        dropped = begins and self._tokenizer.codec.adds_space and isinstance(piece, str) and piece.startswith(SPACE)
        return len(self.text_of(token_id)) - dropped

    def records(self, logprobs: Sequence[TokenLogprob], begins: bool = False) -> list[dict[str, Any]]:
        """Tokens in the format of chat responses; `begins`: the first starts a text, without a space before it."""
        return [
            {
                **self._record(token.id, token.logprob, begins and not place),
                "top_logprobs": [self._record(other, logprob, begins and not place) for other, logprob in token.top],
            }
            for place, token in enumerate(logprobs)
        ]

    def _record(self, token_id: int, logprob: float, begins: bool) -> dict[str, Any]:
        data = self.bytes_of(token_id)
        if begins and self._tokenizer.codec.adds_space and isinstance(self._tokenizer.piece(token_id), str):
            data = data.removeprefix(b" ")
        text = data.decode(errors="backslashreplace")
        return {"token": text, "logprob": finite(logprob), "bytes": list(data)}


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return logprob if math.isfinite(logprob) else LEAST
