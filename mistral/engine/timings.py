"""Tokens and seconds of generating."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Timings:
    """Tokens and seconds of reading prompts (prefill) and of writing answers (decode).

    `decode_tokens` are those of the answers. The first one of an answer is chosen in the step that ends its prompt, in
    the time of prefill; each further one, and the end, takes a row through a step of decoding, which `decode_steps`
    counts. The seconds of a step that moves prompts and answers on are shared out by their tokens.
    """

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_steps: int = 0
    decode_seconds: float = 0.0

    def add_step(self, prefill: int, decode: int, seconds: float) -> None:
        """Count a step that has moved on so many tokens of prompts, and so many rows that are answered."""
        share = prefill / max(1, prefill + decode)
        self.prefill_tokens += prefill
        self.prefill_seconds += seconds * share
        self.decode_steps += decode
        self.decode_seconds += seconds * (1 - share)

    @property
    def prefill_rate(self) -> float:
        """Tokens of prompts read in a second; 0 before any was."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens chosen in a second of decoding; 0 before any was."""
        return self.decode_steps / self.decode_seconds if self.decode_seconds else 0.0
