"""The serve command as a process: how it begins, how it ends, and over two ranks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.command_line import ROOT, CommandLine
from tests.support.local_server import LocalServer
from tests.support.mixed_requests import answered, cached_in, in_company, mixed_bodies, texts_of
from tests.support.mpirun import ENVIRONMENT, FLAGS, MPIRUN

PATIENCE = 60.0
PATH = "/v1/completions"
ENDLESS = {"prompt": "Tom had", "max_tokens": 100_000, "ignore_eos": True, "stream": True}


@contextmanager
def process(*options: str, launcher: tuple[str, ...] = ()) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server as a process of its own, and its address."""
    command = [*launcher, sys.executable, "-m", "main", "serve", "--port=0", "--device=CPU", *options]
    with subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT
    ) as started:
        try:
            assert started.stderr
            line = next(line for line in started.stderr if line.startswith("serving "))
            yield started, line.split()[-1]
        finally:
            started.kill()


@contextmanager
def streamed(url: str, body: dict[str, Any]) -> Iterator[httpx.Response]:
    with httpx.stream("POST", f"{url}{PATH}", json=body, timeout=PATIENCE) as stream:
        yield stream


def test_sigterm_lets_answers_be_finished_and_takes_no_new_ones() -> None:
    body = {"prompt": "Tom had a red ball.", "max_tokens": 300, "ignore_eos": True, "stream": True}
    with process("--backend=native", "--temperature=0", "--drain_seconds=50") as (started, url):
        whole = httpx.post(f"{url}{PATH}", json=body | {"stream": False}, timeout=PATIENCE).json()["choices"][0]["text"]
        with streamed(url, body) as stream:
            lines = stream.iter_lines()
            first = next(lines)
            started.send_signal(signal.SIGTERM)
            found = [first, *lines]
        parts = [json.loads(line.removeprefix("data: ")) for line in found if line.startswith("data: {")]
        texts = [part["choices"][0]["text"] for part in parts]
        assert "".join(texts) == whole and found[-2] == "data: [DONE]"
        assert started.wait(PATIENCE) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
        assert started.stderr and "Traceback" not in started.stderr.read()


def test_answers_that_are_not_done_in_time_are_told_so() -> None:
    with process("--backend=native", "--drain_seconds=0.2", "--max_rows=1") as (started, url):
        with (
            ThreadPoolExecutor(1) as pool,
            streamed(url, ENDLESS) as stream,
        ):
            lines = stream.iter_lines()
            next(lines)
            waiting = pool.submit(httpx.post, f"{url}{PATH}", json={"prompt": "a"}, timeout=PATIENCE)
            while httpx.get(f"{url}/metrics").text.find("mistral_answers_open 2.0") < 0:
                pass
            started.send_signal(signal.SIGTERM)
            last = [line for line in lines if line][-1]
            queued = waiting.result(PATIENCE)
        assert json.loads(last.removeprefix("data: "))["error"]["message"] == "the server is ending"
        assert (queued.status_code, queued.headers["retry-after"]) == (503, "1")
        assert started.wait(PATIENCE) == 0


def test_what_cannot_be_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = CommandLine(capsys, monkeypatch)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = run("serve", f"--port={port}")
        assert outcome.code == 2 and f"--port {port}: cannot be used (Address already in use)" in outcome.err
    assert "--host 203.0.113.1: cannot be used" in run("serve", "--port=0", "--host=203.0.113.1").err
    assert run("serve", "--port=65536").error == "--port 65536: must be from 0 to 65535; 0 takes a free one"
    assert run("serve", "--step_ms=0").error == "--step_ms 0: must be at least 1"
    assert run("serve", "--prefix_bytes=-1").error == "--prefix_bytes -1: must be 0 or more"
    assert run("serve", "--cors=example").error.startswith("--cors example: must be an origin")
    assert "secret" not in run("serve", "--api_key=my secret").error


def test_two_ranks_serve_as_one() -> None:
    """Answers side by side, and one whose client goes, over a pipeline of two processes; the end of both on SIGTERM."""
    launcher = (MPIRUN, "-n", "2", *FLAGS)
    with process(
        "--num_pipeline_ranks=2", "--backend=native", "--threads=1", "--temperature=0", launcher=launcher
    ) as (started, url):  # fmt: skip
        texts = ["Tom had a red ball. The ball was", "This is a test", "Anna went to the lake."]

        def made(text: str) -> str:
            found = httpx.post(f"{url}{PATH}", json={"prompt": text, "max_tokens": 8}, timeout=PATIENCE).json()
            return str(found["choices"][0]["text"])

        alone = [made(text) for text in texts]
        with streamed(url, ENDLESS) as stream:
            next(stream.iter_raw())
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(made, texts)) == alone and all(alone)
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        for _ in range(int(PATIENCE / 0.05)):
            if "mistral_rows 0.0" in httpx.get(f"{url}/metrics").text:
                break
            threading.Event().wait(0.05)
        assert "mistral_reserved_tokens 0.0" in httpx.get(f"{url}/metrics").text
        started.send_signal(signal.SIGTERM)
        started.wait(PATIENCE)


def test_answers_of_two_ranks_are_those_of_one_process_alone(server: LocalServer) -> None:
    """Bit for bit, in random company, while others go: with nothing known before, and with stored beginnings."""
    asked, launcher = mixed_bodies(64), (MPIRUN, "-n", "2", *FLAGS)
    alone = [texts_of(answered(server.url, body)) for body in asked]
    keys = [f"key-{place}" for place in range(len(asked))]  # what one key has sent is not found by another
    options = "--num_pipeline_ranks=2", "--backend=native", "--threads=1", f"--api_key={json.dumps(keys)}"
    with process(*options, launcher=launcher) as (started, url):
        for place, response in in_company(url, asked, keys, seed=1):
            assert texts_of(response) == alone[place]
            assert not cached_in(response) or place == 0
        known = 0
        for place, response in in_company(url, asked, keys[:1], seed=2):
            assert texts_of(response) == alone[place]
            known += cached_in(response) > 0
        assert known > len(asked) / 2
        started.send_signal(signal.SIGTERM)
        started.wait(PATIENCE)
