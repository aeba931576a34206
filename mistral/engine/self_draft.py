"""Guesses by a rougher copy of the model itself, which uses the row's own slots.

The copy reads the exact keys and values of what came before, and writes its own, rough ones, for the last token and
those that it guesses. The row then goes back, and the step that checks the guesses begins at the same token: it
computes every one of these positions again and writes over all that is rough, before anything reads it.
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
    """A copy of an engine's model, with fewer bits, that shares its cache."""

    def __init__(self, copy: Transformer, engine: Engine) -> None:
        self.engine, self.stage = engine, Stage(copy)
        self.stage.cache = engine.cache

    def drafter(self, row: ActiveRow) -> Drafter:
        """What guesses for a row; see `NewDrafter`."""
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
            if not sound:  # a step that is not finished, or numbers that are none
                stage.cache.clear(row)
        return found
