"""Draft tokens of a quantized copy of the model itself, which uses the row's own slots (self-speculative decoding).

The copy reads the exact keys and values of earlier tokens, and writes approximate ones for the last token and those
that it drafts. The row is then rewound, and the step that verifies the draft starts at the same token: it computes all
of these positions again and overwrites the approximate values before anything reads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mistral.engine.active_row import ActiveRow
from mistral.engine.drafter import Drafter
from mistral.engine.engine import Engine
from mistral.engine.stage import Stage
from mistral.engine.work import Work
from mistral.model.transformer import Transformer


class SelfDraft:
    """A quantized copy of an engine's model that shares its cache."""

    def __init__(self, copy: Transformer, engine: Engine) -> None:
        self.engine, self.stage = engine, Stage(copy)
        self.stage.cache = engine.cache

    def drafter(self, row: ActiveRow) -> Drafter:
        """The drafter of a row; see `NewDrafter`."""
        return SelfDrafter(self, row)


class SelfDrafter(Drafter):
    """See `Drafter`."""

    computes = True
    expected = (0.8,)

    def __init__(self, source: SelfDraft, row: ActiveRow) -> None:
        self._source, self._row = source, row

    def draft(self, answer: Sequence[int], most: int) -> Sequence[int]:
        """The copy's likeliest tokens, one after the other."""
        stage, row, found = self._source.stage, self._row.row, list[int]()
        before, token, sound = self._source.engine.kv_seqlen(row), answer[-1], False
        try:
            while len(found) < most:
                work = [Work(row, [token])]
                logits = stage.logits(work, stage.run_layers(stage.begin(work), work, stage.embed(work)))[0][0]
                if not np.isfinite(logits).all():
                    return found
                token = int(logits.argmax())
                found.append(token)
            sound = True
        finally:
            stage.cache.resume(row, before, 0)
            if not sound:  # an unfinished step, or logits that are not finite
                stage.cache.clear(row)
        return found
