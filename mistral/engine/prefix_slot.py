"""A row of an engine that outlives its request, so that the next prompt reuses the common prefix."""

from __future__ import annotations

from collections.abc import Sequence

from mistral.engine.row_engine import RowEngine
from mistral.engine.work import Sampling
from mistral.model.kv_cache import Snapshot


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the longest common prefix of two sequences."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


class PrefixSlot:
    """A row of the cache with its ids; one request at a time uses it.

    After a request has begun, `shared` is the length of the common prefix of its prompt and the row, and `reused` the
    number of tokens that are not computed again: as many, or 0 if a rolling cache has overwritten what the next token
    needs.
    """

    def __init__(self, engine: RowEngine) -> None:
        self.engine, self.ids, self.row = engine, list[int](), -1
        self.shared = self.reused = 0

    def begin(self, prompt: Sequence[int], capacity: int, sampling: Sampling | None) -> None:
        """Prepare the row for a prompt. Raises InputError, and keeps the row unchanged, if memory is short."""
        if self.row < 0:
            self.row = self.engine.join(capacity, sampling)
        shared = min(common_prefix(self.cached_ids(), prompt), len(prompt) - 1)  # the last token's logits are wanted
        self.reused = self.engine.resume(self.row, shared, capacity, sampling)
        self.shared, self.ids = shared, list(prompt[: self.reused])

    def cached_ids(self) -> list[int]:
        """The ids whose keys and values are in the cache, without those of an interrupted step. Callers add to it."""
        del self.ids[0 if self.row < 0 else self.engine.kv_seqlen(self.row) :]
        return self.ids

    def export(self, copy: bool = True) -> Snapshot | None:
        """A snapshot of the row; None before the first request. See `Engine.export`."""
        return self.engine.export(self.row, self.cached_ids(), copy) if self.cached_ids() else None

    def restore(self, snapshot: Snapshot) -> None:
        """Replace the row by a snapshot's tokens. Raises InputError, and changes nothing, if memory is short."""
        row, kv_seqlen = self.engine.restore(snapshot, len(snapshot.ids), len(snapshot.ids))
        self.leave()
        self.row, self.ids = row, list(snapshot.ids[:kv_seqlen])

    def leave(self) -> None:
        """Give the row back to the engine."""
        if self.row >= 0:
            self.engine.leave(self.row)
        self.row, self.ids = -1, []
