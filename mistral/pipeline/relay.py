"""Sends activations from one stage to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mistral.pipeline.world import World

if TYPE_CHECKING:
    from mindspore import Tensor

KEPT_BUFFERS = 8


class Buffers:
    """Reusable float32 arrays."""

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
        """Return an array for reuse; the largest few are kept."""
        self._free = sorted([*self._free, buffer], key=lambda each: -each.size)[:KEPT_BUFFERS]


class Arrival:
    """A message that is being received from the previous stage."""

    def __init__(self, world: World, buffer: NDArray[np.float32], size: int) -> None:
        self.world, self.buffer, self.values = world, buffer, buffer[:size]
        self.request: Any = world.receive_array(self.values, world.rank - 1)

    def wait(self) -> NDArray[np.float32]:
        """Wait for the message -> its elements."""
        self.world.wait(lambda: self.request.Test() or None, self.world.rank - 1)
        return self.values


class Relay:
    """The connection to the neighbouring stages: receives and sends float32 activations (T, D)."""

    def __init__(self, world: World) -> None:
        self.world, self.buffers = world, Buffers()

    def expect(self, size: int) -> Arrival:
        """Start receiving `size` elements, so that the previous stage need not wait."""
        return Arrival(self.world, self.buffers.take(size), size)

    def release(self, arrival: Arrival) -> None:
        """Return the buffer of a message whose elements are no longer needed."""
        self.buffers.give(arrival.buffer)

    def pass_on(self, x: Tensor) -> None:
        """Send x (T, D) to the next stage without waiting."""
        values = x.asnumpy()
        assert values.dtype == np.float32
        buffer = self.buffers.take(values.size)
        message = buffer[: values.size]
        np.copyto(message, values.reshape(-1))
        self.world.send_array(message, self.world.rank + 1, lambda: self.buffers.give(buffer))
        self.world.progress()
