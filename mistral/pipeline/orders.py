"""What the first rank tells the others to do."""

from __future__ import annotations

from dataclasses import dataclass

from mistral.engine.engine import Sampling, Work
from mistral.model.kv_cache import Snapshot


@dataclass(frozen=True)
class Open:
    """Begin with an empty cache and answer with a `Room`."""


@dataclass(frozen=True)
class Join:
    """A new row."""

    row: int
    capacity: int
    sampling: Sampling | None


@dataclass(frozen=True)
class Leave:
    """A row that has ended."""

    row: int


@dataclass(frozen=True)
class Resume:
    """A row that goes on after its first `kv_seqlen` tokens."""

    row: int
    kv_seqlen: int
    capacity: int
    sampling: Sampling | None


@dataclass(frozen=True)
class Export:
    """Answer with what the cache holds of a row, whose tokens are `ids`: a `Snapshot`."""

    row: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Restore:
    """A new row that begins with tokens of a snapshot; has this stage's layers of it."""

    row: int
    kv_seqlen: int
    capacity: int
    sampling: Sampling | None
    snapshot: Snapshot


@dataclass(frozen=True)
class Step:
    """A micro-batch."""

    work: tuple[Work, ...]


@dataclass(frozen=True)
class Close:
    """Stop serving; `result` is what `serve` then returns, or raises if it is an InputError."""

    result: object


Command = Open | Join | Resume | Export | Restore | Leave | Step | Close


@dataclass(frozen=True)
class Room:
    """What a stage can hold: its machine, its layers, and the bytes of memory free on that machine."""

    host: str
    layers: range
    available: int
