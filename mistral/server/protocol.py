"""uvicorn's HTTP protocol with a limit of time for headers, and one write for all that is sent at once."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mistral.server.settings import HEADER_SECONDS


class TimedProtocol(H11Protocol):
    """Closes a connection whose request does not come within `HEADER_SECONDS`. The time of bodies is `body.py`'s."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection: its request is to come now."""
        super().connection_made(GatheredWrites(transport, self.loop))
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes; a request that has begun is to come whole."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of a connection."""
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _unwatch(self) -> None:
        if self._deadline:
            self._deadline.cancel()
        self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


class GatheredWrites(asyncio.Transport):
    """A transport that writes once in each turn of the loop: a system call costs more than what is written by it."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport, self._loop, self._parts = transport, loop, list[bytes]()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write when the loop has its next turn."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(bytes(data))

    def _flush(self) -> None:
        data, self._parts = b"".join(self._parts), []
        if data:
            self._transport.write(data)

    def close(self) -> None:
        """Close once all has been written."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether it is closed, or will be."""
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: object = None) -> object:
        """What is known of the connection."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Take nothing more for now."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take what comes."""
        self._transport.resume_reading()
