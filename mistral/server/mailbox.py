"""The way from the engine's thread to the event loop: one wake-up for all events that have come."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from mistral.engine.requests import Event, Generated

LEAST, MOST = 0.005, 0.05  # seconds for which events are gathered before they are handed out again
SHARE = 16  # so many times as long as it took to tell of the last ones, between the two


class Inbox:
    """Events for one request, each with its answer's place. One thread puts them, and the loop takes them."""

    def __init__(self) -> None:
        """In a running loop."""
        self._loop, self._events = asyncio.get_running_loop(), list[tuple[int, Event]]()
        self._waiting: asyncio.Future[None] | None = None
        self._hurried = False  # whether an event has come that is to be told at once
        self._told = False  # whether whoever takes need not wait
        self.patience = 0  # events that may gather before whoever waits is told, unless one of them ends an answer

    @property
    def due(self) -> bool:
        """Whether whoever waits is to be told."""
        return bool(self._events) and (self._hurried or len(self._events) > self.patience)

    def put(self, place: int, event: Event) -> bool:
        """Put one more event -> whether it is to be told at once."""
        self._events.append((place, event))
        hurried = hurries(event)
        if hurried:
            self._hurried = True
        return hurried

    async def take(self, seconds: float) -> list[tuple[int, Event]]:
        """All that has come, as soon as `wake` says so; nothing where that takes longer than so many seconds."""
        if not self._told:
            self._waiting = self._loop.create_future()
            alarm = self._loop.call_later(seconds, self._stop_waiting)
            try:
                await self._waiting
            finally:
                self._waiting = None
                alarm.cancel()
        if not self._told:
            return []
        self._hurried = self._told = False
        count = len(self._events)  # more may be put meanwhile: what has been counted is taken
        found = self._events[:count]
        del self._events[:count]
        return found

    def wake(self) -> None:
        """Tell whoever takes, if there is something to tell. In the loop."""
        if self.due:
            self._told = True
            self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(None)


class Mailbox:
    """Wakes the loop when one thread has put events into inboxes."""

    def __init__(self) -> None:
        """In a running loop."""
        self._loop, self._news = asyncio.get_running_loop(), set[Inbox]()
        self._woken = False  # whether the loop will look
        self._hurried = False  # whether it has been told to do so at once
        self._due = False  # whether something has come that somebody waits for
        self._timer: asyncio.TimerHandle | None = None  # when it looks again by itself

    def put(self, inbox: Inbox, place: int, event: Event) -> None:
        """Put an event into an inbox of the loop; nothing comes of it once the loop is closed.

        Of the first event of an answer and its last the loop is told at once, and of all others with them. Others wait
        until the loop looks by itself: to wake it is a system call, in which another thread may take the interpreter.
        """
        hurried = inbox.put(place, event)
        self._news.add(inbox)
        if self._hurried:
            return
        self._hurried = hurried
        self._due |= inbox.due  # before it is asked whether anyone will look
        if hurried or (self._due and not self._woken):
            self._woken = True
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._hand_out if hurried else self._wake)

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
        while self._news:
            self._news.pop().wake()
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
