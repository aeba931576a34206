"""The way from the engine's thread to the event loop: events are told to a few of those they are for at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from mistral.engine.requests import Event, Generated

LEAST, MOST = 0.005, 0.05  # seconds for which events of one inbox are gathered before they are handed out again
SHARE = 32  # so many times as long as it took to tell of the last ones, between the two
AT_ONCE = 16  # inboxes that are told in one turn of the loop: no longer than the engine leaves the interpreter alone


class Inbox:
    """Events for one request, each with its answer's place. One thread puts them, and the loop takes them."""

    def __init__(self) -> None:
        """In a running loop."""
        self._loop, self._events = asyncio.get_running_loop(), list[tuple[int, Event]]()
        self._waiting: asyncio.Future[None] | None = None
        self._until = 0.0  # when whoever waits has waited long enough
        self._alarm: asyncio.TimerHandle | None = None  # at that time, or before it
        self._begun = set[int]()  # places whose answers have begun
        self._hurried = False  # whether an event has come that is to be told at once
        self._told = False  # whether whoever takes need not wait
        self.listed = False  # whether a mailbox will wake it
        self.patience = 0  # events that may gather before whoever waits is told, unless one of them ends an answer

    @property
    def due(self) -> bool:
        """Whether whoever waits is to be told."""
        return bool(self._events) and (self._hurried or len(self._events) > self.patience)

    def put(self, place: int, event: Event) -> bool:
        """Put one more event -> whether it is to be told at once, as the first token of an answer and its end are."""
        self._events.append((place, event))
        if not isinstance(event, Generated) or (event.finish_reason is None and place in self._begun):
            return False
        self._begun.add(place)
        self._hurried = True
        return True

    async def take(self, seconds: float) -> list[tuple[int, Event]]:
        """All that has come, as soon as `wake` says so; nothing where that takes longer than so many seconds."""
        if not self._told:
            self._waiting = self._loop.create_future()
            self._wait_until(self._loop.time() + seconds)
            try:
                await self._waiting
            finally:
                self._waiting = None
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

    def close(self) -> None:
        """Nobody takes any more. In the loop."""
        if self._alarm:
            self._alarm.cancel()
        self._alarm = None

    def _wait_until(self, when: float) -> None:
        """See that the alarm rings by then: it is one for many takes, since few of them wait so long."""
        self._until = when
        if self._alarm is None or self._alarm.when() > when:
            self.close()
            self._alarm = self._loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        if self._waiting and self._loop.time() < self._until:
            self._wait_until(self._until)
        else:
            self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(None)


class Mailbox:
    """Wakes the loop when one thread has put events into inboxes.

    Who has the first token of an answer or its end is told at once. Others are told a few at a time, each of them
    again after a while: to wake the loop is a system call, and while it tells, the engine has not the interpreter.
    """

    def __init__(self) -> None:
        """In a running loop."""
        self._loop = asyncio.get_running_loop()
        self._urgent, self._due = deque[Inbox](), deque[Inbox]()
        self._called = False  # whether the loop will look for urgent ones
        self._looks = False  # whether it will look for others, by itself or since it was told to
        self._timer: asyncio.TimerHandle | None = None  # when it looks by itself

    def put(self, inbox: Inbox, place: int, event: Event) -> None:
        """Put an event into an inbox of the loop; nothing comes of it once the loop is closed."""
        if inbox.put(place, event):
            self._urgent.append(inbox)
            if not self._called:
                self._called = True
                self._call(self._hurry)
        elif not inbox.listed and inbox.due:
            inbox.listed = True
            self._due.append(inbox)
            if not self._looks:
                self._looks = True
                self._call(self._look)

    def _call(self, what: Callable[[], None]) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(what)

    def _hurry(self) -> None:
        """Tell those who have the first token of an answer or its end."""
        self._called = False  # first: who hurries from now on calls again
        begun, count = self._loop.time(), len(self._urgent)
        while self._urgent:
            self._urgent.popleft().wake()
        if not self._looks:  # what follows a first token need not hurry
            self._looks = True
            self._afterwards(begun, count)

    def _look(self) -> None:
        """Tell some of the others; where there are none, whoever puts something is to say so."""
        if not self._due:
            self._looks = False  # and only then look again: it may have been put between the two
            if not self._due:
                return
            self._looks = True
        begun, count = self._loop.time(), min(AT_ONCE, len(self._due))
        for _ in range(count):
            inbox = self._due.popleft()
            inbox.listed = False  # before it is looked at: what comes later lists it again
            inbox.wake()
        self._afterwards(begun, count)

    def _afterwards(self, begun: float, count: int) -> None:
        """Look again, after those who were told have sent what they send."""
        self._loop.call_soon(self._loop.call_soon, self._told, begun, count)

    def _told(self, begun: float, count: int) -> None:
        """Look again the later, the longer it took to tell so many, and the sooner, the more have to be told in all."""
        now = self._loop.time()
        turns = max(1.0, len(self._due) / AT_ONCE)
        took = (now - begun) * min(1.0, AT_ONCE / max(1, count))
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_at(now + min(MOST, LEAST + SHARE * took * turns) / turns, self._look)
