"""The engine: rows join and leave, and one step moves any of them on. It holds the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mistral.errors import InputError
from mistral.memory import available_memory, require_memory
from mistral.model import Transformer


@dataclass(frozen=True)
class Work:
    """New tokens of one row, and of which of them the logits are wanted."""

    row: int
    ids: Sequence[int]
    logits: Literal["none", "last", "all"] = "last"


class Engine:
    """A model with a cache whose rows come and go, each with its own capacity."""

    def __init__(self, model: Transformer, max_context: int | None = None) -> None:
        """`max_context` limits the tokens of a row where the checkpoint itself does not, or does so less."""
        if max_context is not None and max_context < 1:
            raise InputError(f"--max_context {max_context}: must be at least 1")
        limits = [limit for limit in (model.args.max_seq_len, max_context) if limit is not None]
        self.model, self.cache = model, model.new_cache()
        self.context_limit = min(limits, default=None)
        self._next_row, self._available = 0, 0

    def join(self, capacity: int) -> int:
        """A new row that will see at most `capacity` tokens -> its number. Raises InputError where memory is short."""
        limit = self.context_limit
        assert limit is None or capacity <= limit
        if not self.cache.rows:
            self._available = available_memory()
        # rows that have joined take their memory only as they fill, so it is counted here and not by the system
        taken = sum(self.cache.nbytes(row.capacity) for row in self.cache.rows.values())
        purpose, remedy = f"the cache of {capacity} tokens", "lower --max_tokens, or shorten the prompt"
        require_memory(self.cache.nbytes(capacity), self._available - taken, purpose, remedy)
        row, self._next_row = self._next_row, self._next_row + 1
        self.cache.add(row, capacity)
        return row

    def leave(self, row: int) -> None:
        """Forget a row; its memory is free at once."""
        self.cache.drop(row)

    def step(self, work: Sequence[Work]) -> list[NDArray[np.float32]]:
        """Run the new tokens of some rows through the model.

        Returns, for each piece of work, float32 logits (n, V): of none, the last, or all of its tokens. The head runs
        only on those.
        """
        ends = np.cumsum([len(piece.ids) for piece in work])
        counts = [{"none": 0, "last": 1, "all": len(piece.ids)}[piece.logits] for piece in work]
        wanted = np.concatenate([np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)])
        ids = np.concatenate([np.asarray(piece.ids, np.int64) for piece in work])
        seqlens, rows = [len(piece.ids) for piece in work], [piece.row for piece in work]
        logits = self.model.forward(ids, seqlens, self.cache, rows, wanted)
        return np.split(logits.asnumpy(), np.cumsum(counts)[:-1])
