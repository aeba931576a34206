"""The chat page: one file, with a content security policy that forbids loading anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

PAGE = Path(__file__).parent / "page" / "index.html"
INLINE = {
    "script-src": re.compile(rb"<script[^>]*>(.*?)</script>", re.DOTALL),
    "style-src": re.compile(rb"<style[^>]*>(.*?)</style>", re.DOTALL),
}


@cache
def page_and_policy() -> tuple[bytes, str]:
    """The page and its content security policy, which allows only its own contents and calls of this server."""
    page = PAGE.read_bytes()
    parts = ["default-src 'none'", "connect-src 'self'", "img-src 'self' data: blob:", "base-uri 'none'",
             "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"]  # fmt: skip
    for name, pattern in INLINE.items():
        hashes = " ".join(_hash(text) for text in pattern.findall(page)) or "'none'"
        parts.append(f"{name} {hashes}")
    return page, "; ".join(parts)


def _hash(text: bytes) -> str:
    digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
    return f"'sha256-{digest}'"


async def page(request: Request) -> Response:
    """The page."""
    content, policy = page_and_policy()
    headers = {
        "content-security-policy": policy, "referrer-policy": "no-referrer", "x-frame-options": "DENY",
        "cache-control": "no-cache",
    }  # fmt: skip
    return HTMLResponse(content, headers=headers)
