"""A separate process that accepts connections: it answers /health itself, and passes all others to the server.

The server runs it as `python -I -S doorman.py LISTENER CHANNEL HOSTS`: two sockets by their numbers, and the names,
with commas between, that a Host header may have; none: any. A connection is passed to the server with its first request
that is not a plain GET of /health. The channel carries connections to the server, and from it a letter of `SAID` (its
state) at least every second. The process ends when the channel is closed. It needs no library, and imports nothing of
the project.
"""

from __future__ import annotations

import re
import select
import signal
import socket
import sys
import time
from contextlib import suppress

SAID = {b"o": (200, "ok"), b"d": (503, "draining"), b"f": (503, "failed")}
STUCK = 503, "stuck"  # where the server has said nothing for a while
STUCK_SECONDS = 10.0
FIRST_SECONDS, NEXT_SECONDS = 15.0, 75.0  # that a connection has for its first request, and for each that follows
MOST = 4096  # bytes of a request that is answered here
AT_ONCE = 64  # connections that are taken one after the other
READ = select.EPOLLIN | select.EPOLLRDHUP
REQUEST = re.compile(rb"GET /health HTTP/1\.1\r\n((?:[!-9;-~]+:[\t -~]*\r\n)*)\r\n")
PLAIN = frozenset((b"accept", b"accept-encoding", b"accept-language", b"connection", b"host", b"user-agent"))
PORT = re.compile(r":\d+$")


class Doorman:
    """Accepts connections at a listening socket."""

    def __init__(self, listener: socket.socket, channel: socket.socket, hosts: frozenset[str]) -> None:
        self.listener, self.channel, self.hosts = listener, channel, hosts
        self.poll, self.open = select.epoll(), dict[int, tuple[socket.socket, float]]()
        self.held = list[socket.socket]()  # for the server, which has not taken those before
        self.said, self.heard, self.ended = b"o", time.monotonic(), False
        for sock in (listener, channel):
            sock.setblocking(False)
            self.poll.register(sock, select.EPOLLIN)

    def run(self) -> None:
        """Serve until the channel is closed."""
        while not self.ended:
            for number, _ in self.poll.poll(1.0):
                if number == self.channel.fileno():
                    self._listen()
                elif number == self.listener.fileno():
                    self._accept()
                elif number in self.open:
                    self._look(self.open[number][0])
            self._pass_on()
            self._tidy()

    def _listen(self) -> None:
        """Read the server's state from the channel."""
        said = b""
        with suppress(BlockingIOError):
            said = self.channel.recv(MOST)
            self.ended = not said
        if said:
            self.said, self.heard = said[-1:], time.monotonic()

    def _accept(self) -> None:
        try:
            for _ in range(AT_ONCE):
                sock, _ = self.listener.accept()
                sock.setblocking(False)
                self.open[sock.fileno()] = sock, time.monotonic() + FIRST_SECONDS
                self.poll.register(sock, READ)
        except BlockingIOError:
            pass
        except OSError:  # no more files may be open: others have to end first
            time.sleep(0.01)

    def _look(self, sock: socket.socket) -> None:
        """Answer a request, or pass its connection to the server."""
        try:
            seen = sock.recv(MOST, socket.MSG_PEEK)
            if not seen:
                return self._close(sock)
            length = plain(seen, self.hosts)
            if not length:
                self._forget(sock)
                self.held.append(sock)
                return None
            sock.recv(length)
            status = SAID.get(self.said, STUCK) if time.monotonic() < self.heard + STUCK_SECONDS else STUCK
            answer = response(*status)
            if sock.send(answer) < len(answer) or b"close" in seen[:length].lower():
                return self._close(sock)
            self.open[sock.fileno()] = sock, time.monotonic() + NEXT_SECONDS
        except BlockingIOError:
            pass
        except OSError:
            self._close(sock)

    def _forget(self, sock: socket.socket) -> None:
        self.poll.unregister(sock)
        del self.open[sock.fileno()]

    def _close(self, sock: socket.socket) -> None:
        self._forget(sock)
        sock.close()

    def _pass_on(self) -> None:
        """Pass connections to the server, as many as the channel accepts."""
        sent = 0
        with suppress(OSError):  # a channel that is full, or has ended, which is found out by reading it
            for sock in self.held:
                socket.send_fds(self.channel, [b"c"], [sock.fileno()])
                sock.close()
                sent += 1
        del self.held[:sent]
        self.poll.modify(self.channel, select.EPOLLIN | (select.EPOLLOUT if self.held else 0))

    def _tidy(self) -> None:
        """Close connections whose request has not arrived in time."""
        now = time.monotonic()
        for sock, deadline in list(self.open.values()):
            if deadline < now:
                self._close(sock)


def plain(seen: bytes, hosts: frozenset[str]) -> int:
    """The length of a complete, plain GET of /health; 0 for any other request."""
    found = REQUEST.match(seen)
    if not found:
        return 0
    fields = [line.partition(b":") for line in found[1].split(b"\r\n") if line]
    names = [name.lower() for name, _, _ in fields]
    if names.count(b"host") != 1 or not PLAIN.issuperset(names):
        return 0
    host = PORT.sub("", fields[names.index(b"host")][2].decode().strip().lower())
    return found.end() if not hosts or host in hosts else 0


def response(status: int, word: str) -> bytes:
    """The response of /health, the same as the server's own."""
    body = f'{{"status":"{word}"}}'
    line = "200 OK" if status == 200 else "503 Service Unavailable"
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    head = [
        f"HTTP/1.1 {line}", f"date: {date}", f"content-length: {len(body)}", "content-type: application/json",
        "x-content-type-options: nosniff", "cache-control: no-store",
    ]  # fmt: skip
    return ("\r\n".join(head) + "\r\n\r\n" + body).encode()


def main() -> None:
    """Serve until the channel is closed; signals are handled by the server."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    listener, channel = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    with suppress(ConnectionError):  # the server has gone
        Doorman(listener, channel, frozenset(filter(None, sys.argv[3].split(",")))).run()


if __name__ == "__main__":
    main()
