"""The engine of a model whose layers are split over the ranks of an MPI job; it runs on the first rank.

The first rank sends orders to all ranks: rows join and leave, micro-batches start. Orders arrive in the order in which
they were sent, and so do activations, float32 (T, D), from the stage before; an order says how many tokens they have.
The last rank runs the head on the tokens whose logits are needed, samples, and sends ids and log-probabilities to the
first rank: logits never leave the last rank, and no other rank samples. Only the first rank decides when a row ends, so
all end on the same token. mistral/engine/micro_batches.py says why there is no deadlock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from mistral.engine.engine import Engine, Room
from mistral.engine.orders import Leave, Park, Restore, Rewind, RowOrder
from mistral.engine.work import Outcome, Work
from mistral.errors import InputError
from mistral.grammar.token_table import TokenTable
from mistral.memory import available_memory
from mistral.model.kv_cache import Snapshot
from mistral.model.transformer import Transformer
from mistral.pipeline.orders import Close, Export, Learn, Open, Order, Step
from mistral.pipeline.relay import Relay
from mistral.pipeline.world import ORDER, REPLY, World


class PipelineEngine(Engine):
    """An engine that spans all stages, on the first rank; the other ranks execute its orders (see `Follower`)."""

    def __init__(
        self,
        model: Transformer,
        world: World,
        max_context: int | None = None,
        num_micro_batches: int | None = None,
    ) -> None:
        """`num_micro_batches`: the most in the pipeline at once; by default the scheduler chooses.

        Raises InputError on another rank than the first, and for options out of range.
        """
        if world.rank:
            raise InputError(f"rank {world.rank} does not drive the pipeline: call serve here, and drive on the first")
        self.world, self.num_pipeline_ranks, self.num_micro_batches = world, world.size, num_micro_batches
        try:
            super().__init__(model, max_context)
            check_micro_batches(num_micro_batches)
        except InputError as error:
            self._tell(Close(error))
            raise
        self.relay = Relay(world)
        self._flying = deque[int]()
        self._taught: TokenTable | None = None
        world.busy = True
        self._tell(Open())
        here = Room(world.host, model.layers, available_memory())
        self._rooms = [here, *(world.receive(rank, REPLY) for rank in range(1, world.size))]

    def _tell(self, order: Order) -> None:
        for rank in range(1, self.world.size):
            self.world.send(order, rank, ORDER)

    def _order(self, order: RowOrder) -> None:
        """Send an order to every rank; of a snapshot, each gets its own layers."""
        self._teach(order)
        if not isinstance(order, Restore):
            self._tell(order)
            self.stage.apply(order)
            return
        for rank, room in enumerate(self._rooms):
            part = replace(order.snapshot, layers={layer: order.snapshot.layers[layer] for layer in room.layers})
            if rank:
                self.world.send(replace(order, snapshot=part), rank, ORDER)
            else:
                self.stage.apply(replace(order, snapshot=part))

    def _teach(self, order: RowOrder) -> None:
        """Send the vocabulary of a row's grammar to the last rank, if it does not have it yet."""
        sampling = None if isinstance(order, Park | Leave | Rewind) else order.sampling
        table = sampling.constraint.table if sampling and sampling.constraint else None
        if table is not None and table is not self._taught:
            self.world.send(Learn(table), self.world.size - 1, ORDER)
            self._taught = table

    def _find_rooms(self) -> list[Room]:
        return self._rooms

    def export(self, row: int, ids: Sequence[int], copy: bool = True) -> Snapshot:
        """A snapshot of a row in all stages, whose tokens are `ids`; see `Engine.export`.

        The parts of other stages are always copies, which were received as messages.
        """
        self._require_copy(range(self.args.n_layers), len(ids))
        while self._flying:
            self._receive()
        self._tell(Export(row, tuple(ids)))
        found = self.stage.export(row, ids, copy)
        parts = [found, *(self.world.receive(rank, REPLY) for rank in range(1, self.world.size))]
        return replace(found, layers={layer: held for part in parts for layer, held in part.layers.items()})

    def submit(self, work: Sequence[Work]) -> int:
        """Start a micro-batch and run this stage -> a ticket."""
        x, metadata = self.stage.embed(work), self.stage.begin(work)  # may raise: before other ranks are told
        self._tell(Step(tuple(work)))
        tell = self._layer_counter(work)

        def after_layer() -> None:
            self.world.progress()
            if tell:
                tell()

        self.relay.pass_on(self.stage.run_layers(metadata, work, x, after_layer))
        ticket = self._new_ticket(work)
        self._flying.append(ticket)
        return ticket

    def collect(self, ticket: int) -> list[Outcome]:
        """Wait for a micro-batch, which ends on the last stage -> the outcome of each piece of work."""
        while ticket not in self._outcomes:
            self._receive()
        return self._settled(ticket)

    def _receive(self) -> None:
        """Wait for the outcomes of the oldest micro-batch in flight."""
        self._outcomes[self._flying.popleft()] = self.world.receive(self.world.size - 1, REPLY)

    def close(self, result: object = None) -> None:
        """Release the other ranks, with a result that their `serve` returns, or an InputError that it raises."""
        while self._flying:
            self._receive()
        self._tell(Close(result))
        self.world.busy = False


def check_micro_batches(number: int | None) -> None:
    """Raise InputError for a number of micro-batches below 1."""
    if number is not None and number < 1:
        raise InputError("must be at least 1", option="num_micro_batches", value=number)
