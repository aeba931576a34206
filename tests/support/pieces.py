"""A decoder without a tokenizer: id n stands for the n-th of a list of pieces."""

from __future__ import annotations

from collections.abc import Sequence

from mistral.tokenizer.streaming import StreamDecoder


class PieceDecoder(StreamDecoder):
    """Gives the pieces as they come; `rest` is what it still holds at the end."""

    def __init__(self, pieces: Sequence[str], rest: str = "") -> None:
        self.pieces, self.rest = pieces, rest

    def push(self, token_id: int) -> str:
        return self.pieces[token_id]

    def flush(self) -> str:
        rest, self.rest = self.rest, ""
        return rest
