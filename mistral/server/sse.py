"""Server-sent events: frames that are whole, to a client who may go or stop reading at any time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mistral.server.api_error import ApiError
from mistral.text import json_line

T = TypeVar("T")
COMMENT, DONE = b": \n\n", b"data: [DONE]\n\n"


async def told(pieces: AsyncGenerator[Sequence[T]], frames_of: Callable[[T], Iterable[bytes]]) -> AsyncGenerator[bytes]:
    """The frames of pieces as they come, of those that come together in one; a comment where none come for a while."""
    async for found in pieces:
        yield b"".join(part for piece in found for part in frames_of(piece)) if found else COMMENT


class ClientGoneError(Exception):
    """Nobody is left to hear the answer."""


def frame(value: object, event: str | None = None) -> bytes:
    """One event: a JSON value in one line, which holds whole characters only; `event`: its name, where it has one."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json_line(value)}\n\n".encode()


class Chunks:
    """Frames that differ in one item of a list alone, of an object whose other fields come before and after it."""

    def __init__(self, before: Mapping[str, object], name: str, after: Mapping[str, object]) -> None:
        """`name`: the field with the list."""
        self._before = f"data: {json_line({**before, name: []})[:-2]}"
        self._after = f"]{', ' if after else ''}{json_line(after)[1:]}\n\n"

    def frame(self, item: object) -> bytes:
        """As `frame` of the whole object."""
        return f"{self._before}{json_line(item)}{self._after}".encode()


async def gone(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What comes of `work`, which is cancelled when the client goes. Raises ClientGoneError then."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await each


class EventStream(Response):
    """A response of events. What makes them is closed when the client goes: by itself, or as `protocol.py` has it."""

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes],
        on_error: Callable[[ApiError], bytes],
        held: AsyncExitStack,
    ) -> None:
        """`on_error`: the frame that tells of an error which comes after the first frame; `held`: closed at the end."""
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.frames, self.on_error, self.held = frames, on_error, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all frames."""
        try:
            await while_connected(receive, self._send(send))
        except ClientGoneError:
            scope["state"]["gone"] = True
        finally:
            await self.frames.aclose()
            await self.held.aclose()

    async def _send(self, send: Send) -> None:
        head = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        async for part in self._parts():
            if head:  # with the first frame: what is sent apart wakes the client once more
                await send(head)
                head = {}
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _parts(self) -> AsyncGenerator[bytes]:
        """The frames, of which there is at least one, up to an error."""
        try:
            async for part in self.frames:
                yield part
        except ApiError as error:
            yield self.on_error(error)
