"""One rank's layers, and what the first rank tells the others to do with theirs."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from mistral.engine.engine import Outcome, Samplers, Sampling, Work, wanted_tokens
from mistral.errors import InputError
from mistral.memory import available_memory
from mistral.model.transformer import Transformer
from mistral.pipeline.orders import Close, Command, Export, Join, Leave, Open, Restore, Resume, Room, Step
from mistral.pipeline.world import COMMAND, REPLY, World

if TYPE_CHECKING:
    from mindspore import Tensor


class Buffers:
    """Arrays of float32 that are used again."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.float32]] = []

    def take(self, size: int) -> NDArray[np.float32]:
        """A flat array of at least `size` elements."""
        fitting = [buffer for buffer in self._free if buffer.size >= size]
        if not fitting:
            return np.empty(size, np.float32)
        best = min(fitting, key=lambda buffer: buffer.size)
        self._free = [buffer for buffer in self._free if buffer is not best]
        return best

    def give(self, buffer: NDArray[np.float32]) -> None:
        """An array that may be used again; the largest few are kept."""
        self._free = sorted([*self._free, buffer], key=lambda each: -each.size)[:8]


class Stage:
    """The layers of this rank: its part of every micro-batch."""

    def __init__(self, model: Transformer, world: World) -> None:
        self.model, self.world = model, world
        self.cache, self.samplers, self.buffers = model.new_cache(), Samplers(), Buffers()

    def join(self, command: Join) -> None:
        """A new row."""
        self.cache.add(command.row, command.capacity)
        self._choose_for(command.row, command.sampling)

    def resume(self, command: Resume) -> None:
        """A row that goes on."""
        self.cache.resume(command.row, command.kv_seqlen, command.capacity)
        self._choose_for(command.row, command.sampling)

    def restore(self, command: Restore) -> None:
        """A new row that begins with tokens of a snapshot."""
        self.cache.restore(command.row, command.capacity, command.snapshot, command.kv_seqlen)
        self._choose_for(command.row, command.sampling)

    def _choose_for(self, row: int, sampling: Sampling | None) -> None:
        if sampling and self.model.is_last:
            self.samplers.join(row, sampling)

    def leave(self, row: int) -> None:
        """Forget a row."""
        self.cache.drop(row)
        self.samplers.leave(row)

    def run_layers(self, work: Sequence[Work], x: Tensor) -> Tensor:
        """x (T, D) through this stage's layers -> (T, D)."""
        seqlens, rows = [len(piece.ids) for piece in work], [piece.row for piece in work]
        metadata = self.cache.begin(seqlens, rows)
        x = self.model.run_blocks(x, metadata, self.cache, self.world.progress)
        self.cache.end(metadata)
        return x

    def pass_on(self, x: Tensor) -> None:
        """Send x (T, D) to the next stage, while this one goes on."""
        values = x.asnumpy()
        assert values.dtype == np.float32
        buffer = self.buffers.take(values.size)
        message = buffer[: values.size]
        np.copyto(message, values.reshape(-1))
        self.world.send_array(message, self.world.rank + 1, lambda: self.buffers.give(buffer))
        self.world.progress()

    def choose(self, work: Sequence[Work], x: Tensor) -> list[Outcome] | InputError:
        """On the last stage: the head, where it is needed, and the sampler."""
        counts, wanted = wanted_tokens(work)
        if len(wanted):
            logits = self.model.head(self.model.ops.take(x, wanted)).asnumpy()
        else:
            logits = np.empty((0, self.model.args.vocab_size), np.float32)
        try:
            return self.samplers.choose(work, np.split(logits, np.cumsum(counts)[:-1]))
        except InputError as error:
            return error


class Follower:
    """A rank that is not the first: does what it is told, in order."""

    def __init__(self, model: Transformer, world: World) -> None:
        self.model, self.world = model, world
        self.stage = Stage(model, world)
        self._commands: deque[Command] = deque()
        self._arriving: deque[tuple[Any, NDArray[np.float32], NDArray[np.float32]]] = deque()

    def _look(self) -> Command | None:
        """The next command. Receiving begins when a micro-batch is announced, lest the stage before has to wait."""
        while not (self._commands and isinstance(self._commands[-1], Close)):  # what follows is for the next to serve
            command = self.world.poll(0, COMMAND)
            if command is None:
                break
            self._commands.append(command)
            if isinstance(command, Step):
                size = sum(len(piece.ids) for piece in command.work) * self.model.args.dim
                buffer = self.stage.buffers.take(size)
                message = buffer[:size]
                self._arriving.append((self.world.receive_array(message, self.world.rank - 1), message, buffer))
        return self._commands.popleft() if self._commands else None

    def serve(self) -> object:
        """Follow commands until the last; returns its result."""
        while True:
            command = cast(Command, self.world.wait(self._look, 0))
            if isinstance(command, Step):
                self._step(command.work)
            elif isinstance(command, Join):
                self.stage.join(command)
            elif isinstance(command, Resume):
                self.stage.resume(command)
            elif isinstance(command, Restore):
                self.stage.restore(command)
            elif isinstance(command, Export):
                self.world.send(self.stage.cache.export(command.row, command.ids), 0, REPLY)
            elif isinstance(command, Leave):
                self.stage.leave(command.row)
            elif isinstance(command, Open):
                self.stage = Stage(self.model, self.world)
                self.world.send(Room(self.world.host, self.model.layers, available_memory()), 0, REPLY)
            else:
                return command.result

    def _step(self, work: Sequence[Work]) -> None:
        request, message, buffer = self._arriving.popleft()
        self.world.wait(lambda: request.Test() or None, self.world.rank - 1)
        x = self.model.ops.tensor(message.reshape(-1, self.model.args.dim))
        x = self.stage.run_layers(work, x)
        if self.model.is_last:
            self.world.send(self.stage.choose(work, x), 0, REPLY)
        else:
            self.stage.pass_on(x)
        self.stage.buffers.give(buffer)
