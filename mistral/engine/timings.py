"""Tokens and seconds of generating."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Timings:
    """Tokens and seconds of the steps that read prompts, and of those that only wrote answers."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
