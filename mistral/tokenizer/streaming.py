"""Incremental decoding: ids to text as soon as it is certain, up to the first stop string."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

from mistral.tokenizer.codec import Codec, Piece
from mistral.tokenizer.thoughts import ThinkState, ThinkTokens

SPACE = "\u2581"  # how SentencePiece writes a space inside a piece
ESCAPED = dict.fromkeys(range(0xDC80, 0xDD00), "\ufffd")  # where surrogateescape puts the bytes of broken UTF-8


class StreamDecoder:
    """Decodes ids to text as soon as it is certain; characters are never split. Constant work for each id."""

    def __init__(self, codec: Codec, piece: Callable[[int], Piece], begins: bool) -> None:
        """`piece` is that of the codec, with ids checked; `begins`: the first id starts a text."""
        self._piece = piece
        self._drops_space = begins and codec.adds_space
        errors = "surrogateescape" if codec.mark_each_byte else "replace"
        self._utf8, self._open = codecs.getincrementaldecoder("utf-8")(errors), False  # within a character

    def push(self, token_id: int) -> str:
        """The text that one more id makes certain; "" while a character is incomplete."""
        piece = self._piece(token_id)
        if piece is None:  # a control token ends what came before it
            return self.flush()
        if isinstance(piece, str):
            text = (piece.removeprefix(SPACE) if self._drops_space else piece).replace(SPACE, " ")
            self._drops_space = False
            if not self._open:  # as nearly always: then it is whole
                return text
            piece = text.encode()
        self._drops_space = False
        text = self._utf8.decode(piece)
        self._open = bool(self._utf8.getstate()[0])
        return text if text.isascii() else text.translate(ESCAPED)

    def flush(self) -> str:
        """The text that is left at the end: U+FFFD for an incomplete character, else ""."""
        self._open = False
        return self._utf8.decode(b"", True).translate(ESCAPED)


class TextStream:
    """The text of one answer. Text that may be the start of a stop string is held back.

    Stop strings apply to the answer and not to the thinking before it.
    """

    def __init__(
        self,
        decoder: StreamDecoder,
        stop: Sequence[str] = (),
        think_tokens: ThinkTokens | None = None,
        thinking: bool = False,
    ) -> None:
        """`think_tokens`: those around thoughts, where the answer may have some; `thinking`: it begins within one.

        Once a stop string has ended the text, `stopped` says so, and `stopped_by` is that string.
        """
        self.decoder, self.stop = decoder, tuple(text for text in stop if text)
        self.pending, self.stopped, self._held = "", False, 0
        self.stopped_by: str | None = None
        self.thinking = ThinkState(think_tokens, thinking)
        self._plain = not self.stop and think_tokens is None  # then nothing is held back or left out

    def hold(self, tokens: int) -> None:
        """Let no stop string end the answer before so many ids."""
        self._held = tokens

    def push(self, token_id: int) -> str:
        """Text that one more id makes certain; `stopped` is set when a stop string, which is not shown, is complete."""
        if self._plain:
            return self.decoder.push(token_id)
        self._held = max(0, self._held - 1)
        if self.thinking.is_mark(token_id):
            shown = self.flush()
            self.thinking.push(token_id)
            return shown
        return self._advance(self.decoder.push(token_id), final=False)

    def flush(self) -> str:
        """The text that was held back, at the end of an answer; an incomplete character becomes U+FFFD."""
        return self._advance(self.decoder.flush(), final=True)

    def _advance(self, text: str, final: bool) -> str:
        if self.stopped:
            return ""
        if not self.stop:  # then nothing is held back
            return text
        self.pending += text
        stop = () if self.thinking.inside or self._held else self.stop
        hits = [(at, each) for each in stop if (at := self.pending.find(each)) >= 0]
        if hits:
            first, self.stopped_by = min(hits, key=lambda hit: hit[0])
            self.stopped = True
            shown, self.pending = self.pending[:first], ""
            return shown
        keep = 0 if final or self.thinking.inside else self._possible_stop()
        cut = len(self.pending) - keep
        shown, self.pending = self.pending[:cut], self.pending[cut:]
        return shown

    def _possible_stop(self) -> int:
        """The length of the longest suffix of the pending text that is a prefix of a stop string."""
        longest = max((len(text) for text in self.stop), default=0)
        for length in range(min(longest - 1, len(self.pending)), 0, -1):
            if any(text.startswith(self.pending[-length:]) for text in self.stop):
                return length
        return 0
