"""The figures of a scheduler: what it is doing and what it has done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """Requests by state and memory in bytes now, and tokens and seconds since the start.

    reading: rows in prefill; answering: rows in decode; parked: rows whose memory, or place, others use. row_bytes:
    memory reserved for rows, including copies of parked ones. cached_tokens: prompt tokens that were reused and not
    computed. drafted_tokens: draft tokens of speculative decoding; accepted_tokens: those accepted. Seconds are those
    of whole steps.
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
