"""Generated ids -> text as soon as it is certain, up to the first stop string."""

from __future__ import annotations

from collections.abc import Sequence

from mistral.tokenizer import StreamDecoder


class TextStream:
    """The text of one answer. Holds back what may still turn out to be the beginning of a stop string."""

    def __init__(self, decoder: StreamDecoder, stop: Sequence[str] = ()) -> None:
        self.decoder, self.stop = decoder, tuple(text for text in stop if text)
        self.pending, self.stopped = "", False

    def push(self, token_id: int) -> str:
        """Text that one more id makes certain; `stopped` is set when a stop string, which is not shown, is complete."""
        return self._advance(self.decoder.push(token_id), final=False)

    def flush(self) -> str:
        """What was held back; an incomplete character becomes U+FFFD."""
        return self._advance(self.decoder.flush(), final=True)

    def _advance(self, text: str, final: bool) -> str:
        if self.stopped:
            return ""
        self.pending += text
        hits = [at for at in map(self.pending.find, self.stop) if at >= 0]
        if hits:
            self.stopped = True
            shown, self.pending = self.pending[: min(hits)], ""
            return shown
        keep = 0 if final else self._possible_stop()
        cut = len(self.pending) - keep
        shown, self.pending = self.pending[:cut], self.pending[cut:]
        return shown

    def _possible_stop(self) -> int:
        """Length of the longest end of the pending text that begins a stop string."""
        longest = max((len(text) for text in self.stop), default=0)
        for length in range(min(longest - 1, len(self.pending)), 0, -1):
            if any(text.startswith(self.pending[-length:]) for text in self.stop):
                return length
        return 0
