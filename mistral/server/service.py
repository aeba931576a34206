"""The model behind the server: a bounded queue of requests, and their answers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

from mistral.engine.engine import Engine
from mistral.engine.engine_thread import EngineThread
from mistral.engine.requests import Event, Request
from mistral.engine.scheduler import Handle
from mistral.errors import InputError
from mistral.grammar.grammar import Grammar
from mistral.grammar.grammars import Grammars
from mistral.llm.partial_completion import Prompt
from mistral.server.answers import Answers
from mistral.server.api_error import ApiError, busy, unavailable, wrong
from mistral.server.asked import Asked
from mistral.server.log import Log
from mistral.server.mailbox import Mailbox
from mistral.server.metrics import Metrics
from mistral.server.settings import ServerSettings
from mistral.server.start import Start
from mistral.server.token_texts import TokenTexts
from mistral.tokenizer.message_json import read_messages
from mistral.tokenizer.messages import Tool
from mistral.tokenizer.streaming import TextStream
from mistral.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")
ENDING = "the server is ending"
WORKERS = 8  # threads that make ids of texts
SMALL = 1024  # bytes or ids with which something is done sooner than a thread can be told to do it


class Service:
    """A loaded model and its engine thread, for coroutines: no method blocks the event loop."""

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        engine: Engine,
        thread: EngineThread,
        settings: ServerSettings,
        log: Log,
    ) -> None:
        """`name`: the model's name."""
        self.name, self.tokenizer, self.engine, self.settings = name, tokenizer, engine, settings
        self.token_texts, self.grammars, self.log = TokenTexts(tokenizer), Grammars(tokenizer), log
        self.created, self.draining, self.open = int(time.time()), False, 0
        self.metrics = Metrics()
        self.metrics.watch("rows", "Rows of the cache that are in use", lambda: engine.reserved[0])
        self.metrics.watch("reserved_tokens", "Tokens that memory is reserved for", lambda: engine.reserved[1])
        self.metrics.watch("rows_reading", "Rows in prefill", lambda: thread.figures.reading)
        self.metrics.watch("rows_answering", "Rows in decode", lambda: thread.figures.answering)
        self.metrics.watch("rows_parked", "Parked rows", lambda: thread.figures.parked)
        self.metrics.watch("row_bytes", "Memory reserved for rows", lambda: thread.figures.row_bytes)
        self.metrics.watch("prefix_bytes", "Memory of the prefix cache", lambda: thread.figures.prefix_bytes)
        self.metrics.watch("steps", "Steps of the engine so far", lambda: thread.figures.steps)
        self.metrics.watch("longest_step_seconds", "The longest step so far", lambda: thread.figures.longest_seconds)
        self.metrics.watch("drafted_tokens", "Draft tokens", lambda: thread.figures.drafted_tokens)
        self.metrics.watch("accepted_tokens", "Accepted draft tokens", lambda: thread.figures.accepted_tokens)
        self._thread, self._start = thread, Start(thread)
        self._mailbox: Mailbox | None = None
        self._workers = ThreadPoolExecutor(WORKERS, "server")

    @property
    def alive(self) -> bool:
        """Whether requests are accepted."""
        return not (self.draining or self._thread.closed)

    @property
    def efforts(self) -> tuple[str, ...]:
        """The values of reasoning_effort that the model's template accepts."""
        return self.tokenizer.template.reasoning_efforts if self.tokenizer.template else ()

    async def in_thread(self, work: Callable[[], T], field: str | None = None, size: int = SMALL) -> T:
        """The result of `work`, which runs in a thread, or at once if it handles fewer than `SMALL` bytes.

        Raises ApiError for an InputError of `work`.
        """
        try:
            if size < SMALL:
                return work()
            return await asyncio.get_running_loop().run_in_executor(self._workers, work)
        except RuntimeError:
            if self.draining:  # the threads have ended
                raise unavailable(ENDING) from None
            raise
        except InputError as error:
            message = str(error).replace(f"{self.tokenizer.file.parent}/", "")  # nobody else's business
            field = error.option or field
            if field and not message.startswith(field):
                message = f"{field}: {message}"
            raise ApiError(400, message, field) from None

    def check_ids(self, ids: Sequence[int], field: str) -> None:
        """Raise ApiError, naming the field, for an id beyond the vocabulary."""
        for token_id in ids:
            if not 0 <= token_id < self.engine.args.vocab_size:
                raise wrong(field, f"{token_id} is no id of the model, which has {self.engine.args.vocab_size}")

    # Prompts; to be called `in_thread`

    def text_prompt(self, text: str | Sequence[int], name: str) -> Prompt:
        """The prompt of a text, or ids, to be continued. Raises InputError for an invalid one."""
        ids = self.tokenizer.encode(text) if isinstance(text, str) else list(text)
        return Prompt(name, ids, ids)

    def chat_prompt(self, messages: object, tools: Sequence[Tool], effort: str | None = None) -> Prompt:
        """The prompt of a conversation in JSON. Raises InputError."""
        turns, tokenizer = read_messages(messages), self.tokenizer
        ids = tokenizer.encode_chat(turns, tools, effort)
        continued = ids if turns[-1].prefix else ()
        return Prompt("the conversation", ids, continued, tools, tokenizer.think_tokens, tokenizer.thinks_after(ids))

    # Answers

    @asynccontextmanager
    async def answering(self, asked: Asked, key: str) -> AsyncGenerator[Answers]:
        """A block in which answers are generated; those that have not ended at its end are cancelled.

        Raises ApiError if the queue is full, the server is shutting down, or the request is invalid.
        """
        self._admit(asked.rows)
        self._check_lengths(asked)
        answers = Answers(self.tokenizer, asked, self.metrics)
        mailbox = self._mailbox = self._mailbox or Mailbox()
        submission = _Submission(self._thread, key)

        put = partial(mailbox.put, answers.inbox)
        self._count(asked.rows)
        try:
            await self.in_thread(lambda: submission.submit(self._requests(asked, answers), put), size=asked.size)
            self._start.soon()
            yield answers
        finally:
            self._count(-asked.rows, sum(not answer.begun for answer in answers.answers))
            if answers.unfinished:
                self.metrics.cancelled.inc(len(answers.unfinished))
                submission.cancel()  # here: a thread would have to be let in first, and steps would go by
            usage = answers.usage
            self.metrics.prompt_tokens.inc(usage.prompt)
            self.metrics.cached_tokens.inc(usage.cached)

    def _admit(self, rows: int) -> None:
        most = self.settings.max_rows + self.settings.max_queue
        if rows > most:
            raise ApiError(400, f"the request asks for {rows} answers, and {most} are the most")
        if not self.alive:
            self.metrics.refused.inc()
            raise unavailable(ENDING if self.draining else "the engine has failed")
        if self.open + rows > most:
            self.metrics.refused.inc()
            raise busy(f"{self.open} answers are open, and {most} are the most; try again")

    def _check_lengths(self, asked: Asked) -> None:
        """Raise ApiError, with OpenAI's error code, for a prompt that leaves no room for an answer."""
        limit, least = self.engine.context_limit, 0 if asked.max_tokens == 0 else 1
        for prompt in asked.prompts:
            length = len(prompt.ids)
            if limit is not None and length + least > limit:
                message = f"{prompt.name} has {length} tokens and the context limit is {limit}: shorten the prompt"
                raise ApiError(400, message, code="context_length_exceeded")

    def _count(self, rows: int, not_begun: int = 0) -> None:
        self.open += rows
        self.metrics.open.inc(rows)
        self.metrics.waiting.inc(rows if rows > 0 else -not_begun)

    def _requests(self, asked: Asked, answers: Answers) -> list[Request]:
        """n requests for each prompt, one after the other."""
        tokenizer, excluded = self.tokenizer, self.tokenizer.uncovered()
        rooms = [asked.max_tokens or 0] * len(asked.prompts)
        if asked.max_tokens is None:
            rooms = self.engine.answer_rooms([len(prompt.ids) for prompt in asked.prompts])
        grammars = [self._grammar(asked, prompt) for prompt in asked.prompts]
        for answer in answers.answers:
            prompt, stream = answer.prompt, tokenizer.stream(answer.prompt.continued)
            answer.stream = TextStream(stream, asked.stops, prompt.think_tokens, prompt.thinks)
        settings = [replace(asked.settings, sample=sample) if sample else asked.settings for sample in range(asked.n)]
        return [
            Request(
                prompt.ids, room, settings[sample], tokenizer.end_ids,
                answers.answers[place * asked.n + sample].stream, asked.scores_prompt, top=asked.top,
                logprobs=asked.logprobs, excluded=excluded, min_tokens=asked.min_tokens,
                ignore_eos=asked.ignore_eos, constraint=grammars[place], prediction=asked.prediction,
            )
            for place, (prompt, room) in enumerate(zip(asked.prompts, rooms, strict=True))
            for sample in range(asked.n)
        ]  # fmt: skip

    def _grammar(self, asked: Asked, prompt: Prompt) -> Grammar | None:
        """The grammar of an answer, after any thinking."""
        if asked.constraint is None:
            return None
        return self.grammars.grammar(asked.constraint, not prompt.continued, prompt.think_tokens, prompt.thinks)

    async def close(self) -> None:
        """Cancel all answers and end the threads."""
        self.draining = True
        await asyncio.to_thread(self._thread.close)
        self._workers.shutdown(wait=False, cancel_futures=True)


class _Submission:
    """Requests that one thread submits to the engine and another may cancel."""

    def __init__(self, thread: EngineThread, key: str) -> None:
        self._thread, self._key, self._lock = thread, key, threading.Lock()
        self._handles, self._cancelled = list[Handle](), False

    def submit(self, requests: Sequence[Request], put: Callable[[int, Event], None]) -> None:
        """Submit the requests; `put` gets each event with its answer's index. If one raises InputError, none stays."""
        try:
            for place, request in enumerate(requests):
                with self._lock:
                    if self._cancelled:
                        return
                    self._handles.append(self._thread.submit(request, partial(put, place), key=self._key, begin=False))
        except InputError:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Cancel all of them."""
        with self._lock:
            self._cancelled = True
            for handle in self._handles:
                self._thread.cancel(handle)
