"""The interface of an engine that a scheduler uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mistral.engine.prefix_store import PrefixStore
from mistral.engine.work import Outcome, Sampling, Work
from mistral.model.args import ModelArgs
from mistral.model.kv_cache import Snapshot


class RowEngine(Protocol):
    """Rows and micro-batches; `Engine` documents each function."""

    num_pipeline_ranks: int
    num_micro_batches: int | None
    context_limit: int | None
    prefix_store: PrefixStore | None

    @property
    def args(self) -> ModelArgs:
        """The model's architecture."""

    def check_capacity(self, capacity: int) -> None:
        """Raise InputError if no row can have `capacity` tokens."""

    def join(self, capacity: int, sampling: Sampling | None = None, reserved: int | None = None) -> int:
        """Add a row -> its number."""

    def grow(self, row: int, tokens: int) -> None:
        """Reserve memory for `tokens` tokens of a row."""

    def park(self, row: int, kept: int = 0) -> None:
        """Release the slots of a row; memory stays reserved for a snapshot of `kept` tokens."""

    def unpark(self, row: int, capacity: int, reserved: int, start: Snapshot | None = None) -> int:
        """Continue a parked row, with a snapshot or empty -> the number of tokens that it has."""

    def has_room(self, tokens: int) -> bool:
        """Whether there is memory for one more row of `tokens` tokens."""

    def spare_bytes(self) -> int:
        """Bytes that neither rows nor the prefix cache use."""

    @property
    def row_bytes(self) -> int:
        """Bytes that are reserved for rows."""

    def resume(self, row: int, kv_seqlen: int, capacity: int, sampling: Sampling | None = None) -> int:
        """Rewind a row to its first `kv_seqlen` tokens -> how many of them it still has."""

    def restore(
        self,
        snapshot: Snapshot,
        kv_seqlen: int,
        capacity: int,
        sampling: Sampling | None = None,
        reserved: int | None = None,
    ) -> tuple[int, int]:
        """Add a row with tokens of a snapshot -> its number, and how many it has."""

    def export(self, row: int, ids: Sequence[int], copy: bool = True) -> Snapshot:
        """A snapshot of a row; without `copy`, valid until the next step."""

    def leave(self, row: int) -> None:
        """Remove a row and release its memory."""

    def kv_seqlen(self, row: int) -> int:
        """The number of tokens of a row in the cache."""

    def submit(self, work: Sequence[Work]) -> int:
        """Start a micro-batch -> a ticket."""

    def collect(self, ticket: int) -> list[Outcome]:
        """Wait for a micro-batch -> the outcome of each piece of work."""
