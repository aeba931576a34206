"""uvicorn's HTTP protocol with time limits for both sides, and gathered writes."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import sys
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mistral.server.api_error import ApiError
from mistral.server.settings import HEADER_SECONDS, MAX_HEADERS, SEND_SECONDS
from mistral.text import json_line


class TimedProtocol(H11Protocol):
    """Closes a connection that is too slow.

    Headers must arrive within `HEADER_SECONDS` (`body.py` limits the time of bodies), and a client must read what it is
    sent within `SEND_SECONDS`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit for the headers of a new connection."""
        super().connection_made(GatheredWrites(transport, self.loop))
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Process received bytes; a request that has started must arrive completely."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of a connection."""
        self._unwatch()
        self._taken()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the time limit for sending: the client is not reading fast enough."""
        super().pause_writing()
        if self._sending is None:
            self._sending = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the time limit for sending."""
        self._taken()
        super().resume_writing()

    def _taken(self) -> None:
        if self._sending:
            self._sending.cancel()
        self._sending = None

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP, or headers that are too large, in the format of other errors; then close."""
        found = sys.exception()
        status = HTTPStatus(found.error_status_hint if isinstance(found, h11.RemoteProtocolError) else 400)
        what = "this is no sound HTTP request"
        if status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            what = f"the headers are larger than {MAX_HEADERS >> 10} kB"
        body = json_line(ApiError(status, what).envelope("")).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        head = h11.Response(status_code=status, headers=headers, reason=status.phrase)
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

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


AT_ONCE = 1 << 16  # bytes that are sent without a word to other threads: it takes less time than to be let in again
_send = ctypes.PyDLL(None).send
_send.argtypes, _send.restype = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_ssize_t


def sent(sock: socket.socket, data: bytes) -> int:
    """Send what a socket takes without waiting -> how many bytes that were; 0 where it takes none, or has failed.

    As `socket.send`, but that this gives the interpreter away for as long as the system takes, and a thread that
    computes takes it for a millisecond: a loop that writes to many clients would wait for it as often.
    """
    return max(0, int(_send(sock.fileno(), data, len(data), socket.MSG_DONTWAIT)))


class GatheredWrites(asyncio.Transport):
    """A transport that writes once in each turn of the loop: a system call costs more than what is written by it."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport, self._loop, self._parts = transport, loop, list[bytes]()
        self._socket: socket.socket = transport.get_extra_info("socket")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write when the loop has its next turn."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(bytes(data))

    def _flush(self) -> None:
        data, self._parts = b"".join(self._parts), []
        if data and len(data) <= AT_ONCE and self._sends_now():
            data = data[sent(self._socket, data) :]
        if data:
            self._transport.write(data)

    def _sends_now(self) -> bool:
        """Whether nothing waits to be sent before what comes now."""
        return not self._transport.is_closing() and not self._transport.get_write_buffer_size()

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
