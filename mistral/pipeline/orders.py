"""What the first rank tells the others to do, beside the orders about rows that every stage knows."""

from __future__ import annotations

from dataclasses import dataclass

from mistral.engine.orders import RowOrder
from mistral.engine.work import Work
from mistral.grammar.token_table import TokenTable


@dataclass(frozen=True)
class Open:
    """Begin with an empty cache and answer with a `Room`."""


@dataclass(frozen=True)
class Export:
    """Answer with what the cache holds of a row, whose tokens are `ids`: a `Snapshot`."""

    row: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """Run a micro-batch, whose activations come from the stage before."""

    work: tuple[Work, ...]


@dataclass(frozen=True)
class Close:
    """Stop following; `result` is what `serve` then returns, or raises if it is an InputError."""

    result: object


@dataclass(frozen=True)
class Learn:
    """The vocabulary of the grammars that rows join with from now on; for the last rank, which samples."""

    table: TokenTable


Order = RowOrder | Learn | Open | Export | Step | Close
