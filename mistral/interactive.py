"""The interactive command: prompts from a person or a pipe, answers as they come."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from mistral.errors import InputError
from mistral.generate import Prefilled, generate_stream
from mistral.mpi import keeps_lines_back, launcher_input_ended
from mistral.options import option
from mistral.progress import Progress
from mistral.session import Options, Session, with_session
from mistral.tokenizer import Message

MARK = "> "
STOP, QUIT = b"/stop", b"/quit"
MOMENT = 0.2  # seconds
STOP_HINT = "An empty line, or /stop, stops an answer; /quit leaves."
STREAM_HINT = "note: mpirun shows whole lines only; started with --stream-buffering 0, it shows each word at once"
NOT_UTF8 = "error: standard input: a line is not UTF-8 text; it is left out"


@dataclass(frozen=True)
class Interactive(Options):
    """Read prompts, one a line, and answer each until the input ends.

    Ctrl-C stops an answer; at the prompt it leaves, as Ctrl-D does. Under mpirun,
    Ctrl-C ends the whole job, an empty line or /stop stops an answer, and
    /quit leaves.
    """

    max_tokens: int = option(256, "New tokens for each answer, at most.")
    temperature: float = option(0.7, "0 takes the likeliest token; higher values spread the choice.")
    instruct: bool = option(False, "Hold a conversation in the checkpoint's own chat template.")

    def run(self) -> None:
        """Load, then answer."""
        run_interactive(self, self.instruct)


@dataclass(frozen=True)
class Answer:
    """What came of one prompt. finish_reason is "stop", "length" or "interrupted"."""

    text: str
    ids: tuple[int, ...]
    finish_reason: str


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
        """Ctrl-C sets `pressed` in here instead of ending the program."""
        interruption = cls()
        before = signal.signal(signal.SIGINT, interruption.press)
        try:
            yield interruption
        finally:
            signal.signal(signal.SIGINT, before)


class TypedAhead:
    """Lines of standard input, read while an answer is written: one of them may stop it.

    For mpirun, whose processes get neither a terminal nor Ctrl-C. An empty line stops an answer only as long as more
    input may come: where all of it is there at once, nobody is typing.
    """

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._ended, self._changed = False, threading.Condition()
        threading.Thread(target=self._read, args=(sys.stdin.fileno(),), daemon=True).start()

    def _read(self, file: int) -> None:
        rest, quiet = b"", 0
        while quiet < 2:  # what mpirun has read and not passed on yet comes within a moment
            if not select.select([file], [], [], MOMENT)[0]:
                quiet = quiet + 1 if launcher_input_ended() else 0
                continue
            data, quiet = os.read(file, 1 << 16), 0  # not through sys.stdin, which a thread would hold locked at exit
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            with self._changed:
                self._lines.extend(lines)
                self._changed.notify()
        with self._changed:
            self._lines.extend([rest] if rest else [])
            self._ended = True
            self._changed.notify()

    def stop(self) -> bool:
        """Whether the next line asks to stop; then it is used up, unless it asks to leave."""
        with self._changed:
            line = self._lines[0].strip() if self._lines else None
            asked = line == STOP or (line == b"" and not (self._ended or launcher_input_ended()))
            if asked:
                self._lines.popleft()
            return asked or line == QUIT

    def lines(self) -> Iterator[bytes]:
        """Each line, with a mark on standard error where one is waited for."""
        print(STOP_HINT, file=sys.stderr)
        if keeps_lines_back():
            print(STREAM_HINT, file=sys.stderr)
        while True:
            print(MARK, end="\n" if keeps_lines_back() else "", file=sys.stderr, flush=True)
            line = b""
            while line.strip() in (b"", STOP):
                with self._changed:
                    self._changed.wait_for(lambda: self._lines or self._ended)
                    line = self._lines.popleft() if self._lines else QUIT
                if line.strip() == QUIT:
                    print(file=sys.stderr)
                    return
            yield line


def answer(session: Session, prompt: Sequence[int], text_follows: bool, typed: TypedAhead | None = None) -> Answer:
    """Generate for one prompt, showing text as it becomes certain. Ctrl-C stops the answer, not the program.

    So does a line of `typed` that asks for it.
    """
    request = session.request(prompt, text_follows)
    progress = Progress("reading the prompt:", "tokens")
    text, ids, reason = "", list[int](), "interrupted"
    with Interruption.watching() as interruption, suppress(KeyboardInterrupt):
        events = generate_stream(session.engine, [request], session.options.chunk_size, timings=session.timings)
        try:
            for event in events:
                if isinstance(event, Prefilled):
                    progress(event.done, event.total)
                else:
                    progress.clear()
                    text += event.text
                    ids.extend(() if event.id is None else (event.id,))
                    reason = event.finish_reason or reason
                    if not session.options.json:
                        print(event.text, end="", flush=True)
                if interruption.pressed or (typed and typed.stop()):
                    break
        finally:
            progress.clear()
            events.close()
    return Answer(text, tuple(ids), reason)


def read_prompts(typed: TypedAhead | None = None) -> Iterator[str]:
    """Lines from standard input, or those of `typed`, without empty ones."""
    if typed:
        lines = decoded_lines(typed.lines())
    else:
        lines = typed_lines() if sys.stdin.isatty() else decoded_lines(sys.stdin.buffer)
    return (line for line in lines if line.strip())


def typed_lines() -> Iterator[str]:
    """Lines that a person types, with line editing and a mark in front, on standard error if output goes to a file."""
    with suppress(ImportError):
        import readline  # noqa: F401  line editing and history for input()
    while True:
        mark = MARK if sys.stdout.isatty() else ""
        try:
            if not mark:
                print(MARK, end="", file=sys.stderr, flush=True)
            yield input(mark)
        except UnicodeDecodeError:
            print(NOT_UTF8, file=sys.stderr)
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)
            raise


def decoded_lines(lines: Iterable[bytes]) -> Iterator[str]:
    """Lines from a file or a pipe. Decoded one by one: a line that is not UTF-8 costs no other."""
    for line in lines:
        try:
            yield line.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError:
            print(NOT_UTF8, file=sys.stderr)


def next_turn(session: Session, history: list[Message], prompt: str) -> tuple[list[Message], list[int]]:
    """The conversation with a new question, and its ids.

    Where it leaves too little of the context for an answer, its oldest questions go, with their answers.
    """
    limit, dropped = session.engine.context_limit, 0
    while True:
        turn = [*history[dropped:], Message("user", prompt)]
        ids = session.tokenizer.encode_chat(turn)
        if limit is None or len(turn) == 1 or len(ids) + min(session.options.max_tokens, limit // 4) <= limit:
            break
        dropped += 2
    if dropped:
        print(f"note: over the context limit of {limit} tokens; the oldest turns are left out", file=sys.stderr)
    return turn, ids


def run_interactive(options: Options, instruct: bool) -> None:
    """Answer prompts until they end. With `instruct`, as a conversation in the checkpoint's own chat template."""
    with_session(options, instruct, lambda session: converse(session, instruct))


def converse(session: Session, instruct: bool) -> None:
    """The same with a session that is open."""
    options, history = session.options, list[Message]()
    typed = TypedAhead() if session.engine.num_pipeline_ranks > 1 else None
    for prompt in read_prompts(typed):
        try:
            turn, ids = next_turn(session, history, prompt) if instruct else ([], session.tokenizer.encode(prompt))
            given = answer(session, ids, not instruct, typed)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        if turn and given.text.strip():  # an empty answer leaves the conversation together with its question
            history = [*turn, Message("assistant", given.text)]
        if options.json:
            record = {"prompt": prompt, "text": given.text, "ids": given.ids, "finish_reason": given.finish_reason}
            print(json.dumps(record), flush=True)
        else:
            print(" [stopped]" if given.finish_reason == "interrupted" else "", flush=True)
    session.report()
