"""Who may call, from where, and with how much: keys, hosts, origins, bodies, headers, and what the log keeps."""

from __future__ import annotations

import hmac
import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

import mistral.server.body
import mistral.server.protocol
import mistral.server.sse
from mistral.cli.model_options import shipped_checkpoint
from mistral.engine.engine_thread import Receiver
from mistral.engine.requests import Request
from mistral.engine.scheduler import Handle
from mistral.errors import InputError
from mistral.server.auth import ApiKeys
from mistral.server.page_file import page_and_policy
from mistral.server.settings import MAX_BODY, MAX_HEADERS, ServerSettings, is_loopback
from tests.support.local_server import PATIENCE, LocalServer, local_server

BODY = {"prompt": "Tom had a", "max_tokens": 2}
PATH = "/v1/completions"
RIGHT = (("authorization", "Bearer first-key"), ("x-api-key", "second-key"), ("authorization", "bearer second-key"))
OTHERS = ("evil.example", "evil.example:80", "", "127.0.0.1.evil.example", "localhost.evil.example")
POST = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
MESSAGE = POST.replace(b"completions", b"messages")
CLOSE = b"connection: close\r\n"
ASKED = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}


@pytest.fixture(scope="module")
def guarded() -> Iterator[LocalServer]:
    """A server with two keys, whose calls may come from one other site, and with a short queue."""
    with local_server(
        shipped_checkpoint(), api_keys=("first-key", "second-key"), cors=("https://a.example",), max_rows=2,
        max_queue=1,
    ) as local:  # fmt: skip
        yield local


def raw(server: LocalServer, data: bytes) -> bytes:
    """What the server sends back to bytes, until it closes the connection."""
    url = urlsplit(server.url)
    with socket.create_connection((url.hostname, url.port), timeout=PATIENCE) as connection:
        connection.sendall(data)
        found = b""
        while part := connection.recv(65536):
            found += part
    return found


# Keys


def test_a_key_is_needed_but_for_the_page_and_health(guarded: LocalServer) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "first-ke"}, {"authorization": "first-key"}):
        for method, path in (("POST", PATH), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/nowhere")):
            response = guarded.http.request(method, path, headers=headers, json=BODY)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    error = guarded.http.post("/v1/messages", json={}).json()
    assert error["type"] == "error" and error["error"]["type"] == "authentication_error"
    assert guarded.http.get("/").status_code == guarded.http.get("/health").status_code == 200
    for headers in (
        {"authorization": "Bearer first-key"},
        {"x-api-key": "second-key"},
        {"authorization": "bearer second-key"},
    ):
        assert guarded.http.post(PATH, headers=headers, json=BODY).status_code == 200


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of one length, each of them, by the function that is made for it; whichever key is given."""
    compared = list[tuple[int, int]]()
    compare = hmac.compare_digest

    def counted(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    keys = ApiKeys(["a", "bb", "ccc"])
    assert [keys.name_of({"x-api-key": key}) for key in ("a", "bb", "ccc")] == ["key1", "key2", "key3"]
    assert compared == [(32, 32)] * 9
    assert ApiKeys([]).name_of({}) == ""


def test_keys_reach_the_engine_by_their_names_alone(guarded: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[str]()
    submit = guarded.service._thread.submit

    def submitted(request: Request, receiver: Receiver, key: str, begin: bool) -> Handle:
        given.append(key)
        return submit(request, receiver, key=key, begin=begin)

    monkeypatch.setattr(guarded.service._thread, "submit", submitted)
    for key in ("second-key", "first-key"):
        guarded.http.post(PATH, headers={"x-api-key": key}, json=BODY)
    assert given == ["key2", "key1"]


# Hosts and origins


@pytest.mark.parametrize("host", OTHERS)
def test_another_hosts_name_is_refused_on_loopback(server: LocalServer, host: str) -> None:
    response = server.http.get("/health", headers={"host": host})
    assert response.status_code == 403 and "another machine" in response.json()["error"]["message"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8000", "LOCALHOST:80"])
def test_this_machines_names_are_not(server: LocalServer, host: str) -> None:
    assert server.http.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(("target", "host", "status", "says"), [
    ("http://localhost:8000/health", "localhost", 200, '"ok"'),
    ("HTTP://127.0.0.1/v1/models?a=http://b/c", "other.example", 200, '"list"'),
    ("http://localhost", "localhost", 200, "<!doctype html>"),
    ("http://[::1]:80/v1/models/a%2fb", "localhost", 404, "'a/b' is not here"),
    ("http://other.example/health", "localhost", 403, "the address of the request names another machine"),
    ("http://user@localhost/health", "localhost", 400, "no sound host"),
    ("http://[/health", "localhost", 400, "no sound host"),
    ("http:///health", "localhost", 400, "no sound host"),
    ("ftp://localhost/health", "localhost", 404, "is not here"),
])  # fmt: skip
def test_a_target_may_have_its_host_before_the_path(
    server: LocalServer, target: str, host: str, status: int, says: str
) -> None:
    """As a proxy is asked (RFC 9112, 3.2.2); its host counts, and not that of the Host header."""
    found = raw(server, f"GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
    assert found.startswith(f"HTTP/1.1 {status} ".encode()) and says in found.decode().replace("<!DOCTYPE", "<!doctype")


def test_a_target_with_a_host_is_a_path_for_metrics_and_the_log(server: LocalServer) -> None:
    name = 'mistral_requests_total{path="/v1/models",status="200"}'
    before = server.figure(name)
    raw(server, b"GET http://localhost/v1/models HTTP/1.0\r\n\r\n")
    assert server.figure(name) == before + 1


def test_pages_of_other_sites_may_call_only_where_they_are_named(server: LocalServer, guarded: LocalServer) -> None:
    for origin, allowed in (("https://a.example", True), ("https://b.example", False)):
        headers = {"origin": origin, "sec-fetch-site": "cross-site", "x-api-key": "first-key"}
        assert server.http.post(PATH, headers=headers, json=BODY).status_code == 403
        answer = guarded.http.post(PATH, headers=headers, json=BODY)
        assert answer.status_code == (200 if allowed else 403)
        assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
        asked = {"origin": origin, "access-control-request-method": "POST",
                 "access-control-request-headers": "authorization"}  # fmt: skip
        assert guarded.http.options(PATH, headers=asked).status_code == (200 if allowed else 400)
        assert "access-control-allow-origin" not in server.http.options(PATH, headers=asked).headers
    unknown = guarded.http.post(PATH, headers={"origin": "https://a.example"}, json=BODY)
    assert unknown.status_code == 401 and unknown.headers["access-control-allow-origin"] == "https://a.example"


def test_loopback_is_told_from_other_addresses() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.168.1.1", "example.org", ""]))
    assert not ServerSettings(host="0.0.0.0").is_loopback


# How much


def test_bodies_have_a_limit(server: LocalServer) -> None:
    largest = b'{"prompt": "a", "max_tokens": 1, "user": "' + b"x" * (MAX_BODY - 60) + b'"}'
    assert server.http.post(PATH, content=largest).status_code == 200
    for content in (b"x" * (MAX_BODY + 1), b'{"prompt": "' + b"x" * (3 * MAX_BODY) + b'"}'):
        response = server.http.post(PATH, content=content)
        assert response.status_code == 413 and "larger than 4 MiB" in response.json()["error"]["message"]
    declared = raw(server, MESSAGE + b"content-length: 99999999999\r\n" + CLOSE + b"\r\n")
    assert declared.startswith(b"HTTP/1.1 413 ") and b"request_too_large" in declared


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"), (b"{", "not JSON"), (b'{"prompt": "\xff"}', "not UTF-8 at byte 12"),
        (b"[]", "must be a JSON object"),
        (b"3", "must be a JSON object"), (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": 1, "a": 2}', "key 'a' is there twice"), (b"[" * 100_000, "levels deep"),
        (b'{"prompt": "\\ud800"}', "half of a surrogate pair"),
        (b'{"n": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
        (b'{"a": 1e999}', "too large"),
    ],
)  # fmt: skip
def test_bodies_that_are_no_sound_json(server: LocalServer, content: bytes, message: str) -> None:
    response = server.http.post(PATH, content=content)
    assert response.status_code == 400 and message in response.json()["error"]["message"]


def test_headers_have_a_limit(server: LocalServer) -> None:
    many = b"".join(b"x-%d: 1\r\n" % number for number in range(100_000))
    for headers in (b"x: " + b"y" * (MAX_HEADERS + 1) + b"\r\n", many):
        try:
            found = raw(server, b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n" + headers + b"\r\n")
        except ConnectionError:  # it has hung up already
            found = b"HTTP/1.1 431 larger than 64 kB"
        assert found.startswith(b"HTTP/1.1 431 ") and b"larger than 64 kB" in found
    assert server.http.get("/health").status_code == 200


def test_what_is_no_http_is_told_so(server: LocalServer) -> None:
    head, _, body = raw(server, b"POST " + PATH.encode() + b" HTTP/1.1\r\nhost\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request") and b"connection: close" in head.lower()
    assert json.loads(body)["error"]["message"] == "this is no sound HTTP request"


def test_a_body_that_is_compressed_is_told_from_one_that_is_broken(server: LocalServer) -> None:
    for coding, status in (("gzip", 415), ("br", 415), ("identity", 200)):
        body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
        response = server.http.post(PATH, content=body, headers={"content-encoding": coding})
        assert response.status_code == status and (status == 200 or coding in response.json()["error"]["message"])


def test_a_path_with_a_slash_more_is_not_there(server: LocalServer) -> None:
    """It is no other place to which a client is sent: some would send their key along, or a GET."""
    response = server.http.post(f"{PATH}/", json={"prompt": "a"})
    assert response.status_code == 404 and response.json()["error"]["type"] == "not_found_error"


def test_messages_tools_and_answers_have_limits(server: LocalServer) -> None:
    turn = {"role": "user", "content": "a"}
    chat = server.post("/v1/chat/completions", messages=[turn] * 5000).json()["error"]
    assert chat["param"] == "messages" and "4096 are the most" in chat["message"]
    tools = server.post("/v1/chat/completions", messages=[turn], tools=[{}] * 300).json()["error"]
    assert tools["param"] == "tools" and "256 are the most" in tools["message"]
    assert server.post(PATH, prompt="a", n=129).json()["error"]["param"] == "n"
    assert "2048 texts" in server.post(PATH, prompt=["a"] * 3000).json()["error"]["message"]


def test_a_full_queue_says_when_to_try_again(guarded: LocalServer) -> None:
    headers = {"x-api-key": "first-key"}
    too_many = guarded.http.post(PATH, headers=headers, json={**BODY, "n": 4})
    assert too_many.status_code == 400 and "3 are the most" in too_many.json()["error"]["message"]
    long = {"prompt": "a", "n": 3, "max_tokens": 5000, "ignore_eos": True, "stream": True}
    with guarded.http.stream("POST", PATH, headers=headers, json=long) as stream:
        parts = stream.iter_raw()
        next(parts)
        full = guarded.http.post(PATH, headers=headers, json=BODY)
        assert (full.status_code, full.headers["retry-after"], full.json()["error"]["code"]) == (429, "1", "queue_full")
        claude = guarded.http.post("/v1/messages", headers=headers, json=ASKED)
        assert claude.status_code == 429 and claude.json()["error"]["type"] == "rate_limit_error"
    guarded.wait_until_idle()
    assert guarded.http.post(PATH, headers=headers, json=BODY).status_code == 200


def test_what_comes_too_slowly_ends(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mistral.server.protocol, "HEADER_SECONDS", 0.1)
    monkeypatch.setattr(mistral.server.body, "BODY_SECONDS", 0.1)
    assert raw(server, b"POST /v1/completions HTTP/1.1\r\nhost: loc") == b""
    half = raw(server, POST + b"content-length: 9\r\n" + CLOSE + b"\r\n{")
    assert half.startswith(b"HTTP/1.1 408 ") and b"timeout_error" in half


def test_a_client_who_does_not_read_is_given_up(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mistral.server.protocol, "SEND_SECONDS", 0.3)
    url = urlsplit(server.url)
    asked = {"prompt": [300] * 2000, "echo": True, "logprobs": 20, "n": 3, "max_tokens": 50, "stream": True}
    body = json.dumps(asked).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((url.hostname, url.port))
        connection.sendall(POST + b"content-length: %d\r\n\r\n" % len(body))
        connection.sendall(body)
        for _ in range(int(PATIENCE / 0.05)):
            time.sleep(0.05)
            if server.service.open == 0 and server.figure("mistral_generated_tokens_total"):
                break
        server.wait_until_idle()
    assert server.http.get("/health").status_code == 200


# Errors elsewhere, the page, the description, the log


def test_errors_come_in_the_callers_envelope(server: LocalServer) -> None:
    missing, wrong_method = server.http.get("/v1/none"), server.http.get(PATH)
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
    assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")
    assert server.http.get("/v1/messages/none").json()["type"] == "error"
    assert server.http.post("/v1/messages/batches", json={}).status_code == 501
    assert server.http.get("/v1/responses/resp_1").status_code == 404


def test_the_page_may_load_nothing_from_elsewhere(server: LocalServer) -> None:
    response = server.http.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    assert "http" not in policy and response.headers["x-content-type-options"] == "nosniff"
    assert response.content == page_and_policy()[0] and b"<html" in response.content


def test_the_log_has_no_text_unless_it_is_asked_for(server: LocalServer, capfd: pytest.CaptureFixture[str]) -> None:
    server.answer(PATH, prompt="Anna Karenina", max_tokens=2)
    server.post(PATH, prompt="Anna Karenina", max_tokens="Anna Karenina")
    server.http.get("/Anna%0aKarenina?key=secret")
    deadline, err = time.monotonic() + PATIENCE, ""
    while "Karenina 404" not in err and time.monotonic() < deadline:
        err += capfd.readouterr().err
        time.sleep(0.01)
    lines = err.splitlines()[-3:]  # those before may be late ones of other tests
    assert "POST /v1/completions 200" in lines[0] and "+2 tokens cmpl-" in lines[0]
    assert "POST /v1/completions 400" in lines[1] and "Anna Karenina" not in "".join(lines[:2])
    assert r"/Anna\nKarenina 404" in lines[2] and "secret" not in err
    with local_server(shipped_checkpoint(), log_prompts=True) as told:
        told.answer(PATH, prompt="Anna Karenina", max_tokens=2)
    assert '"prompts": ["Anna Karenina"]' in capfd.readouterr().err


def test_settings_that_cannot_be() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"port": 65536}, "port 65536: must be from 0 to 65535"), ({"max_rows": 0}, "max_rows 0: must be at least 1"),
        ({"max_queue": -1}, "max_queue -1: must be 0 or more"), ({"drain_seconds": -1.0}, "drain_seconds -1.0: must"),
        ({"api_keys": ("",)}, "api_key: a key must be"), ({"api_keys": ("a b",)}, "api_key: a key must be"),
        ({"cors": ("example.org",)}, "cors example.org: must be an origin"),
    ]  # fmt: skip
    for settings, message in cases:
        with pytest.raises(InputError, match=message):
            ServerSettings(**settings).check()
