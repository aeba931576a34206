"""The engine of a model whose layers are spread over the ranks of an MPI job, driven by the first of them.

The first rank says what every rank shall do: rows join and leave, micro-batches pass. Its orders reach a rank in the
order in which they were given, and so do activations, float32 (T, D), from the stage before; an order says how many
tokens come. The last rank runs the head on the tokens whose logits are needed, chooses ids, and sends these with their
log-probabilities to the first rank: logits never leave the last rank, and no other rank samples. Nobody but the first
rank decides when a row ends, so all end on the same token.

Every stage takes the micro-batches in the order in which the first stage began them, one after the other. So a stage
that waits always waits for the one before it, and the first for a result of the last: nobody can wait in a circle as
long as the first stage stops for a result only while a micro-batch is in flight.
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
    """An engine over all stages, on the first rank; the other ranks follow its orders (see `Follower`)."""

    def __init__(
        self,
        model: Transformer,
        world: World,
        max_context: int | None = None,
        num_micro_batches: int | None = None,
    ) -> None:
        """`num_micro_batches` under way at once, at most; the scheduler chooses where it is left out."""
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
        """Tell every rank; of a snapshot, each its own layers."""
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
        """Give the last rank the vocabulary of a row's grammar, where it does not have it yet."""
        sampling = None if isinstance(order, Park | Leave | Rewind) else order.sampling
        table = sampling.constraint.table if sampling and sampling.constraint else None
        if table is not None and table is not self._taught:
            self.world.send(Learn(table), self.world.size - 1, ORDER)
            self._taught = table

    def _find_rooms(self) -> list[Room]:
        return self._rooms

    def export(self, row: int, ids: Sequence[int], copy: bool = True) -> Snapshot:
        """What the caches of all stages hold of a row, whose tokens are `ids`; see `Engine.export`.

        The other stages' part is always a copy, which came by a message.
        """
        self._require_copy(range(self.args.n_layers), len(ids))
        while self._flying:
            self._receive()
        self._tell(Export(row, tuple(ids)))
        found = self.stage.export(row, ids, copy)
        parts = [found, *(self.world.receive(rank, REPLY) for rank in range(1, self.world.size))]
        return replace(found, layers={layer: held for part in parts for layer, held in part.layers.items()})

    def submit(self, work: Sequence[Work]) -> int:
        """Begin a micro-batch: this stage's part of it -> a ticket."""
        x, metadata = self.stage.embed(work), self.stage.begin(work)  # before others wait for what cannot come
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
        """What came of a micro-batch; waits for the last stage."""
        while ticket not in self._outcomes:
            self._receive()
        return self._settled(ticket)

    def _receive(self) -> None:
        """Wait for what came of the oldest micro-batch that is under way."""
        self._outcomes[self._flying.popleft()] = self.world.receive(self.world.size - 1, REPLY)

    def close(self, result: object = None) -> None:
        """Let the other ranks go, with a result for `serve` to return or an InputError for it to raise."""
        while self._flying:
            self._receive()
        self._tell(Close(result))
        self.world.busy = False


def check_micro_batches(number: int | None) -> None:
    """Raise InputError for a number of micro-batches that cannot be."""
    if number is not None and number < 1:
        raise InputError("must be at least 1", option="num_micro_batches", value=number)
