"""A client for benchmarks of servers: it takes little of the processor, and notes when each part of an answer came."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PATH = "/v1/completions"
SECONDS = 1800.0  # that an answer may take


@dataclass
class Answer:
    """What came of one request: times are of `perf_counter`; `events` are those of a stream, one for each of `times`.

    `extra`: bytes that came after the response, which must be none.
    """

    status: int = 0
    begun: float = 0.0
    times: list[float] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    extra: int = 0

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


class Connection:
    """One connection, on which requests follow each other."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(
        self,
        body: Mapping[str, Any],
        path: str = PATH,
        ready: asyncio.Event | None = None,
        into: Answer | None = None,
    ) -> Answer:
        """The answer to a request; `ready` is set with its first part. Raises OSError where the server hangs up.

        into: where the answer is written, for whoever wants to look at it meanwhile.
        """
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, limit=1 << 26)
        reader, writer = self._streams
        data, answer = json.dumps(body).encode(), into or Answer()
        answer.begun = time.perf_counter()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        async with asyncio.timeout(SECONDS):
            fields = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            answer.status = int(fields.split(" ", 2)[1])
            if "transfer-encoding: chunked" in fields:
                await self._chunks(reader, answer, ready)
            else:
                length = int(fields.partition("content-length: ")[2].partition("\r\n")[0])
                answer.events.append(json.loads(await reader.readexactly(length)))
                answer.times.append(time.perf_counter())
        answer.extra = len(reader._buffer)  # type: ignore[attr-defined]  # there is no other way to see it
        return answer

    async def _chunks(self, reader: asyncio.StreamReader, answer: Answer, ready: asyncio.Event | None) -> None:
        left = b""
        while size := int(await reader.readline(), 16):
            left += await reader.readexactly(size)
            await reader.readexactly(2)
            now = time.perf_counter()
            *events, left = left.split(b"\n\n")
            for event in events:
                if event.startswith(b"data: {"):
                    answer.events.append(json.loads(event[6:]))
                    answer.times.append(now)
                    if ready:
                        ready.set()
        await reader.readexactly(2)

    async def get(self, path: str) -> str:
        """The text of a page, on a connection of its own."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        found = (await reader.read()).decode()
        writer.close()
        return found

    def close(self) -> None:
        """Hang up."""
        if self._streams:
            self._streams[1].close()
            self._streams = None


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
