"""The serve command: an HTTP server with the interfaces of OpenAI, Anthropic and Mistral."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mistral.cli.model_options import Options
from mistral.cli.options import CHOICE, MACHINE, OWN, option
from mistral.cli.session import Session, open_files, running
from mistral.errors import InputError

if TYPE_CHECKING:
    from mistral.server.settings import ServerSettings


STORE_SHARE = 8  # the default prefix cache takes 1 / STORE_SHARE of the free memory


@dataclass(frozen=True)
class Serve(Options):
    """Serve a model over HTTP, and a page to chat on at /.

    It speaks the interfaces of OpenAI (/v1/chat/completions, /v1/completions, /v1/responses), Anthropic (/v1/messages)
    and Mistral (/v1/fim/completions). Without --host it can be called from this machine alone. SIGTERM and Ctrl-C let
    answers be finished; a second one ends the server at once.
    """

    host: str = option("127.0.0.1", "Address to listen at; 0.0.0.0 is all of this machine's.", OWN)
    port: int = option(8000, "Port to listen at; 0 takes a free one, which is shown.", OWN)
    api_key: tuple[str, ...] = option(
        (), "A key that callers must have, or a JSON list of several; @FILE keeps it out of sight.", OWN
    )
    cors: tuple[str, ...] = option((), "An origin whose pages may call, such as https://example.org; * is any.", OWN)
    log_prompts: bool = option(False, "Write prompts and answers into the log.", OWN)
    drain_seconds: float = option(30.0, "Time in which open answers may finish when the server is stopped.", OWN)
    max_tokens: int | None = option(  # type: ignore[assignment]  # here it may be left open
        None, "Default of new tokens, if a request does not set it; to the end of the context when left out.", CHOICE
    )
    temperature: float = option(1.0, "Default, if a request does not set it; 0 takes the likeliest token.", CHOICE)
    max_rows: int = option(64, "Most answers that are generated at once.", MACHINE)
    max_queue: int = option(1024, "Most answers that wait; further requests get status 429.", MACHINE)
    step_ms: int = option(200, "Time limit of a step while any answer is being generated, in milliseconds.", MACHINE)
    prefix_bytes: int | None = option(
        None, "Memory of the prefix cache, in bytes; an eighth of what is free when left out.", MACHINE
    )

    def check(self) -> None:
        """Raise InputError for an option that cannot be, before anything is loaded."""
        super().check()
        if self.step_ms < 1:
            raise InputError("must be at least 1", option="step_ms", value=self.step_ms)
        if self.prefix_bytes is not None and self.prefix_bytes < 0:
            raise InputError("must be 0 or more", option="prefix_bytes", value=self.prefix_bytes)
        self.server_settings().check()

    def server_settings(self) -> ServerSettings:
        """The settings of the server, and the defaults of requests."""
        from mistral.server.settings import Defaults, ServerSettings

        defaults = Defaults(
            self.max_tokens, self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty,
            None if self.seed == -1 else self.seed, self.stop,
        )  # fmt: skip
        return ServerSettings(
            self.host, self.port, self.api_key, self.cors, self.max_rows, self.max_queue, self.log_prompts,
            self.drain_seconds, defaults,
        )  # fmt: skip

    def run(self) -> None:
        """Load the model and serve it until a signal comes. Raises InputError for what cannot be loaded or bound."""
        from mistral.server.run import bound

        opened, sock = open_files(self), None
        with opened.before_loading() as first:
            if first:
                sock = bound(self.host, self.port)
        with running(opened) as session:
            if session and sock:
                serve(self, session, sock)


def serve(options: Serve, session: Session, sock: socket.socket) -> None:
    """Serve a loaded model."""
    from mistral.engine.engine_thread import EngineThread
    from mistral.engine.prefix_store import PrefixStore
    from mistral.engine.scheduler import Scheduler
    from mistral.memory import available_memory
    from mistral.server.log import Log
    from mistral.server.run import address_of, run
    from mistral.server.service import Service

    limit = available_memory() // STORE_SHARE if options.prefix_bytes is None else options.prefix_bytes
    store = PrefixStore(session.engine.args, limit) if limit else None
    scheduler = Scheduler(
        session.engine, options.chunk_size, options.max_rows, session.timings, options.step_ms, store,
        speculation=session.speculation,
    )  # fmt: skip
    thread, log = EngineThread(scheduler), Log()
    name = session.checkpoint.name
    service = Service(name, session.tokenizer, session.engine, thread, options.server_settings(), log)

    if session.engine.model.ops.name == "portable":
        print("note: the portable backend is slow, and its operators lose memory at every call", file=sys.stderr)

    def ready() -> None:
        print(f"serving {name} at {address_of(sock)}", file=sys.stderr, flush=True)

    try:
        run(service, sock, ready)
    finally:
        thread.close()
        log.close()
