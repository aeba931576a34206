"""What steps of a few tokens take, tried in a row of its own before drafts are made.

A step's time has stairs, where kernels take more tokens at once, and so the sizes that are tried are the ends of these.
The row is a new one that sees ids of its own and leaves at once: nothing of another row is touched, nothing is chosen,
and no figure counts its steps. It moves by the engine's own orders, and so on every rank of a pipeline.
"""

from __future__ import annotations

from collections.abc import Callable

from mistral.engine.row_engine import RowEngine
from mistral.engine.work import Work
from mistral.errors import InputError
from mistral.model import kv_cache

SIZES = (1, 8, 16, 33, 2, 4, 9, 17)  # tokens of a step; what tells most comes first
ROUNDS = 3  # each is tried as often, where there is time for that, and the least counts
LIMIT = 0.15  # seconds in all
FEWEST = 2  # steps, however long they take
AT_ONCE = 0.02  # seconds between two steps of answers, or one step that takes longer
SLOT_BYTES = 4  # of a number in the cache, at most


class StepTrial:
    """Tries steps, a few at a time: `seconds` is the least that each size took.

    `tried`: how many there were, which took `spent` seconds together.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: seconds."""
        self.seconds: dict[int, float] = {}
        self.tried, self.spent, self.done = 0, 0.0, False
        self._clock = clock

    def go_on(self, engine: RowEngine) -> None:
        """Try some more, while nothing of the engine is under way.

        Nothing is tried where memory that rows and the prefix store have left is too short for the row.
        """
        most = min(kv_cache.SPARE + 1, engine.context_limit or max(SIZES), max(SIZES))
        needed = kv_cache.cache_nbytes(engine.args, range(engine.args.n_layers), most, SLOT_BYTES)
        if self.done or needed > engine.spare_bytes():
            return
        try:
            row = engine.join(most)
        except InputError:  # no memory on another machine
            return
        try:
            self._steps(engine, row, most)
        except (InputError, MemoryError):  # the next step of an answer says why
            if engine.num_pipeline_ranks > 1:  # whose other ranks wait for what does not come
                raise
            self.done = True
        finally:
            engine.leave(row)

    def _steps(self, engine: RowEngine, row: int, most: int) -> None:
        """Steps of a row that has room for `most` tokens, each from its beginning on."""
        sizes, before = [size for size in SIZES if size <= most] * ROUNDS, self.spent
        ids = [place * engine.args.vocab_size // most for place in range(most)]  # such that experts differ
        while not self.done and (self.spent == before or self.spent - before < AT_ONCE):
            size, begun = sizes[self.tried], self._clock()
            engine.collect(engine.submit([Work(row, ids[:1], drafts=ids[1:size])]))
            seconds = self._clock() - begun
            engine.resume(row, 0, most)
            self.seconds[size] = min(seconds, self.seconds.get(size, seconds))
            self.tried, self.spent = self.tried + 1, self.spent + seconds
            self.done = self.tried == len(sizes) or (self.tried >= FEWEST and self.spent >= LIMIT)
