"""The settings and limits of a server."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from functools import lru_cache

from mistral.errors import InputError

MAX_BODY = 4 << 20  # bytes of a request's body
MAX_HEADERS = 64 << 10  # bytes of a request's headers
MAX_MESSAGES = 4096  # of a conversation
MAX_TOOLS = 256
MAX_STOPS, MAX_STOP = 64, 1000  # stop strings, and characters of one
MAX_CHOICES = 128  # answers to one prompt
MAX_TOP = 20  # likeliest tokens beside each token
HEADER_SECONDS = 15.0  # in which the headers of a request must have come
BODY_SECONDS = 30.0  # and its body
SEND_SECONDS = 60.0  # in which a client must take what it is sent
KEEP_ALIVE_SECONDS = 15.0  # without anything to say, after which a comment is sent


@dataclass(frozen=True)
class Defaults:
    """The defaults of answers. max_tokens None: to the end of the context."""

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a server.

    api_keys: callers need one of them, if there are any. cors: origins whose pages may call. max_rows: the most answers
    generated at once; max_queue: the most that wait. drain_seconds: the time for open answers after a signal.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    max_rows: int = 64
    max_queue: int = 1024
    log_prompts: bool = False
    drain_seconds: float = 30.0
    defaults: Defaults = field(default_factory=Defaults)

    def check(self) -> None:
        """Raise InputError for invalid settings."""
        if not 0 <= self.port <= 65535:
            raise InputError("must be from 0 to 65535; 0 takes a free one", option="port", value=self.port)
        if self.max_rows < 1:
            raise InputError("must be at least 1", option="max_rows", value=self.max_rows)
        if self.max_queue < 0:
            raise InputError("must be 0 or more", option="max_queue", value=self.max_queue)
        if not 0 <= self.drain_seconds <= 86400:
            raise InputError("must be from 0 to 86400 seconds", option="drain_seconds", value=self.drain_seconds)
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise InputError("a key must be letters, digits and signs of ASCII, without spaces", option="api_key")
        for origin in self.cors:
            if origin != "*" and "://" not in origin:
                raise InputError("must be an origin such as https://example.org, or *", option="cors", value=origin)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can call."""
        return is_loopback(self.host)


@lru_cache(maxsize=64)  # every request asks, and most of them the same
def is_loopback(host: str) -> bool:
    """Whether a host's name or address is that of the machine itself."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
