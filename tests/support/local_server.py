"""A server on loopback, run by a thread of this process: its clients are real, and its engine can be looked at."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from mistral.engine.engine import Engine
from mistral.engine.engine_thread import EngineThread
from mistral.engine.scheduler import Scheduler
from mistral.engine.speculation import Speculation
from mistral.load import load_model
from mistral.server.log import Log
from mistral.server.run import DrainingServer, address_of, bound
from mistral.server.service import Service
from mistral.server.settings import Defaults, ServerSettings
from mistral.tokenizer.tokenizer import Tokenizer

GREEDY = Defaults(temperature=0.0)
PATIENCE = 30.0  # seconds


class LocalServer:
    """A running server. `url` is its address, without a slash at the end."""

    def __init__(self, service: Service, url: str) -> None:
        self.service, self.url = service, url
        self.http = httpx.Client(base_url=url, timeout=PATIENCE)

    def post(self, path: str, **body: Any) -> httpx.Response:
        """The response to a JSON body."""
        return self.http.post(path, json=body)

    def answer(self, path: str, **body: Any) -> Any:
        """The JSON of a response that is sound."""
        response = self.post(path, **body)
        assert response.status_code == 200, response.text
        return response.json()

    def events(self, path: str, **body: Any) -> list[Any]:
        """The JSON of each event of a stream, without the [DONE] at its end, which must be there."""
        response = self.post(path, stream=True, **body)
        assert response.status_code == 200, response.text
        frames = response.text.removesuffix("\n\n").split("\n\n")
        assert frames.pop() == "data: [DONE]"
        return [json.loads(frame.removeprefix("data: ")) for frame in frames]

    def figure(self, name: str) -> float:
        """One of the metrics."""
        lines = self.http.get("/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))

    def wait_until_idle(self) -> None:
        """Wait until no row is in use and nothing is open."""
        for _ in range(int(PATIENCE / 0.01)):
            if self.service.engine.reserved == (0, 0) and not self.service.open:
                return
            threading.Event().wait(0.01)
        raise AssertionError("rows are still in use")


@contextmanager
def local_server(
    folder: Path, backend: str = "native", speculation: Speculation | None = None, **settings: Any
) -> Iterator[LocalServer]:
    """Serve a checkpoint for as long as the block lasts; answers are greedy unless a request says otherwise."""
    model = load_model(folder, 1, backend, device="CPU", threads=1)
    tokenizer, engine = Tokenizer.from_folder(folder).for_rows(model.args.vocab_size), Engine(model)
    chosen = replace(ServerSettings(port=0, defaults=GREEDY, drain_seconds=0), **settings)
    thread, log = EngineThread(Scheduler(engine, max_rows=chosen.max_rows, speculation=speculation)), Log()
    service, sock = Service(folder.name, tokenizer, engine, thread, chosen, log), bound("127.0.0.1", 0)
    ready = threading.Event()
    server = DrainingServer(service, ready.set)
    running = threading.Thread(target=lambda: asyncio.run(server.serve([sock])), name="server")
    running.start()
    assert ready.wait(PATIENCE)
    local = LocalServer(service, address_of(sock))
    try:
        yield local
    finally:
        local.http.close()
        server.end()
        running.join(PATIENCE)
        thread.close()
        log.close()
        assert not running.is_alive()
