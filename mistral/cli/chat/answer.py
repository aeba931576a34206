"""One answer: shown as it is written, until it ends or is stopped."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from mistral.cli import console
from mistral.cli.console import ProgressLine
from mistral.cli.session import Session
from mistral.engine.requests import Prefilled, Request
from mistral.engine.scheduler import generate_stream
from mistral.tokenizer.tool_calls import Reply, ReplyStream


@dataclass(frozen=True)
class ChatAnswer:
    """What came of one prompt. finish_reason is "stop", "length" or "interrupted"; seconds until the first token."""

    reply: Reply
    ids: tuple[int, ...]
    finish_reason: str
    seconds: float


class Interruption:
    """Whether Ctrl-C has been pressed since answering began."""

    def __init__(self) -> None:
        self.pressed = False

    def press(self, signal_number: int, frame: FrameType | None) -> None:
        """The first press lets the step at hand end; a second one does not wait for it."""
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    @classmethod
    @contextmanager
    def watching(cls) -> Iterator[Interruption]:
        """Ctrl-C sets `pressed` in here instead of ending the program; one that is ignored stays so."""
        interruption = cls()
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as after nohup
            yield interruption
            return
        before = signal.signal(signal.SIGINT, interruption.press)
        try:
            yield interruption
        finally:
            signal.signal(signal.SIGINT, before)


def write_answer(
    session: Session, request: Request, replies: ReplyStream | None, asked_to_stop: Callable[[], bool]
) -> ChatAnswer:
    """Generate for one prompt, showing text as it becomes certain. Ctrl-C stops the answer, not the program.

    So does `asked_to_stop`, which is looked at after every step. `replies` keeps tool calls out of what is shown.
    """
    progress = ProgressLine("reading the prompt:", "tokens")
    show = _nothing if session.options.json else console.write
    text, ids, reason = "", list[int](), "interrupted"
    started, first = time.perf_counter(), None
    with Interruption.watching() as interruption, suppress(KeyboardInterrupt):
        events = generate_stream(session.engine, [request], session.options.chunk_size, timings=session.timings)
        try:
            for event in events:
                if isinstance(event, Prefilled):
                    progress(event.done, event.total)
                elif event.error:
                    raise event.error
                else:
                    progress.clear()
                    first = first or time.perf_counter()
                    text += event.text
                    ids.extend(() if event.id is None else (event.id,))
                    reason = event.finish_reason or reason
                    show(replies.push(event.id, event.text) if replies else event.text)
                if interruption.pressed or asked_to_stop():
                    break
        finally:
            progress.clear()
            events.close()
    rest, reply = replies.finish() if replies else ("", Reply(text))
    show(rest)
    return ChatAnswer(reply, tuple(ids), reason, (first or time.perf_counter()) - started)


def _nothing(text: str) -> None:
    pass
