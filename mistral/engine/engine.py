"""The engine: rows join and leave, and a micro-batch runs a step for any of them."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mistral.engine.orders import Join, Leave, Park, Restore, Resume, Rewind, RowOrder
from mistral.engine.prefix_store import PrefixStore
from mistral.engine.stage import Stage
from mistral.engine.work import Outcome, Sampling, Work
from mistral.errors import InputError, setting
from mistral.memory import available_memory, require_memory
from mistral.model.args import ModelArgs
from mistral.model.kv_cache import RollingCache, Snapshot, cache_nbytes, can_rewind
from mistral.model.transformer import Transformer

LOOK_SECONDS = 0.02  # for which a measurement of free memory is used again
OPEN_ENDED = 4096  # new tokens of an answer if neither the request nor the context has a limit


@dataclass(frozen=True)
class Room:
    """The memory of a stage: its machine, its layers, and the bytes that are free on that machine."""

    host: str
    layers: range
    available: int


class Engine:
    """A model with a cache whose rows come and go, each with its own capacity.

    An engine belongs to one thread at a time. Several engines of one model may be used by several threads: their
    steps take turns (see `Transformer`).
    """

    num_pipeline_ranks = 1
    num_micro_batches: int | None = None
    on_layer: Callable[[int, float], None] | None = None
    """Called after each layer of a step that reads prompts, with the number of prompt tokens in the step and the share
    of the model's layers that are done; it changes no result. An exception that it raises ends the step, as Ctrl-C
    does."""
    prefix_store: PrefixStore | None = None
    """The prefix cache; it uses memory of this rank's machine that rows do not need, and releases it for new rows."""

    def __init__(self, model: Transformer, max_context: int | None = None) -> None:
        """`max_context` limits the tokens of a row; the checkpoint's own limit holds as well."""
        self.context_limit = context_limit(model.args, max_context)
        self.model, self.stage = model, Stage(model)
        self._reserved: dict[int, int] = {}  # tokens of each row that memory is reserved for
        self._rooms: list[Room] = []
        self._looked = 0.0  # time of the last measurement of free memory
        self._next_row = self._next_ticket = 0
        self._outcomes: dict[int, list[Outcome]] = {}
        self._drafted: dict[int, Sequence[Work]] = {}  # work that is being computed, by ticket

    @property
    def args(self) -> ModelArgs:
        """The model's architecture."""
        return self.model.args

    @property
    def cache(self) -> RollingCache:
        """The cache of this rank's layers."""
        return self.stage.cache

    @property
    def reserved(self) -> tuple[int, int]:
        """The number of rows, and of tokens that memory is reserved for. May be called from any thread."""
        counted = list(self._reserved.values())
        return len(counted), sum(counted)

    @property
    def row_bytes(self) -> int:
        """Bytes that are reserved for rows, on all ranks. May be called from any thread."""
        layers = range(self.args.n_layers)
        return self._nbytes(layers, *list(self._reserved.values()))

    # Rows

    def join(self, capacity: int, sampling: Sampling | None = None, reserved: int | None = None) -> int:
        """Add a row for at most `capacity` tokens -> its number.

        Memory is reserved for all of them, or for `reserved` tokens until `grow`. Raises InputError if it is short.
        """
        row = self._new_row(capacity, reserved)
        self._order(Join(row, capacity, sampling))
        return row

    def grow(self, row: int, tokens: int) -> None:
        """Reserve memory for `tokens` tokens of a row, within its capacity. Raises InputError if it is short."""
        self._admit(tokens, self._count(row))
        self._reserved[row] = max(tokens, self._count(row))

    def park(self, row: int, kept: int = 0) -> None:
        """Release the slots of a row; it continues with `unpark`.

        Memory stays reserved for `kept` tokens, of which the caller has a snapshot; call it again to release that, too.
        """
        self._count(row)
        self._order(Park(row))
        self._reserved[row] = kept

    def unpark(self, row: int, capacity: int, reserved: int, start: Snapshot | None = None) -> int:
        """Continue a parked row with the tokens of a snapshot, or with none -> the number of tokens that it has.

        Raises InputError if memory is short; the row then stays parked.
        """
        self._admit(reserved, self._count(row))
        self._reserved[row] = reserved
        kv_seqlen = len(start.ids) if start else 0
        if start and can_rewind(self.args.sliding_windows, start.written, kv_seqlen):
            self._order(Restore(row, kv_seqlen, capacity, None, start))
            return kv_seqlen
        self._order(Join(row, capacity, None))
        return 0

    def has_room(self, tokens: int) -> bool:
        """Whether there is memory for one more row of `tokens` tokens."""
        try:
            self._admit(tokens)
        except InputError:
            return False
        return True

    def spare_bytes(self) -> int:
        """Bytes of this rank's machine that neither rows nor the prefix cache use."""
        if not self._rooms:
            return 0
        here = [room for room in self._rooms if room.host == self._rooms[0].host]
        layers = [layer for room in here for layer in room.layers]
        taken = self._nbytes(layers, *self._reserved.values()) + self._stored()
        return max(0, min(room.available for room in here) - taken)

    def _stored(self) -> int:
        return self.prefix_store.nbytes if self.prefix_store else 0

    def resume(self, row: int, kv_seqlen: int, capacity: int, sampling: Sampling | None = None) -> int:
        """Rewind a row to its first `kv_seqlen` tokens, and let it grow to `capacity` -> how many of them it still has.

        That is 0 if a rolling cache has overwritten what the next token needs. Raises InputError, and changes nothing,
        if memory is short.
        """
        before = self._count(row)
        self._admit(capacity, before)
        self._reserved[row] = max(capacity, before)
        written = self.stage.cache.rows[row].written
        left = kv_seqlen if can_rewind(self.args.sliding_windows, written, kv_seqlen) else 0
        self._order(Resume(row, left, capacity, sampling))
        return left

    def restore(
        self,
        snapshot: Snapshot,
        kv_seqlen: int,
        capacity: int,
        sampling: Sampling | None = None,
        reserved: int | None = None,
    ) -> tuple[int, int]:
        """Add a row with the first `kv_seqlen` tokens of a snapshot -> its number, and how many of them it has.

        That is 0 if the snapshot does not hold what the next token needs. Raises InputError as `join` does.
        """
        if not kv_seqlen or not can_rewind(self.args.sliding_windows, snapshot.written, kv_seqlen):
            return self.join(capacity, sampling, reserved), 0
        row = self._new_row(capacity, reserved)
        self._order(Restore(row, kv_seqlen, capacity, sampling, snapshot))
        return row, kv_seqlen

    def leave(self, row: int) -> None:
        """Remove a row and release its memory."""
        self._count(row)
        del self._reserved[row]
        self._order(Leave(row))

    def kv_seqlen(self, row: int) -> int:
        """The number of tokens of a row in the cache."""
        return self.stage.cache.kv_seqlen(row)

    def export(self, row: int, ids: Sequence[int], copy: bool = True) -> Snapshot:
        """A snapshot of a row, whose tokens are `ids`.

        It is a copy, which later steps do not change; raises InputError if there is no memory for it. Without `copy` it
        may share memory with the cache, and is valid until the next step.
        """
        if copy:
            self._require_copy(range(self.args.n_layers), len(ids))
        return self.stage.export(row, ids, copy)

    def _require_copy(self, layers: Sequence[int], tokens: int) -> None:
        require_memory(
            self._nbytes(layers, tokens), available_memory(), f"a copy of {tokens} tokens", "shorten the text"
        )

    def _count(self, row: int) -> int:
        if row not in self._reserved:
            raise InputError(f"the engine has no row {row}: join gives the number of a new one")
        return self._reserved[row]

    def _new_row(self, capacity: int, reserved: int | None) -> int:
        """Reserve memory for a new row -> its number. Raises InputError if memory is short."""
        counted = capacity if reserved is None else min(reserved, capacity)
        self._check_context(capacity)
        self._admit(counted)
        row, self._next_row = self._next_row, self._next_row + 1
        self._reserved[row] = counted
        return row

    def _check_context(self, capacity: int) -> None:
        if self.context_limit is not None and capacity > self.context_limit:
            raise InputError(f"a row of {capacity} tokens is more than the context limit of {self.context_limit}")

    def _order(self, order: RowOrder) -> None:
        self.stage.apply(order)

    def _look_for_rooms(self) -> None:
        """Measure the free memory if there are no rows and the last measurement is not recent."""
        now = time.monotonic()
        if not any(self._reserved.values()) and not (self._rooms and now < self._looked + LOOK_SECONDS):
            self._rooms, self._looked = self._find_rooms(), now

    def _find_rooms(self) -> list[Room]:
        """The memory of each stage, including what this engine's prefix cache uses; called while there are no rows."""
        return [Room("", self.model.layers, available_memory() + self._stored())]

    def check_capacity(self, capacity: int) -> None:
        """Raise InputError if a machine has no memory for a row of `capacity` tokens, even without other rows."""
        self._require_memory(capacity, 0, ())

    def answer_rooms(self, prompts: Sequence[int]) -> list[int]:
        """For each prompt, given its number of tokens, the most new tokens if it were the only row: at least 1.

        Limited by the context, or `OPEN_ENDED` without a limit, and by memory.
        """
        wanted = [length + OPEN_ENDED if self.context_limit is None else self.context_limit for length in prompts]
        longest = max(wanted, default=1)
        held = longest if self._fits(longest) else bisect_left(range(1, longest), True, key=lambda n: not self._fits(n))
        return [max(1, min(held, most) - length) for length, most in zip(prompts, wanted, strict=True)]

    def _fits(self, capacity: int) -> bool:
        try:
            self.check_capacity(capacity)
        except InputError:
            return False
        return True

    def _admit(self, capacity: int, before: int = 0) -> None:
        """Raise InputError if there is no memory for a row of `capacity` tokens that has a reservation of `before`.

        The system assigns memory only as rows fill, so reservations are counted here.
        """
        self._check_context(capacity)
        self._require_memory(capacity, before, self._reserved.values(), self.prefix_store)

    def _require_memory(
        self, capacity: int, before: int, others: Collection[int], store: PrefixStore | None = None
    ) -> None:
        """Raise InputError if a row of `capacity` tokens does not fit beside rows with the reservations `others`.

        A prefix cache `store` releases the memory that the row needs of it.
        """
        self._look_for_rooms()
        for host in {room.host for room in self._rooms}:
            rooms = [room for room in self._rooms if room.host == host]
            layers = [layer for room in rooms for layer in room.layers]
            taken = self._nbytes(layers, *others)
            needed = self._nbytes(layers, max(capacity, before)) - self._nbytes(layers, before)
            available = min(room.available for room in rooms) - taken
            if store and host == self._rooms[0].host and needed <= available < needed + store.nbytes:
                store.shrink(needed + store.nbytes - available)
            remedy = f"lower {setting('max_tokens')} or {setting('max_context')}, or shorten the text"
            require_memory(needed, available, f"the cache of {capacity} tokens", remedy)

    def _nbytes(self, layers: Sequence[int], *capacities: int) -> int:
        """Memory of rows of so many tokens each."""
        return cache_nbytes(self.args, layers, capacities, self.model.ops.SLOT_BYTES)

    # Micro-batches

    def submit(self, work: Sequence[Work]) -> int:
        """Start a micro-batch -> a ticket, with which `collect` returns its outcomes."""
        x = self.stage.run_layers(self.stage.begin(work), work, self.stage.embed(work), self._layer_counter(work))
        ticket = self._new_ticket(work)
        self._outcomes[ticket] = self.stage.choose(work, x)
        return ticket

    def collect(self, ticket: int) -> list[Outcome]:
        """Wait for a micro-batch -> the outcome of each piece of work. Rows are rewound over rejected draft tokens."""
        return self._settled(ticket)

    def _settled(self, ticket: int) -> list[Outcome]:
        """The outcomes of a ticket, after rewinding rows over rejected draft tokens."""
        outcomes, work = self._outcomes.pop(ticket), self._drafted.pop(ticket)
        back: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        for piece, outcome in zip(work, outcomes, strict=True):
            wrong = len(piece.tokens) if outcome.again else len(piece.drafts) - len(outcome.more)
            if wrong and piece.row in self.stage.cache.rows:
                back[outcome.again].append((piece.row, self.kv_seqlen(piece.row) - wrong))
        for clears, rows in back.items():
            if rows:
                self._order(Rewind(tuple(rows), clears))
        return outcomes

    def step(self, work: Sequence[Work]) -> list[NDArray[np.float32]]:
        """Run the new tokens of some rows through the model, without sampling.

        Returns, for each piece of work, float32 logits (n, V) of none, the last, or all of its tokens. The head runs
        only on those. Raises InputError on a pipeline, where logits stay on the last rank.
        """
        if not self.model.is_last:
            raise InputError("step: logits stay on the last rank of a pipeline; use submit and collect")
        x = self.stage.run_layers(self.stage.begin(work), work, self.stage.embed(work))
        return self.stage.logits(work, x)

    def _layer_counter(self, work: Sequence[Work]) -> Callable[[], None] | None:
        """The function that calls `on_layer` after each layer of a step; None for a step that reads no prompt."""
        on_layer, tokens, done = self.on_layer, sum(len(piece.ids) for piece in work if len(piece.ids) > 1), 0
        if on_layer is None or not tokens:
            return None

        def count() -> None:
            nonlocal done
            done += 1
            on_layer(tokens, done / self.args.n_layers)

        return count

    def _new_ticket(self, work: Sequence[Work]) -> int:
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        self._drafted[ticket] = work
        return ticket


def context_limit(args: ModelArgs, max_context: int | None) -> int | None:
    """The most tokens of a row, the smaller of the checkpoint's limit and the user's; None: no limit.

    Raises InputError for a `max_context` below 1.
    """
    if max_context is not None and max_context < 1:
        raise InputError("must be at least 1", option="max_context", value=max_context)
    return min((limit for limit in (args.max_seq_len, max_context) if limit is not None), default=None)
