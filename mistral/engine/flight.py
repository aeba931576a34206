"""A micro-batch that is under way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from mistral.engine.active_row import ActiveRow
from mistral.engine.work import Work

Kind = Literal["prompt", "again", "answer"]  # what a piece of work moves on; again: tokens of a row that was parked


@dataclass(frozen=True)
class Flight:
    """A micro-batch that is under way: its ticket, and its rows with their work and what that is of."""

    ticket: int
    pieces: tuple[tuple[ActiveRow, Work, Kind], ...]

    @cached_property
    def reads(self) -> int:
        """Tokens of prompts."""
        return sum(len(work.ids) for _, work, kind in self.pieces if kind != "answer")

    @cached_property
    def answering(self) -> int:
        """Tokens of answers: one of each row, and its drafts."""
        return sum(len(work.ids) + len(work.drafts) for _, work, kind in self.pieces if kind == "answer")

    @cached_property
    def drafted(self) -> int:
        """Drafts of all rows."""
        return sum(len(work.drafts) for _, work, _ in self.pieces)
