"""The body of a request, read with limits of size and time, and parsed."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request

from mistral.errors import one_line
from mistral.server.api_error import ApiError
from mistral.server.fields import Fields
from mistral.server.settings import BODY_SECONDS, MAX_BODY
from mistral.text import parse_json

SMALL = 32 << 10  # bytes that are parsed at once, without a thread
MOST_DRAINED = 64 << 20  # bytes of a body too large that are read away, so that its sender hears why
TOO_LARGE = f"the body is larger than {MAX_BODY >> 20} MiB"


async def read_fields(request: Request) -> Fields:
    """The JSON object in a request's body. Raises ApiError if it is not one, or exceeds a limit."""
    data = await read_body(request)
    value = _parsed(data) if len(data) <= SMALL else await asyncio.to_thread(_parsed, data)
    return Fields(value, size=len(data))


async def read_body(request: Request) -> bytes:
    """The bytes of a body. Raises ApiError for one that is too large, too slow, or compressed."""
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", ""):
        raise ApiError(415, f"a body with content-encoding {coding[:40]!r} is not read; send it as it is")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _all_of(request)
    except TimeoutError:
        raise ApiError(408, f"the body has not come within {BODY_SECONDS:g} seconds") from None


async def _all_of(request: Request) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MOST_DRAINED:
        raise ApiError(413, TOO_LARGE)
    body, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size <= MAX_BODY:
            body += part
        elif size > MOST_DRAINED:
            break
    if size > MAX_BODY:
        raise ApiError(413, TOO_LARGE)
    return bytes(body)


def _parsed(data: bytes) -> Any:
    try:
        return parse_json(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 at byte {error.start}") from None
    except ValueError as error:
        raise ApiError(400, f"the body cannot be read as JSON ({one_line(error)})") from None
