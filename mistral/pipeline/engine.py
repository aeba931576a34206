"""A model whose layers are spread over the ranks of an MPI job, driven by the first of them.

The first rank says what every rank shall do: rows join and leave, micro-batches pass. Its commands reach a rank in the
order in which they were given, and so do activations, float32 (T, D), from the stage before; a command says how many
tokens come. The last rank runs the head on the tokens whose logits are needed, chooses ids, and sends these with their
logprobs to the first rank: logits never leave it, and no other rank samples. Nobody but the first rank decides when a
row ends, so all end on the same token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mistral.engine.engine import Outcome, Sampling, Work, context_limit, require_cache
from mistral.errors import InputError
from mistral.memory import available_memory
from mistral.model.args import ModelArgs
from mistral.model.kv_cache import RollingCache, Snapshot, can_rewind
from mistral.model.transformer import Transformer
from mistral.pipeline.orders import Close, Command, Export, Join, Leave, Open, Restore, Resume, Room, Step
from mistral.pipeline.stage import Stage
from mistral.pipeline.world import COMMAND, REPLY, World


class PipelineEngine:
    """An engine over all stages, on the first rank; the others `serve`. Called like `Engine`, but for `step`."""

    def __init__(
        self,
        model: Transformer,
        world: World,
        max_context: int | None = None,
        num_micro_batches: int | None = None,
    ) -> None:
        """`num_micro_batches` under way at once, at most; see `mistral/schedule.py` for what is chosen without it."""
        assert world.rank == 0
        self.model, self.world, self.num_micro_batches = model, world, num_micro_batches
        self.num_pipeline_ranks = world.size
        try:
            self.context_limit = context_limit(model.args, max_context)
            check_micro_batches(num_micro_batches)
        except InputError as error:
            self._tell(Close(error))
            raise
        self.stage = Stage(model, self.world)
        self.world.busy = True
        self._next_row, self._capacities = 0, dict[int, int]()
        self._next_ticket, self._flying, self._outcomes = 0, deque[int](), dict[int, list[Outcome] | InputError]()
        self._tell(Open())
        here = Room(self.world.host, model.layers, available_memory())
        rooms = [here, *(self.world.receive(rank, REPLY) for rank in range(1, self.world.size))]
        self.rooms = [(room, RollingCache(model.args, room.layers, model.ops)) for room in rooms]

    @property
    def args(self) -> ModelArgs:
        """The model's architecture."""
        return self.model.args

    def _tell(self, command: Command) -> None:
        for rank in range(1, self.world.size):
            self.world.send(command, rank, COMMAND)

    def join(self, capacity: int, sampling: Sampling | None = None) -> int:
        """A new row on every stage -> its number. Raises InputError where the memory of a machine is short."""
        assert self.context_limit is None or capacity <= self.context_limit
        self._require(capacity, 0)
        command = Join(self._new_row(capacity), capacity, sampling)
        self._tell(command)
        self.stage.join(command)
        return command.row

    def _require(self, capacity: int, before: int) -> None:
        """Raise InputError where a machine has no memory for a row of `capacity` that has had `before`."""
        for host in {room.host for room, _ in self.rooms}:
            here = [(room.available, cache) for room, cache in self.rooms if room.host == host]
            taken = sum(cache.nbytes(held) for _, cache in here for held in self._capacities.values())
            needed = sum(
                cache.nbytes(max(capacity, before)) - (cache.nbytes(before) if before else 0) for _, cache in here
            )
            require_cache(capacity, needed, min(available for available, _ in here) - taken)

    def _new_row(self, capacity: int) -> int:
        row, self._next_row = self._next_row, self._next_row + 1
        self._capacities[row] = capacity
        return row

    def kv_seqlen(self, row: int) -> int:
        """Tokens of a row that the cache holds."""
        return self.stage.cache.kv_seqlen(row)

    def resume(self, row: int, kv_seqlen: int, capacity: int, sampling: Sampling | None = None) -> int:
        """Let a row go on, as `Engine.resume` does, on every stage."""
        assert self.context_limit is None or capacity <= self.context_limit
        held = self._capacities[row]
        self._require(capacity, held)
        self._capacities[row] = max(capacity, held)
        written = self.stage.cache.rows[row].written
        left = kv_seqlen if can_rewind(self.args.sliding_windows, written, kv_seqlen) else 0
        command = Resume(row, left, capacity, sampling)
        self._tell(command)
        self.stage.resume(command)
        return left

    def export(self, row: int, ids: Sequence[int]) -> Snapshot:
        """What the caches of all stages hold of a row, whose tokens are `ids`."""
        self._settle()
        self._tell(Export(row, tuple(ids)))
        found = self.stage.cache.export(row, ids)
        parts = [found, *(self.world.receive(rank, REPLY) for rank in range(1, self.world.size))]
        return replace(found, layers={layer: held for part in parts for layer, held in part.layers.items()})

    def restore(
        self, snapshot: Snapshot, kv_seqlen: int, capacity: int, sampling: Sampling | None = None
    ) -> tuple[int, int]:
        """A new row that begins with tokens of a snapshot, as `Engine.restore` makes it, on every stage."""
        if not kv_seqlen or not can_rewind(self.args.sliding_windows, snapshot.written, kv_seqlen):
            return self.join(capacity, sampling), 0
        self._require(capacity, 0)
        row = self._new_row(capacity)
        for rank, (room, _) in enumerate(self.rooms):
            part = replace(snapshot, layers={layer: snapshot.layers[layer] for layer in room.layers})
            command = Restore(row, kv_seqlen, capacity, sampling, part)
            if rank:
                self.world.send(command, rank, COMMAND)
            else:
                self.stage.restore(command)
        return row, kv_seqlen

    def _settle(self) -> None:
        """Wait for all micro-batches that are under way."""
        while self._flying:
            self._outcomes[self._flying.popleft()] = self.world.receive(self.world.size - 1, REPLY)

    def leave(self, row: int) -> None:
        """Forget a row on every stage."""
        del self._capacities[row]
        self._tell(Leave(row))
        self.stage.leave(row)

    def submit(self, work: Sequence[Work]) -> int:
        """Begin a micro-batch: this stage's part of it -> a ticket."""
        self._tell(Step(tuple(work)))
        ids = np.concatenate([np.asarray(piece.ids, np.int64) for piece in work])
        self.stage.pass_on(self.stage.run_layers(work, self.model.embed(ids)))
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        self._flying.append(ticket)
        return ticket

    def collect(self, ticket: int) -> list[Outcome]:
        """What came of a micro-batch; waits for the last stage. Raises InputError for weights that overflow."""
        while ticket not in self._outcomes:
            self._outcomes[self._flying.popleft()] = self.world.receive(self.world.size - 1, REPLY)
        outcomes = self._outcomes.pop(ticket)
        if isinstance(outcomes, InputError):
            raise outcomes
        return outcomes

    def close(self, result: object = None) -> None:
        """Let the other ranks go, with a result for `serve` to return or an InputError for it to raise."""
        for _ in range(len(self._flying)):
            self.world.receive(self.world.size - 1, REPLY)
        self._flying.clear()
        self._tell(Close(result))
        self.world.busy = False


def check_micro_batches(number: int | None) -> None:
    """Raise InputError for a number of micro-batches that cannot be."""
    if number is not None and number < 1:
        raise InputError(f"--num_micro_batches {number}: must be at least 1")
