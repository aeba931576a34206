"""A client for benchmarks of servers: it notes when each piece of an answer came, and reads them once all have come.

It runs on the processor that the server needs, so it does nothing else while it is waiting.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

PATH = "/v1/completions"
SECONDS = 1800.0  # that an answer may take
END = b"\r\n0\r\n\r\n"  # of a response in chunks


@dataclass
class Answer:
    """What came of one request: `pieces` as they came, with times of `perf_counter`; all else once it is whole."""

    begun: float = 0.0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)

    @cached_property
    def _response(self) -> tuple[str, bytes]:
        head, _, body = b"".join(data for _, data in self.pieces).partition(b"\r\n\r\n")
        return head.decode().lower(), body

    @property
    def status(self) -> int:
        """The HTTP status; 0 where nothing has come."""
        return int(self._response[0].split(" ", 2)[1]) if self.pieces else 0

    @cached_property
    def _events(self) -> tuple[list[dict[str, Any]], list[float], int]:
        """The events of a stream, or a body as the only one; when each came; bytes after the response."""
        head, body = self._response
        if "transfer-encoding: chunked" not in head:
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
            return [json.loads(body[:length])], [self.pieces[-1][0]], len(body) - length
        text, ends, at = bytearray(), list[tuple[int, int]](), 0  # ends: of chunks, in the text and in the body
        while size := int(body[at : (line := body.index(b"\r\n", at))], 16):
            text += body[line + 2 : line + 2 + size]
            at = line + 4 + size
            ends.append((len(text), at))
        events, times, begins = list[dict[str, Any]](), list[float](), 0
        came = self._arrivals(len(head) + 4)
        for event in bytes(text).split(b"\n\n"):
            begins += len(event) + 2
            if event.startswith(b"data: {"):
                events.append(json.loads(event[6:]))
                place = next(end for length, end in ends if length >= begins)
                times.append(next(time for end, time in came if end >= place))
        return events, times, len(body) - at - 5

    def _arrivals(self, head: int) -> list[tuple[int, float]]:
        """Where in the body each piece ends, and when it came."""
        found, end = list[tuple[int, float]](), -head
        for came, data in self.pieces:
            end += len(data)
            found.append((end, came))
        return found

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of a stream, or the response as the only one."""
        return self._events[0]

    @property
    def times(self) -> list[float]:
        """When each event came."""
        return self._events[1]

    @property
    def extra(self) -> int:
        """Bytes that came after the response, which must be none."""
        return self._events[2]

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return "".join(event["choices"][0]["text"] for event in self.events if event.get("choices"))

    @property
    def ended(self) -> bool:
        """Whether one part, and no other, says why the answer ended."""
        return sum(bool(event.get("choices") and event["choices"][0]["finish_reason"]) for event in self.events) == 1

    @property
    def tokens(self) -> int:
        """New tokens, as the server counts them."""
        return next(int(event["usage"]["completion_tokens"]) for event in reversed(self.events) if event.get("usage"))

    @property
    def first_seconds(self) -> float:
        """From the request to the first part."""
        return self.times[0] - self.begun

    @property
    def seconds(self) -> float:
        """From the request to the last part."""
        return self.times[-1] - self.begun


class Connection(asyncio.Protocol):
    """One connection, on which requests follow each other."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._transport: asyncio.Transport | None = None
        self._answer, self._ready, self._left = Answer(), asyncio.Event(), -1
        self._tail = b""
        self._whole: asyncio.Future[None] | None = None

    async def post(
        self,
        body: Mapping[str, Any],
        path: str = PATH,
        ready: asyncio.Event | None = None,
        into: Answer | None = None,
    ) -> Answer:
        """The answer to a request; `ready` is set with its first event. Raises OSError where the server hangs up.

        into: where the answer is written, for whoever wants to look at its pieces meanwhile.
        """
        return await self.send(request(body, path), ready, into)

    async def send(self, data: bytes, ready: asyncio.Event | None = None, into: Answer | None = None) -> Answer:
        """As `post`, for a request that has been written out."""
        loop = asyncio.get_running_loop()
        if self._transport is None:
            self._transport, _ = await loop.create_connection(lambda: self, self._host, self._port)
        self._answer, self._ready = into or Answer(), ready or asyncio.Event()
        self._whole, self._left, self._tail = loop.create_future(), -1, b""
        answer = self._answer
        answer.begun = time.perf_counter()
        self._transport.write(data)
        async with asyncio.timeout(SECONDS):
            await self._whole
        return answer

    def data_received(self, data: bytes) -> None:
        """Note a piece, and whether it is the last."""
        self._answer.pieces.append((time.perf_counter(), data))
        if b"data: {" in data:
            self._ready.set()
        if self._left < 0:  # the headers, which come in one piece
            head, _, body = data.partition(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            self._left = int(length) if length else 1 << 62
            data = body
        self._left, self._tail = self._left - len(data), (self._tail + data)[-len(END) :]
        if (self._left <= 0 or self._tail == END) and self._whole and not self._whole.done():
            self._whole.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server has hung up, or this side."""
        self._transport = None
        if self._whole and not self._whole.done():
            self._whole.set_exception(exc or ConnectionResetError("the server has hung up"))

    async def get(self, path: str) -> str:
        """The text of a page, on a connection of its own."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        found = (await reader.read()).decode()
        writer.close()
        return found

    def close(self) -> None:
        """Hang up."""
        if self._transport:
            self._transport.close()


def request(body: Mapping[str, Any], path: str = PATH) -> bytes:
    """A request as it goes over the wire."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


async def at_once(url: str, bodies: Sequence[Mapping[str, Any]]) -> tuple[list[Answer], float]:
    """The answers to requests of as many clients that come at the same time, and the seconds until all are there.

    Connections are there before that, and have been used: clients keep them.
    """
    connections = [Connection(url) for _ in bodies]
    for connection in connections:
        await connection.post({"content": ""}, "/tokenize")
    requests = [request(body) for body in bodies]
    begun = time.perf_counter()
    answers = await asyncio.gather(*(each.send(data) for each, data in zip(connections, requests, strict=True)))
    seconds = time.perf_counter() - begun
    for connection in connections:
        connection.close()
    return answers, seconds


async def side_by_side(url: str, bodies: Sequence[Mapping[str, Any]], clients: int) -> list[Answer]:
    """The answers to all requests, in their order; each of the clients sends its next one when it has an answer."""
    found: list[Answer] = [Answer() for _ in bodies]
    places = iter(range(len(bodies)))

    async def client() -> None:
        connection = Connection(url)
        for place in places:
            found[place] = await connection.post(bodies[place])
        connection.close()

    await asyncio.gather(*(client() for _ in range(min(clients, len(bodies)))))
    return found
