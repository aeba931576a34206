"""A micro-batch that is being computed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from mistral.engine.active_row import ActiveRow
from mistral.engine.work import Work

Kind = Literal["prompt", "again", "answer"]  # of a piece of work; again: tokens of a parked row that are read again


@dataclass(frozen=True)
class Flight:
    """A micro-batch that is being computed: its ticket, and its rows with their work and the kind of it."""

    ticket: int
    pieces: tuple[tuple[ActiveRow, Work, Kind], ...]

    @cached_property
    def reads(self) -> int:
        """The number of prompt tokens."""
        return sum(len(work.ids) for _, work, kind in self.pieces if kind != "answer")

    @cached_property
    def answering(self) -> int:
        """Tokens of answers: one of each row, and its drafts."""
        return sum(len(work.ids) + len(work.drafts) for _, work, kind in self.pieces if kind == "answer")

    @cached_property
    def drafted(self) -> int:
        """The number of draft tokens of all rows."""
        return sum(len(work.drafts) for _, work, _ in self.pieces)
