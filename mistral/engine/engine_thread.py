"""The one thread that owns an engine: it takes requests from any thread and passes events to their receivers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from mistral.engine.figures import Figures
from mistral.engine.requests import Event, Generated, Request
from mistral.engine.scheduler import Handle, Scheduler
from mistral.errors import InputError, one_line

Receiver = Callable[[Event], None]


class EngineThread:
    """Runs the steps of a scheduler, while there are requests, in a thread of its own.

    A receiver is called in that thread with each event of its request; it must return at once and not raise.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._changed = threading.Condition()
        self._receivers: dict[int, Receiver] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether the thread takes no more requests."""
        return self._closed

    @property
    def figures(self) -> Figures:
        """The scheduler's figures, without waiting for a step."""
        return self._scheduler.figures

    def submit(
        self,
        request: Request,
        receiver: Receiver,
        name: str = "the prompt",
        key: str = "",
        space: str | None = None,
        begin: bool = True,
    ) -> Handle:
        """Add a request. See `Scheduler.submit` for `name`, `key` and `space`; the default `space` is the key.

        begin: whether an idle engine starts at once; otherwise it waits for a call of `begin`, so that several requests
        start together. Raises InputError, with the prompt's `name`, for one that cannot be served.
        """
        with self._changed:
            if self._closed:
                raise InputError("the engine is closed; open the model again")
            handle = self._scheduler.submit(request, name, key, space)
            self._receivers[handle.index] = receiver
            if begin:
                self._changed.notify()
        return handle

    def begin(self) -> None:
        """Start the submitted requests, if the engine is idle."""
        with self._changed:
            self._changed.notify()

    def cancel(self, handle: Handle) -> None:
        """End a request within one step; its last event is "cancelled". Has no effect on an ended request."""
        with self._changed:
            if handle.index in self._receivers:
                self._scheduler.cancel(handle)
                self._changed.notify()

    def close(self) -> None:
        """End all requests, with finish_reason "cancelled", and the thread. May be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while self._has_work():
            try:
                events = self._scheduler.step()
            except Exception as error:  # whatever it is, every receiver must get a last event
                message = str(error) if isinstance(error, InputError) else f"the engine failed: {one_line(error)}"
                self._end_all(InputError(message))
                continue
            self._deliver(events)
        self._end_all(None)

    def _has_work(self) -> bool:
        """Wait for a request; False if the thread must end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._scheduler.idle)
            return not self._closed

    def _deliver(self, events: Sequence[Event]) -> None:
        receivers = list[Receiver]()
        with self._changed:
            for event in events:
                ends = isinstance(event, Generated) and event.finish_reason is not None
                receivers.append(self._receivers.pop(event.index) if ends else self._receivers[event.index])
        for receiver, event in zip(receivers, events, strict=True):
            receiver(event)

    def _end_all(self, error: InputError | None) -> None:
        """Release all rows, and send every request its last event: the error, or "cancelled"."""
        with self._changed:
            try:
                self._scheduler.close()
            except Exception:  # an engine that cannot release its rows is unusable
                self._closed = True
            ended, self._receivers = self._receivers, {}
        for index, receiver in ended.items():
            receiver(Generated(index, None, None, "", "error" if error else "cancelled", error=error))
