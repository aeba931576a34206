"""One answer: shown while it is generated, until it ends or is stopped."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from mistral.cli.chat.answer_view import View
from mistral.cli.console import ProgressLine
from mistral.cli.session import Session
from mistral.engine.requests import Prefilled, Request
from mistral.engine.scheduler import MAX_ROWS, generate_stream
from mistral.tokenizer.tool_calls import Reply, ReplyStream


@dataclass(frozen=True)
class ChatAnswer:
    """What came of one prompt. finish_reason is "stop", "length" or "interrupted"; seconds until the first token.

    `writing`: seconds from the first token to the last. `drafts`: the numbers of accepted and rejected draft tokens.
    """

    reply: Reply
    ids: tuple[int, ...]
    finish_reason: str
    seconds: float
    writing: float = 0.0
    drafts: tuple[int, int] = (0, 0)

    @property
    def speed(self) -> float | None:
        """Tokens per second after the first; None if there is only one."""
        return (len(self.ids) - 1) / self.writing if self.writing and len(self.ids) > 1 else None


class Interruption:
    """Whether Ctrl-C has been pressed since answering began; `heard` is called at the first press, at once."""

    def __init__(self, heard: Callable[[], None]) -> None:
        self.pressed, self.heard = False, heard

    def press(self, signal_number: int, frame: FrameType | None) -> None:
        """The first press lets the current token be finished; a second one does not wait for it."""
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True
        self.heard()

    @classmethod
    @contextmanager
    def watching(cls, heard: Callable[[], None]) -> Iterator[Interruption]:
        """Ctrl-C sets `pressed` in here instead of ending the program; where it is ignored, it stays so."""
        interruption, before = cls(heard), signal.getsignal(signal.SIGINT)
        if before is signal.SIG_IGN:
            yield interruption
            return
        signal.signal(signal.SIGINT, interruption.press)
        try:
            yield interruption
        finally:
            signal.signal(signal.SIGINT, before)


def write_answer(
    session: Session,
    request: Request,
    replies: ReplyStream | None,
    view: View,
    asked_to_stop: Callable[[], bool],
) -> ChatAnswer:
    """Generate for one prompt, showing text as it becomes certain. Ctrl-C stops the answer, not the program.

    So does `asked_to_stop`, which is looked at after every step. `replies` keeps thoughts and tool calls out of the
    text that is shown.
    """
    progress = ProgressLine("reading the prompt:", "tokens", total=len(request.prompt))
    text, ids, reason, right, wrong = "", list[int](), "interrupted", 0, 0
    started, first = time.perf_counter(), None
    with Interruption.watching(view.stop) as interruption, suppress(KeyboardInterrupt):
        session.engine.on_layer = layer_watcher(session, progress, interruption)
        shared = session.timings, session.speculation
        events = generate_stream(session.engine, [request], session.options.chunk_size, MAX_ROWS, *shared)
        try:
            for event in events:
                if isinstance(event, Prefilled):
                    progress(event.done, event.total)
                elif event.error:
                    raise event.error
                else:
                    progress.give_way()
                    last = time.perf_counter()
                    first = first or last
                    text += event.text
                    right, wrong = right + event.accepted, wrong + event.rejected
                    ids.extend(() if event.id is None else (event.id,))
                    reason = event.finish_reason or reason
                    shown = replies.push(event.id, event.text) if replies else event.text
                    if replies and replies.thought:
                        view.think(replies.thought)
                    view.push(shown)
                if interruption.pressed or asked_to_stop():
                    break
        finally:
            session.engine.on_layer = None
            progress.clear()
            events.close()
    rest, reply = replies.finish() if replies else ("", Reply(text))
    view.push(rest)
    view.end()
    now = time.perf_counter()
    writing = last - first if first else 0.0
    return ChatAnswer(reply, tuple(ids), reason, (first or now) - started, writing, (right, wrong))


def layer_watcher(session: Session, progress: ProgressLine, interruption: Interruption) -> Callable[[int, float], None]:
    """What is done after each layer of a prompt: tell how far it is, and stop there after Ctrl-C.

    Not on a pipeline, whose other stages wait for what this one passes on.
    """

    def watch(tokens: int, share: float) -> None:
        if interruption.pressed and session.engine.num_pipeline_ranks == 1:
            raise KeyboardInterrupt
        progress.layer(tokens, share)

    return watch
