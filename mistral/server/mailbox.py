"""The way from the engine's thread to the event loop: one wake-up for all events of a step."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import suppress

from mistral.engine.requests import Event

Queue = asyncio.Queue[tuple[int, Event]]


class Mailbox:
    """Events that any thread may put, and the loop hands to whom they are for."""

    def __init__(self) -> None:
        """In a running loop."""
        self._loop, self._lock = asyncio.get_running_loop(), threading.Lock()
        self._waiting, self._woken = deque[tuple[Queue, int, Event]](), False

    def put(self, queue: Queue, place: int, event: Event) -> None:
        """Put an event with its answer's place into a queue of the loop; nothing once the loop is closed."""
        with self._lock:
            self._waiting.append((queue, place, event))
            wake, self._woken = not self._woken, True
        if wake:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        with self._lock:
            waiting, self._waiting, self._woken = self._waiting, deque(), False
        for queue, place, event in waiting:
            queue.put_nowait((place, event))
