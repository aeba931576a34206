"""An engine without a model: rows are counted, and a step takes the time that it is told to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mistral.engine.prefix_store import PrefixStore
from mistral.engine.work import Outcome, Sampling, Work
from mistral.model.args import ModelArgs
from mistral.model.kv_cache import Snapshot
from tests.support.small_models import DENSE

Cost = Callable[[int, int, int], float]  # rows that are answered, prompt tokens, tokens before these -> seconds


class TimedEngine:
    """Rows that answer with the number of tokens they have seen; `now` is the time, and `steps` what each step did."""

    num_pipeline_ranks = 1
    num_micro_batches: int | None = None
    context_limit: int | None = None
    prefix_store: PrefixStore | None = None
    row_bytes = 0
    args: ModelArgs = DENSE

    def __init__(self, cost: Cost) -> None:
        self.cost, self.now = cost, 0.0
        self.steps: list[tuple[int, int, float]] = []  # rows answered, prompt tokens, seconds
        self.seen: dict[int, int] = {}
        self._rows = 0
        self._outcomes: list[Outcome] = []

    def clock(self) -> float:
        return self.now

    def check_capacity(self, capacity: int) -> None:
        pass

    def has_room(self, tokens: int) -> bool:
        return True

    def spare_bytes(self) -> int:
        return 0

    def join(self, capacity: int, sampling: Sampling | None = None, reserved: int | None = None) -> int:
        self._rows += 1
        self.seen[self._rows] = 0
        return self._rows

    def resume(self, row: int, kv_seqlen: int, capacity: int, sampling: Sampling | None = None) -> int:
        raise NotImplementedError

    def restore(
        self,
        snapshot: Snapshot,
        kv_seqlen: int,
        capacity: int,
        sampling: Sampling | None = None,
        reserved: int | None = None,
    ) -> tuple[int, int]:
        row = self.join(capacity)
        self.seen[row] = kv_seqlen
        return row, kv_seqlen

    def grow(self, row: int, tokens: int) -> None:
        pass

    def park(self, row: int, kept: int = 0) -> None:
        self.seen[row] = 0

    def unpark(self, row: int, capacity: int, reserved: int, start: Snapshot | None = None) -> int:
        self.seen[row] = len(start.ids) if start else 0
        return self.seen[row]

    def leave(self, row: int) -> None:
        del self.seen[row]

    def kv_seqlen(self, row: int) -> int:
        return self.seen[row]

    def export(self, row: int, ids: Sequence[int], copy: bool = True) -> Snapshot:
        return Snapshot(tuple(ids), len(ids), {})

    def submit(self, work: Sequence[Work]) -> int:
        prompts = [piece for piece in work if self.seen[piece.row] == 0 or len(piece.ids) > 1 or not piece.sample]
        tokens = sum(len(piece.ids) for piece in prompts)
        depth = max((self.seen[piece.row] for piece in prompts), default=0)
        seconds = self.cost(len(work) - len(prompts), tokens, depth)
        self.now += seconds
        self.steps.append((len(work) - len(prompts), tokens, seconds))
        for piece in work:
            self.seen[piece.row] += len(piece.ids)
        self._outcomes = [Outcome((), self.seen[piece.row] % 40, 0.0) if piece.sample else Outcome() for piece in work]
        return 0

    def collect(self, ticket: int) -> list[Outcome]:
        return self._outcomes
