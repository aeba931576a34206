"""What a scheduler asks of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mistral.engine.prefix_store import PrefixStore
from mistral.engine.work import Outcome, Sampling, Work
from mistral.model.args import ModelArgs
from mistral.model.kv_cache import Snapshot


class RowEngine(Protocol):
    """Rows that come and go, and micro-batches that move them on; `Engine` says what each function does."""

    num_pipeline_ranks: int
    num_micro_batches: int | None
    context_limit: int | None
    prefix_store: PrefixStore | None

    @property
    def args(self) -> ModelArgs:
        """The model's architecture."""

    def check_capacity(self, capacity: int) -> None:
        """Raise InputError where no row can have so many tokens."""

    def join(self, capacity: int, sampling: Sampling | None = None, reserved: int | None = None) -> int:
        """A new row -> its number."""

    def grow(self, row: int, tokens: int) -> None:
        """Count memory for more tokens of a row."""

    def park(self, row: int, kept: int = 0) -> None:
        """Give away what the cache holds of a row, but the memory of a snapshot."""

    def unpark(self, row: int, capacity: int, reserved: int, start: Snapshot | None = None) -> int:
        """Let a parked row go on with a snapshot, or read its tokens again -> how many it has."""

    def has_room(self, tokens: int) -> bool:
        """Whether there is memory for one more row of so many tokens."""

    def spare_bytes(self) -> int:
        """Memory that neither rows nor the prefix store have taken."""

    @property
    def row_bytes(self) -> int:
        """Memory that is counted for the rows there are."""

    def resume(self, row: int, kv_seqlen: int, capacity: int, sampling: Sampling | None = None) -> int:
        """Let a row go on after its first tokens -> how many of them it still has."""

    def restore(
        self,
        snapshot: Snapshot,
        kv_seqlen: int,
        capacity: int,
        sampling: Sampling | None = None,
        reserved: int | None = None,
    ) -> tuple[int, int]:
        """A new row that begins with tokens of a snapshot -> its number, and how many it has."""

    def export(self, row: int, ids: Sequence[int], copy: bool = True) -> Snapshot:
        """What the cache holds of a row; without `copy`, until the next step."""

    def leave(self, row: int) -> None:
        """Forget a row; its memory is free at once."""

    def kv_seqlen(self, row: int) -> int:
        """Tokens of a row that the cache holds."""

    def submit(self, work: Sequence[Work]) -> int:
        """Begin a micro-batch -> a ticket."""

    def collect(self, ticket: int) -> list[Outcome]:
        """What came of each piece of work of a micro-batch, once it is through."""
