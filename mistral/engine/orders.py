"""Orders that create, change and release the rows of a stage. A pipeline sends the same orders to every rank."""

from __future__ import annotations

from dataclasses import dataclass

from mistral.engine.work import Sampling
from mistral.model.kv_cache import Snapshot


@dataclass(frozen=True)
class Join:
    """A new row, for at most `capacity` tokens."""

    row: int
    capacity: int
    sampling: Sampling | None


@dataclass(frozen=True)
class Resume:
    """A row is rewound to its first `kv_seqlen` tokens, and may grow to `capacity`."""

    row: int
    kv_seqlen: int
    capacity: int
    sampling: Sampling | None


@dataclass(frozen=True)
class Restore:
    """A new row starts with the first `kv_seqlen` tokens of a snapshot, which has the layers of the receiving stage."""

    row: int
    kv_seqlen: int
    capacity: int
    sampling: Sampling | None
    snapshot: Snapshot


@dataclass(frozen=True)
class Park:
    """A row releases its slots and keeps its sampling state. A `Join` or `Restore` without sampling continues it."""

    row: int


@dataclass(frozen=True)
class Leave:
    """A row has ended; its memory is released."""

    row: int


@dataclass(frozen=True)
class Rewind:
    """Rows, each with the number of its first tokens that are kept; the others were rejected draft tokens.

    clears: their keys and values may not be finite, and are set to 0.
    """

    rows: tuple[tuple[int, int], ...]
    clears: bool = False


RowOrder = Join | Resume | Restore | Park | Leave | Rewind
