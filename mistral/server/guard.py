"""Checks of every request: Host, Origin and API key; and a line in the log when it is done."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from traceback import extract_tb
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mistral.server.api_error import ApiError
from mistral.server.auth import ApiKeys
from mistral.server.log import Log
from mistral.server.metrics import Metrics
from mistral.server.settings import MAX_HEADERS, ServerSettings, is_loopback

OPEN = ("/", "/health", "/v1/health")  # paths that need no key
ABSOLUTE = re.compile(rb"https?://([^/]*)(/.*)?", re.IGNORECASE | re.DOTALL)  # a target before its "?"
UNKNOWN = "other"  # what metrics call a path that is none of the server's


class Guard:
    """The application, wrapped in checks of every request."""

    def __init__(
        self, app: ASGIApp, settings: ServerSettings, metrics: Metrics, log: Log, paths: Sequence[str]
    ) -> None:
        """`paths`: those of the application, as metrics name them."""
        self.app, self.settings, self.metrics, self.log = app, settings, metrics, log
        self.keys, self.paths = ApiKeys(settings.api_keys), frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        started, status = time.perf_counter(), 0
        state = scope.setdefault("state", {})

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-content-type-options"] = "nosniff"
                headers.setdefault("cache-control", "no-store")
                if "id" in state:
                    headers["x-request-id"] = headers["request-id"] = state["id"]  # OpenAI's name and Anthropic's
            await send(message)

        try:
            try:
                to_origin_form(scope)
                headers = Headers(scope=scope)
                self._check_headers(scope, headers)
                if scope["path"] not in OPEN:
                    state["key"] = self.keys.name_of(headers)
            except ApiError as error:
                await JSONResponse(error.envelope(scope["path"]), error.status, error.headers)(scope, receive, sent)
            else:
                await self.app(scope, receive, sent)
        except Exception as error:  # it has been answered with 500; texts may be in its message, so that is not shown
            places = [f"{Path(each.filename).name}:{each.lineno}" for each in extract_tb(error.__traceback__)[-4:]]
            self.log.say(f"fault: {type(error).__name__} at {' '.join(places)}")
        finally:
            self._note(scope, 0 if state.get("gone") else status, time.perf_counter() - started)

    def _check_headers(self, scope: Scope, headers: Headers) -> None:
        """Check the Host header: on loopback, DNS rebinding could let a page of another site reach the server."""
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADERS:
            raise ApiError(431, f"the headers are larger than {MAX_HEADERS >> 10} kB")
        host = hostname(f"//{headers.get('host', '')}")
        if self.settings.is_loopback and not (is_loopback(host) or host == self.settings.host):
            what = "names another machine" if "host" in headers else "is missing"
            where = "address of the request" if scope["state"].get("absolute") else "Host header"
            raise ApiError(403, f"the {where} {what}; call the server as localhost")
        crossed = headers.get("sec-fetch-site", "") == "cross-site" and scope["method"] not in ("GET", "HEAD")
        allowed = "*" in self.settings.cors or headers.get("origin") in self.settings.cors
        if crossed and not allowed:
            raise ApiError(403, "a page of another site may not call this server")

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path, state = scope["path"], scope["state"]
        shown = str(status) if status else "gone"
        self.metrics.requests.labels(path if path in self.paths else UNKNOWN, shown).inc()
        if path in ("/health", "/metrics") and status == 200:
            return
        client = (scope.get("client") or ("-",))[0]
        parts = [client, scope["method"], path[:200], shown, f"{seconds:.3f} s"]
        parts += [str(state[name]) for name in ("key", "tokens", "id") if state.get(name)]
        self.log.say(" ".join(parts))


def to_origin_form(scope: Scope) -> None:
    """Make of `GET http://host/path`, as a proxy is asked, `GET /path` with this host in place of the Host header.

    Every server must take both (RFC 9112, 3.2.2). Raises ApiError for a host with a user's name, which is none of HTTP.
    """
    found = ABSOLUTE.fullmatch(scope["raw_path"])
    if not found:
        return
    authority, path = found[1], found[2] or b"/"
    scope["path"], scope["raw_path"] = unquote(path.decode("ascii")), path  # first: the log is to have no user's name
    if b"@" in authority or not hostname(f"//{authority.decode('ascii', 'replace')}"):
        raise ApiError(400, "the address of the request has no sound host")
    others = [(name, value) for name, value in scope["headers"] if name != b"host"]
    scope["headers"], scope["state"]["absolute"] = [(b"host", authority), *others], True


def hostname(url: str) -> str:
    """The host name or address of a URL, in lower case; "" if there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
