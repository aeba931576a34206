"""A rank after the first: it executes the first rank's orders, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import cast

from mistral.engine.engine import Room
from mistral.engine.stage import Stage
from mistral.engine.work import Work
from mistral.memory import available_memory
from mistral.model.transformer import Transformer
from mistral.pipeline.orders import Close, Export, Learn, Open, Order, Step
from mistral.pipeline.relay import Arrival, Relay
from mistral.pipeline.world import ORDER, REPLY, World


class Follower:
    """The stage of this rank, driven by the first rank's orders."""

    def __init__(self, model: Transformer, world: World) -> None:
        self.model, self.world = model, world
        self.stage, self.relay = Stage(model), Relay(world)
        self._orders: deque[Order] = deque()
        self._arriving: deque[Arrival] = deque()

    def serve(self) -> object:
        """Execute orders until `Close` -> its result."""
        while True:
            order = cast(Order, self.world.wait(self._next_order, 0))
            if isinstance(order, Close):
                return order.result
            if isinstance(order, Step):
                self._step(order.work)
            elif isinstance(order, Export):
                self.world.send(self.stage.export(order.row, order.ids, copy=False), 0, REPLY)
            elif isinstance(order, Learn):
                self.stage.samplers.learn(order.table)
            elif isinstance(order, Open):
                self.stage = Stage(self.model)
                self.world.send(Room(self.world.host, self.model.layers, available_memory()), 0, REPLY)
            else:
                self.stage.apply(order)

    def _next_order(self) -> Order | None:
        """The next order, if one has arrived. Receiving activations starts as soon as a micro-batch is announced."""
        while not (self._orders and isinstance(self._orders[-1], Close)):  # later orders are for the next `serve`
            order = self.world.poll(0, ORDER)
            if order is None:
                break
            self._orders.append(order)
            if isinstance(order, Step):
                tokens = sum(len(piece.tokens) for piece in order.work)
                self._arriving.append(self.relay.expect(tokens * self.model.args.dim))
        return self._orders.popleft() if self._orders else None

    def _step(self, work: Sequence[Work]) -> None:
        arrival = self._arriving.popleft()
        x = self.model.ops.tensor(arrival.wait().reshape(-1, self.model.args.dim))
        x = self.stage.run_layers(self.stage.begin(work), work, x, self.world.progress)
        if self.model.is_last:
            self.world.send(self.stage.choose(work, x), 0, REPLY)
        else:
            self.relay.pass_on(x)
        self.relay.release(arrival)
