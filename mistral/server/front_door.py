"""The server's side of the doorman, the process that accepts connections and always answers /health."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from mistral.server import doorman
from mistral.server.service import Service

AT_ONCE = 4  # connections that are accepted in one turn of the loop, so that other work continues
TELL_SECONDS = 0.1  # between two words to the doorman
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class FrontDoor:
    """The doorman of a listening socket, and the connections that it passes to the server."""

    def __init__(self, service: Service, protocol: Callable[[], asyncio.Protocol], lost: Callable[[], None]) -> None:
        """`protocol` makes the protocol of a connection; `lost` is called if the doorman dies. In a running loop."""
        self._service, self._protocol, self._lost = service, protocol, lost
        self._loop, self._taking = asyncio.get_running_loop(), set[asyncio.Task[None]]()
        self._channel, self._theirs = socket.socketpair()
        self._channel.setblocking(False)
        self._process: subprocess.Popen[bytes] | None = None
        self._telling: asyncio.Task[None] | None = None

    def open(self, listener: socket.socket) -> None:
        """Start the doorman at a listening socket. Raises OSError if no process can be started."""
        settings, numbers = self._service.settings, (listener.fileno(), self._theirs.fileno())
        hosts = ",".join((*LOOPBACK, settings.host.lower())) if settings.is_loopback else ""
        command = [sys.executable, "-I", "-S", str(Path(doorman.__file__)), *map(str, numbers), hosts]
        self._process = subprocess.Popen(command, pass_fds=numbers, stdin=subprocess.DEVNULL, start_new_session=True)
        self._theirs.close()
        self._loop.add_reader(self._channel, self._take)
        self._telling = self._loop.create_task(self._tell())

    def close(self) -> None:
        """End the doorman. May be called again."""
        if self._channel.fileno() < 0:
            return
        self._loop.remove_reader(self._channel)
        if self._telling:
            self._telling.cancel()
        self._channel.close()
        self._theirs.close()
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _take(self) -> None:
        """Accept connections that the doorman passes on, a few at once."""
        for _ in range(AT_ONCE):
            try:
                said, numbers, _, _ = socket.recv_fds(self._channel, 1, 1)
            except BlockingIOError:
                return
            except OSError:
                said, numbers = b"", []
            if not said:
                self.close()
                self._lost()
                return
            self._adopt(numbers)

    def _adopt(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            task = self._loop.create_task(self._connect(socket.socket(fileno=number)))
            self._taking.add(task)
            task.add_done_callback(self._taking.discard)

    async def _connect(self, sock: socket.socket) -> None:
        with suppress(OSError):  # it has been closed already
            sock.setblocking(False)
            await self._loop.connect_accepted_socket(self._protocol, sock)

    async def _tell(self) -> None:
        """Report the server's state regularly; without reports the doorman answers 503."""
        while True:
            service = self._service
            said = b"o" if service.alive else b"d" if service.draining else b"f"
            with suppress(OSError):
                self._channel.send(said)
            await asyncio.sleep(TELL_SECONDS)
