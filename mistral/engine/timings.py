"""Tokens and seconds of prefill and decode."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Timings:
    """Tokens and seconds of reading prompts (prefill) and of writing answers (decode).

    `decode_tokens` is the number of tokens in the answers. The first token of an answer is sampled in the step that
    ends its prompt, and its time counts as prefill; `decode_steps` counts the others, and the end of each answer. A
    step may sample several tokens of a row, with accepted draft tokens; `row_steps` counts it once. `drafted_tokens` is
    the number of draft tokens, and `accepted_tokens` of those accepted. The seconds of a step with both prompts and
    answers are divided by the number of tokens.
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
        """Count a step with `prefill` prompt tokens and `decode` rows in decode, and their draft tokens."""
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
        """Prompt tokens per second; 0 before the first."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def acceptance(self) -> float:
        """The share of draft tokens that were accepted; 0 before the first."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Mean number of tokens sampled per row and decode step; 0 before the first."""
        return self.decode_steps / self.row_steps if self.row_steps else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens sampled per second of decode; 0 before the first."""
        return self.decode_steps / self.decode_seconds if self.decode_seconds else 0.0
