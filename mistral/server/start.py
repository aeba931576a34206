"""When an engine that has nothing to do begins: once the requests that come together are all there."""

from __future__ import annotations

import asyncio

from mistral.engine.engine_thread import EngineThread

QUIET_TURNS = 3  # of the loop without a request, after which those that came together are taken to be there
GATHERING_SECONDS = 0.01  # that the first of them waits for the others, at most


class Start:
    """Tells an engine's thread to begin.

    At the first request it would read that one alone, and take the interpreter from the loop that reads the others.
    """

    def __init__(self, thread: EngineThread) -> None:
        self._thread, self._count, self._since = thread, 0, 0.0

    def soon(self) -> None:
        """A request has been submitted. In the loop."""
        self._count += 1
        if not self._since:
            self._since = asyncio.get_running_loop().time()
            self._look(self._count, QUIET_TURNS)

    def _look(self, count: int, turns: int) -> None:
        """Begin once no request has come in so many turns of the loop, or some time has passed."""
        loop = asyncio.get_running_loop()
        if count != self._count:
            turns = QUIET_TURNS
        if turns and loop.time() < self._since + GATHERING_SECONDS:
            loop.call_soon(self._look, self._count, turns - 1)
            return
        self._since = 0.0
        self._thread.begin()
