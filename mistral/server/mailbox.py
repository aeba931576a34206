"""The way from the engine's thread to the event loop: one wake-up for all events that have come."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from mistral.engine.requests import Event, Generated

PAUSE_SECONDS = 0.01  # between two times that events are handed out, so that quick steps do not wait for the loop

Queue = asyncio.Queue[tuple[int, Event] | None]  # None wakes whoever waits, and tells of nothing


class Mailbox:
    """Events that one thread puts, and the loop hands to whom they are for."""

    def __init__(self) -> None:
        """In a running loop."""
        self._loop, self._waiting = asyncio.get_running_loop(), deque[tuple[Queue, int, Event]]()
        self._woken = self._hurried = False
        self._handed_out = -PAUSE_SECONDS

    def put(self, queue: Queue, place: int, event: Event) -> None:
        """Put an event with its answer's place into a queue of the loop; nothing once the loop is closed.

        The first event of an answer and its last are handed out at once, and all others with them.
        """
        self._waiting.append((queue, place, event))
        if self._hurried:
            return
        self._hurried = not isinstance(event, Generated) or event.finish_reason is not None
        if self._hurried or not self._woken:
            self._woken = True
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._hand_out if self._hurried else self._wake)

    def _wake(self) -> None:
        """Events have come: hand them out, or where that was a moment ago, with those that come meanwhile."""
        pause = self._handed_out + PAUSE_SECONDS - self._loop.time()
        if pause > 0:
            self._loop.call_later(pause, self._hand_out)
        else:
            self._hand_out()

    def _hand_out(self) -> None:
        self._woken = self._hurried = False  # first: whoever puts from now on wakes the loop again
        self._handed_out = self._loop.time()
        while self._waiting:
            queue, place, event = self._waiting.popleft()
            queue.put_nowait((place, event))
