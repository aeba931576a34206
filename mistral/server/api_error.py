"""Errors of requests, in the format of the interface that was called."""

from __future__ import annotations

from typing import Any

RETRY_SECONDS = 1  # until a place in the queue may be free
OPENAI_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error",
    429: "rate_limit_error", 500: "server_error", 501: "not_implemented_error", 503: "service_unavailable_error",
}  # fmt: skip
ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error",
    413: "request_too_large", 429: "rate_limit_error", 500: "api_error", 501: "api_error", 503: "overloaded_error",
}  # fmt: skip


class ApiError(Exception):
    """A request that cannot be served: an HTTP status, a message, and the field at fault if one is."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        """`retry_after`: seconds after which clients should repeat the request."""
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        found = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    def envelope(self, path: str) -> dict[str, Any]:
        """The body of the response, as the interface at `path` has it."""
        if path.startswith("/v1/messages"):
            kind = ANTHROPIC_TYPES.get(self.status, "invalid_request_error")
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        kind = OPENAI_TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def wrong(field: str, what: str) -> ApiError:
    """The error for an invalid field."""
    return ApiError(400, f"{field}: {what}", field)


def busy(what: str) -> ApiError:
    """The error for a queue that is full."""
    return ApiError(429, what, code="queue_full", retry_after=RETRY_SECONDS)


def unavailable(what: str) -> ApiError:
    """The error of a server that is shutting down or whose engine has failed."""
    return ApiError(503, what, code="unavailable", retry_after=RETRY_SECONDS)
