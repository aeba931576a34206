"""The first rank's orders to the others, besides those about rows (mistral/engine/orders.py)."""

from __future__ import annotations

from dataclasses import dataclass

from mistral.engine.orders import RowOrder
from mistral.engine.work import Work
from mistral.grammar.token_table import TokenTable


@dataclass(frozen=True)
class Open:
    """Start with an empty cache, and reply with a `Room`."""


@dataclass(frozen=True)
class Export:
    """Reply with a `Snapshot` of a row, whose tokens are `ids`."""

    row: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """Run a micro-batch, whose activations come from the stage before."""

    work: tuple[Work, ...]


@dataclass(frozen=True)
class Close:
    """End `serve`, which returns `result`, or raises it if it is an InputError."""

    result: object


@dataclass(frozen=True)
class Learn:
    """The vocabulary of the grammars that rows join with from now on; for the last rank, which samples."""

    table: TokenTable


Order = RowOrder | Learn | Open | Export | Step | Close
