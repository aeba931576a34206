"""Runs the server: its socket, signals, and a graceful shutdown that lets answers finish."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial

import uvicorn

from mistral.errors import InputError
from mistral.server.app import build_app
from mistral.server.front_door import FrontDoor
from mistral.server.protocol import TimedProtocol
from mistral.server.service import Service
from mistral.server.settings import MAX_HEADERS

BACKLOG = 2048  # connections that may wait to be taken
IDLE_SECONDS = 75  # that a connection is kept without a request
LAST_SECONDS = 2  # in which clients are told that their answers have ended
MOST_FILES = 65536  # connections and files that may be open
SWITCH_SECONDS = 0.001  # that a thread computes in Python while another waits: nobody waits long among many
GARBAGE = 10_000  # objects that come before it is looked for cycles: a step of many rows makes hundreds, and none
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def bound(host: str, port: int) -> socket.socket:
    """A socket bound to an address, not yet listening. Raises InputError if it cannot be bound."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"no such address ({reason}); name one of this machine's", option="host", value=host) from None
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        option = ("host", host) if error.errno != 98 else ("port", port)
        raise InputError(
            f"cannot be used ({error.strerror}); name another", option=option[0], value=option[1]
        ) from None
    return sock


def address_of(sock: socket.socket) -> str:
    """The URL of a socket."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class DrainingServer(uvicorn.Server):
    """Shuts down in steps: no new requests, then time for open answers to finish, then their cancellation."""

    def __init__(self, service: Service, ready: Callable[[], None]) -> None:
        """`ready` is called once requests are accepted."""
        self.service, self._ready, self._doors = service, ready, list[FrontDoor]()
        self._taking: asyncio.Future[None] | None = None
        service.log.take_over("uvicorn.error", "asyncio")
        drain = service.settings.drain_seconds
        super().__init__(
            uvicorn.Config(
                build_app(service), http=TimedProtocol, ws="none", loop="asyncio", lifespan="off", log_config=None,
                access_log=False, proxy_headers=False, server_header=False, backlog=BACKLOG,
                timeout_keep_alive=IDLE_SECONDS, h11_max_incomplete_event_size=MAX_HEADERS,
                timeout_graceful_shutdown=int(drain) + 1 + LAST_SECONDS,
            )
        )  # fmt: skip

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept requests through a doorman, or directly if no process can be started."""
        await super().startup([])
        for sock in sockets or ():
            sock.listen(BACKLOG)
            door = FrontDoor(self.service, self._protocol, partial(self._without_door, sock))
            self._doors.append(door)
            try:
                door.open(sock)
            except OSError:
                door.close()
                self._without_door(sock)
        self._ready()

    def _protocol(self) -> asyncio.Protocol:
        """The HTTP protocol of one connection, made as in uvicorn."""
        return TimedProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def _without_door(self, sock: socket.socket) -> None:
        """Accept connections directly."""
        self.service.log.say("connections are taken without a doorman: /health may have to wait")
        self._taking = asyncio.ensure_future(self._listen(sock))

    async def _listen(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        if not self.should_exit:
            self.servers.append(await loop.create_server(self._protocol, sock=sock, backlog=BACKLOG))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more requests, wait for answers, and cancel them when the time is up."""
        self.service.draining = True
        for door in self._doors:
            door.close()
        drain = asyncio.ensure_future(self._drain())
        try:
            await super().shutdown(sockets)
        finally:
            drain.cancel()
            await self.service.close()

    async def _drain(self) -> None:
        """When the time is up, or at a second signal, cancel the remaining answers."""
        waited = 0.0
        while waited < self.service.settings.drain_seconds and not self.force_exit:
            await asyncio.sleep(0.05)
            waited += 0.05
        await self.service.close()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C shut the server down in steps; a second one at once. Neither is passed on."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread, whose caller handles signals
            for each in SIGNALS:
                loop.add_signal_handler(each, self.end)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError, RuntimeError):
                for each in SIGNALS:
                    loop.remove_signal_handler(each)

    def end(self) -> None:
        """End the server; the second time at once."""
        self.force_exit = self.should_exit
        self.should_exit = True


def run(service: Service, sock: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until a signal arrives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MOST_FILES)), hard))
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # what is there now stays: nobody waits while it is looked through again
    gc.set_threshold(GARBAGE)
    asyncio.run(DrainingServer(service, ready).serve([sock]))
