"""What a stage is told about a row before its tokens come. A pipeline sends the same orders to every rank."""

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
    """A row goes on after its first `kv_seqlen` tokens, up to `capacity`."""

    row: int
    kv_seqlen: int
    capacity: int
    sampling: Sampling | None


@dataclass(frozen=True)
class Restore:
    """A new row begins with the first `kv_seqlen` tokens of a snapshot, which has the layers of the stage it is for."""

    row: int
    kv_seqlen: int
    capacity: int
    sampling: Sampling | None
    snapshot: Snapshot


@dataclass(frozen=True)
class Park:
    """A row gives its slots away; how its tokens are chosen stays. It goes on after a `Join` without sampling."""

    row: int


@dataclass(frozen=True)
class Leave:
    """A row has ended; its memory is free."""

    row: int


@dataclass(frozen=True)
class Rewind:
    """Rows, each with the number of its first tokens that stay: those after them came of wrong drafts.

    clears: what the cache holds of these is not finite and is set to 0.
    """

    rows: tuple[tuple[int, int], ...]
    clears: bool = False


RowOrder = Join | Resume | Restore | Park | Leave | Rewind
