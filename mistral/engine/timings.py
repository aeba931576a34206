"""Tokens and seconds of generating."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Timings:
    """Tokens and seconds of reading prompts (prefill) and of writing answers (decode).

    `decode_tokens` are those of the answers. The first one of an answer is chosen in the step that ends its prompt, in
    the time of prefill; each further one, and the end, is chosen in a step of decoding: `decode_steps` counts these. A
    step may choose several of a row: `row_steps` counts a row's step once. `drafted_tokens` were guessed before they
    were chosen, and `accepted_tokens` of them rightly. The seconds of a step that moves prompts and answers on are
    shared out by their tokens.
    """

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_steps: int = 0
    decode_seconds: float = 0.0
    row_steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    def add_step(self, prefill: int, decode: int, seconds: float, drafted: int = 0, accepted: int = 0) -> None:
        """Count a step that has moved on so many tokens of prompts, and so many rows that are answered.

        With these it has computed `drafted` guesses, of which `accepted` were right.
        """
        share = prefill / max(1, prefill + decode + drafted)
        self.row_steps += decode
        self.drafted_tokens += drafted
        self.accepted_tokens += accepted
        self.prefill_tokens += prefill
        self.prefill_seconds += seconds * share
        self.decode_steps += decode + accepted
        self.decode_seconds += seconds * (1 - share)

    @property
    def prefill_rate(self) -> float:
        """Tokens of prompts read in a second; 0 before any was."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def acceptance(self) -> float:
        """The share of guesses that were right; 0 before any was made."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a row got in a step of decoding, on average; 0 before any step."""
        return self.decode_steps / self.row_steps if self.row_steps else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens chosen in a second of decoding; 0 before any was."""
        return self.decode_steps / self.decode_seconds if self.decode_seconds else 0.0
