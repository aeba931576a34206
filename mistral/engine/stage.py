"""The layers of one rank with their cache and, on the last rank, the samplers of the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mistral.engine.orders import Join, Leave, Park, Restore, Resume, Rewind, RowOrder
from mistral.engine.samplers import Samplers
from mistral.engine.work import Outcome, Work, wanted_counts, wanted_places
from mistral.model.inputs import token_ids
from mistral.model.kv_cache import CacheMetadata, Snapshot
from mistral.model.transformer import Transformer
from mistral.ops.device import device_lock

if TYPE_CHECKING:
    from mindspore import Tensor


class Stage:
    """The part of an engine on one rank; without a pipeline, an engine has one stage with all layers."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.cache, self.samplers = model, model.new_cache(), Samplers()

    def apply(self, order: RowOrder) -> None:
        """Execute an order."""
        if isinstance(order, Leave | Park):
            if order.row in self.cache.rows:  # a parked row has left already
                self.cache.drop(order.row)
            if isinstance(order, Leave):
                self.samplers.leave(order.row)
            return
        if isinstance(order, Rewind):
            for row, kv_seqlen in order.rows:
                self.cache.resume(row, kv_seqlen, 0)
                if order.clears:
                    self.cache.clear(row)
            return
        if isinstance(order, Join):
            self.cache.add(order.row, order.capacity)
        elif isinstance(order, Resume):
            self.cache.resume(order.row, order.kv_seqlen, order.capacity)
        elif isinstance(order, Restore):
            self.cache.restore(order.row, order.capacity, order.snapshot, order.kv_seqlen)
        if order.sampling and self.model.is_last:
            self.samplers.join(order.row, order.sampling)

    def export(self, row: int, ids: Sequence[int], copy: bool = True) -> Snapshot:
        """A snapshot of a row in this stage's layers; see `RollingCache.export`."""
        return self.cache.export(row, ids, copy)

    def embed(self, work: Sequence[Work]) -> Tensor:
        """On the first stage: the embeddings (T, D) of the new tokens of all pieces of work.

        Raises InputError for an id outside the vocabulary.
        """
        ids = [token for piece in work for token in piece.tokens]
        return self.model.embed(token_ids("ids", ids, self.model.args.vocab_size))

    def begin(self, work: Sequence[Work]) -> CacheMetadata:
        """Begin a step -> what all layers share of it.

        Raises InputError, and changes nothing, for a row that does not exist or would exceed its capacity.
        """
        return self.cache.begin([len(piece.tokens) for piece in work], [piece.row for piece in work])

    def run_layers(
        self, metadata: CacheMetadata, work: Sequence[Work], x: Tensor, after_layer: Callable[[], None] | None = None
    ) -> Tensor | None:
        """x (T, D) through this stage's layers -> (T, D); `after_layer` is called after each.

        The last stage returns (n, D), for the tokens whose logits the work wants, or None if it wants none.
        """
        found = self.model.run_blocks(x, metadata, self.cache, after_layer, wanted_places(work))
        self.cache.end(metadata)
        return found

    def logits(self, work: Sequence[Work], x: Tensor | None) -> list[NDArray[np.float32]]:
        """On the last stage: the result of `run_layers` -> for each piece of work the logits (n, V) that it wants."""
        if x is None:
            return [np.empty((0, self.model.args.vocab_size), np.float32)] * len(work)
        with device_lock:
            logits = self.model.head(x).asnumpy()
        counts = wanted_counts(work)
        return [logits[end - count : end] for count, end in zip(counts, accumulate(counts), strict=True)]

    def choose(self, work: Sequence[Work], x: Tensor | None) -> list[Outcome]:
        """On the last stage: the result of `run_layers` -> the outcome of each piece of work."""
        return self.samplers.choose(work, self.logits(work, x))
