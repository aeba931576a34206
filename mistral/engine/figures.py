"""What a scheduler is doing and has done, as numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """Requests by what they do now, bytes that are taken now, and what has been done since the beginning.

    reading: rows whose prompt is being read; answering: those that are being answered; parked: those that gave their
    memory, or their place, to others. row_bytes: memory that is counted for rows, kept copies of parked ones included.
    cached_tokens: those of prompts that were not read, because they were known. drafted_tokens: guesses of tokens of
    answers; accepted_tokens: of these the right ones. Seconds are those of whole steps.
    """

    waiting: int = 0
    reading: int = 0
    answering: int = 0
    parked: int = 0
    row_bytes: int = 0
    prefix_bytes: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    last_seconds: float = 0.0
    longest_seconds: float = 0.0
