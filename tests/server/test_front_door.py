"""The doorman: /health is answered whatever the server does, and everything else reaches the server."""

from __future__ import annotations

import socket
import threading
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from mistral.cli.model_options import shipped_checkpoint
from mistral.server.doorman import plain
from tests.support.local_server import PATIENCE, LocalServer, local_server

HEALTH = b"GET /health HTTP/1.1\r\n"
CLOSES = b"host: localhost\r\nconnection: close\r\n\r\n"
HOSTS = frozenset(("localhost", "127.0.0.1", "[::1]"))


def doorman() -> psutil.Process:
    """The newest one of this process."""
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    found = [child for child in alive if any("doorman.py" in part for part in child.cmdline())]
    return max(found, key=lambda process: process.create_time())


def test_health_is_told_while_the_loop_of_the_server_stands_still(server: LocalServer) -> None:
    server.answer("/v1/completions", prompt="a", max_tokens=1)
    mailbox = server.service._mailbox
    assert mailbox
    standing, release = threading.Event(), threading.Event()

    def stand() -> None:
        standing.set()
        release.wait(PATIENCE)

    with httpx.Client(base_url=server.url, timeout=PATIENCE) as kept:
        assert kept.get("/health").json() == {"status": "ok"}
        mailbox._loop.call_soon_threadsafe(stand)
        assert standing.wait(PATIENCE)
        try:
            assert kept.get("/health").json() == httpx.get(f"{server.url}/health").json() == {"status": "ok"}
            with pytest.raises(httpx.ReadTimeout):
                httpx.get(f"{server.url}/metrics", timeout=0.2)
        finally:
            release.set()
        assert kept.get("/metrics").status_code == kept.get("/health").status_code == 200


def test_the_doorman_and_the_server_say_the_same(server: LocalServer) -> None:
    """One connection has never asked for anything else, and one has."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as beside:
        beside.get("/metrics")
        by_server, by_doorman = beside.get("/health"), httpx.get(f"{server.url}/health")
    assert by_server.content == by_doorman.content and by_server.status_code == by_doorman.status_code == 200
    assert set(by_server.headers) == set(by_doorman.headers)
    assert all(by_server.headers[name] == by_doorman.headers[name] for name in by_server.headers if name != "date")


@pytest.mark.parametrize("parts", [
    (HEALTH + b"host: localhost\r\n\r\n" + HEALTH + CLOSES,),
    (HEALTH + b"host: localhost\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",),
    (b"GET /hea", b"lth HTTP/1.1\r\nhost: localhost\r\n\r\n" + HEALTH + CLOSES),
])  # fmt: skip
def test_requests_of_one_connection_are_answered_in_turn(server: LocalServer, parts: tuple[bytes, ...]) -> None:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), PATIENCE) as sock:
        for part in parts:
            sock.sendall(part)
        found = b"".join(iter(lambda: sock.recv(4096), b""))
    assert found.count(b"HTTP/1.1 200 OK\r\n") == 2 and found.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'{"status":"ok"}' in found and (b'"object":"list"' in found) == (b"models" in b"".join(parts))


def test_without_its_doorman_the_server_takes_connections_itself() -> None:
    with local_server(shipped_checkpoint(), "portable") as local:
        assert httpx.get(f"{local.url}/health").json() == {"status": "ok"}
        killed = doorman()
        killed.kill()
        killed.wait(PATIENCE)
        assert httpx.get(f"{local.url}/health", timeout=PATIENCE).json() == {"status": "ok"}
        assert httpx.get(f"{local.url}/v1/models", timeout=PATIENCE).status_code == 200


def test_the_doorman_ends_with_its_server() -> None:
    with local_server(shipped_checkpoint(), "portable"):
        started = doorman()
    assert not started.is_running()


@pytest.mark.parametrize(("fields", "hosts", "whole"), [
    (b"Host: localhost:8000\r\n", HOSTS, True),
    (b"Host: LOCALHOST\r\nAccept: */*\r\nUser-Agent: a\r\n", HOSTS, True),
    (b"Host: [::1]:1\r\n", HOSTS, True),
    (b"Host: example.org\r\n", HOSTS, False),
    (b"Host: example.org\r\n", frozenset[str](), True),
    (b"Host: localhost\r\nHost: localhost\r\n", HOSTS, False),
    (b"Accept: */*\r\n", HOSTS, False),
    (b"Host: localhost\r\nContent-Length: 5\r\n", HOSTS, False),
    (b"Host: localhost\r\nTransfer-Encoding: chunked\r\n", HOSTS, False),
    (b"Host: localhost\r\nOrigin: https://example.org\r\n", HOSTS, False),
    (b"Host: localhost\r\n folded\r\n", HOSTS, False),
    (b"Host: localh\xc3\xb6st\r\n", HOSTS, False),
    (b"Host : localhost\r\n", HOSTS, False),
])  # fmt: skip
def test_only_plain_requests_are_answered_at_the_door(fields: bytes, hosts: frozenset[str], whole: bool) -> None:
    request = HEALTH + fields + b"\r\n"
    assert plain(request + b"GET", hosts) == (len(request) if whole else 0)
    assert not plain(request[:-1], hosts) and not plain(request.replace(b"health", b"healthy"), hosts)
