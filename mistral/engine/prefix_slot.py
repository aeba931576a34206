"""A row of an engine that outlives its request, so that the next prompt need not read again what both begin with."""

from __future__ import annotations

from collections.abc import Sequence

from mistral.engine.row_engine import RowEngine
from mistral.engine.work import Sampling
from mistral.model.kv_cache import Snapshot


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


class PrefixSlot:
    """A row of the cache with the ids that it holds; one request at a time uses it.

    After a request has begun, `shared` of its prompt's ids were among the ids of the row, and `reused` of them are not
    computed again: as many, or none where a rolling cache has overwritten what the next token needs.
    """

    def __init__(self, engine: RowEngine) -> None:
        self.engine, self.ids, self.row = engine, list[int](), -1
        self.shared = self.reused = 0

    def begin(self, prompt: Sequence[int], capacity: int, sampling: Sampling | None) -> None:
        """Get ready for a prompt. Raises InputError where memory is short; the row keeps what it has then."""
        if self.row < 0:
            self.row = self.engine.join(capacity, sampling)
        shared = min(common_prefix(self.cached_ids(), prompt), len(prompt) - 1)  # the last token's logits are wanted
        self.reused = self.engine.resume(self.row, shared, capacity, sampling)
        self.shared, self.ids = shared, list(prompt[: self.reused])

    def cached_ids(self) -> list[int]:
        """The ids whose keys and values the cache holds: those of a step that was interrupted are not among them."""
        del self.ids[0 if self.row < 0 else self.engine.kv_seqlen(self.row) :]
        return self.ids

    def export(self, copy: bool = True) -> Snapshot | None:
        """What the cache holds of the row; None before the first request. See `Engine.export`."""
        return self.engine.export(self.row, self.cached_ids(), copy) if self.cached_ids() else None

    def restore(self, snapshot: Snapshot) -> None:
        """Hold a snapshot's tokens instead. Raises InputError where memory is short; nothing has changed then."""
        row, kv_seqlen = self.engine.restore(snapshot, len(snapshot.ids), len(snapshot.ids))
        self.leave()
        self.row, self.ids = row, list(snapshot.ids[:kv_seqlen])

    def leave(self) -> None:
        """Give the row back to the engine."""
        if self.row >= 0:
            self.engine.leave(self.row)
        self.row, self.ids = -1, []
