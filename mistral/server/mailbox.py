"""The way from the engine's thread to the event loop: one wake-up for all events that have come."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from mistral.engine.requests import Event, Generated

LEAST, MOST = 0.005, 0.05  # seconds for which events are gathered before they are handed out again
SHARE = 16  # so many times as long as it took to tell of the last ones, between the two


class Inbox:
    """Events for one request, each with its answer's place."""

    def __init__(self) -> None:
        """In a running loop."""
        self._loop, self._events = asyncio.get_running_loop(), list[tuple[int, Event]]()
        self._waiting: asyncio.Future[None] | None = None
        self.patience = 0  # events that may gather before whoever waits is told, unless one of them ends an answer

    def put(self, place: int, event: Event) -> None:
        """Put one more event."""
        self._events.append((place, event))
        if len(self._events) > self.patience or hurries(event):
            self._wake()

    async def take(self, seconds: float) -> list[tuple[int, Event]]:
        """All that has come, as soon as there is something; nothing where that takes longer than so many seconds."""
        if len(self._events) <= self.patience and not any(hurries(event) for _, event in self._events):
            self._waiting = self._loop.create_future()
            alarm = self._loop.call_later(seconds, self._wake)
            try:
                await self._waiting
            finally:
                self._waiting = None
                alarm.cancel()
        found, self._events = self._events, []
        return found

    def _wake(self) -> None:
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(None)


class Mailbox:
    """Events that one thread puts, and the loop hands to whom they are for."""

    def __init__(self) -> None:
        """In a running loop."""
        self._loop, self._waiting = asyncio.get_running_loop(), deque[tuple[Inbox, int, Event]]()
        self._woken = False  # whether the loop will look
        self._hurried = False  # whether it has been told to do so at once
        self._due = False  # whether something is to be handed out that somebody waits for
        self._timer: asyncio.TimerHandle | None = None  # when it looks again by itself

    def put(self, inbox: Inbox, place: int, event: Event) -> None:
        """Put an event into an inbox of the loop; nothing once the loop is closed.

        The first event of an answer and its last are handed out at once, and all others with them. Others wait until
        the loop looks by itself: to wake it is a system call, in which another thread may take the interpreter.
        """
        self._waiting.append((inbox, place, event))
        if self._hurried:
            return
        self._hurried = hurries(event)
        self._due |= self._hurried or len(self._waiting) > inbox.patience  # before it is asked whether anyone will look
        if self._hurried or (self._due and not self._woken):
            self._woken = True
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._hand_out if self._hurried else self._wake)

    def _wake(self) -> None:
        """Events have come while nobody was looking."""
        if not self._hurried:
            self._hand_out()

    def _look(self) -> None:
        """Hand out what is due since the last time; where nothing is, whoever puts something is to say so."""
        self._timer = None
        if not self._due:
            self._woken = False  # and only then look again: it may have been put between the two
        if self._due:
            self._hand_out()

    def _hand_out(self) -> None:
        if self._timer:
            self._timer.cancel()
        # first: who hurries from now on wakes the loop again
        self._woken, self._hurried, self._due = True, False, False
        begun = self._loop.time()
        while self._waiting:
            inbox, place, event = self._waiting.popleft()
            inbox.put(place, event)
        # after those who wait for them, and what they send
        self._loop.call_soon(self._loop.call_soon, self._told, begun)

    def _told(self, begun: float) -> None:
        """Look again a little later, the later the longer it took to tell of these."""
        now = self._loop.time()
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_at(now + min(MOST, LEAST + SHARE * (now - begun)), self._look)


def hurries(event: Event) -> bool:
    """Whether an event is the first of an answer or its last."""
    return not isinstance(event, Generated) or event.finish_reason is not None
