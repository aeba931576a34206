"""Answers that are being generated: an engine's events to pieces for the caller."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mistral.engine.requests import Event, Generated, Prefilled
from mistral.llm.completion import TokenLogprob
from mistral.llm.partial_completion import Prompt
from mistral.server.api_error import ApiError, unavailable
from mistral.server.asked import Asked
from mistral.server.mailbox import Inbox
from mistral.server.metrics import Metrics
from mistral.server.settings import KEEP_ALIVE_SECONDS
from mistral.tokenizer.call_stream import CallPart
from mistral.tokenizer.messages import ToolCall
from mistral.tokenizer.streaming import TextStream
from mistral.tokenizer.thoughts import ThinkState
from mistral.tokenizer.tokenizer import Tokenizer
from mistral.tokenizer.tool_calls import ReplyStream

PATIENCE = 256  # tokens of an answer that nobody watches, after which it is looked at: then no look takes long
CALLS = "tool_calls"  # why an answer ends that asks for calls


@dataclass(frozen=True)
class Piece:
    """What one or several steps add to an answer, in whole characters. Only the last piece has a finish_reason.

    parts: of tool calls. begins: it has the first token of a new text.
    """

    index: int
    text: str = ""
    thought: str = ""
    parts: tuple[CallPart, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    begins: bool = False

    def goes_before(self, other: Piece) -> bool:
        """Whether two pieces can be joined: thinking, then text, then calls."""
        return not (other.thought and (self.text or self.parts)) and not (other.text and self.parts)

    def __add__(self, other: Piece) -> Piece:
        """This piece and the one that follows it in the same answer."""
        return Piece(
            self.index, self.text + other.text, self.thought + other.thought, self.parts + other.parts,
            self.logprobs + other.logprobs, other.finish_reason, self.begins,
        )  # fmt: skip


@dataclass(frozen=True)
class Usage:
    """Numbers of tokens: of prompts, of these the cached ones, of answers, and of these the ones of thinking.

    accepted, rejected: draft tokens.
    """

    prompt: int
    cached: int
    answer: int
    thoughts: int
    accepted: int = 0
    rejected: int = 0

    def record(self) -> dict[str, object]:
        """As OpenAI writes it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.answer,
            "total_tokens": self.prompt + self.answer,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {
                "reasoning_tokens": self.thoughts,
                "accepted_prediction_tokens": self.accepted,
                "rejected_prediction_tokens": self.rejected,
            },
        }


class Answer:
    """One answer so far."""

    def __init__(self, tokenizer: Tokenizer, asked: Asked, prompt: Prompt, index: int) -> None:
        self.prompt, self.index, self.one_call = prompt, index, asked.one_call
        self.text = self.thoughts = ""
        self.calls: tuple[ToolCall, ...] = ()
        self.finish_reason: str | None = None
        self.ids, self.logprobs = list[int](), list[TokenLogprob]()
        self.prompt_logprobs = list[float]()
        self.prompt_tops = list[tuple[tuple[int, float], ...]]()
        self.thought_tokens = self.cached = self.accepted = self.rejected = 0
        self.begun = False
        self.stream: TextStream | None = None
        self._reply: ReplyStream | None = None
        self._thinking = ThinkState(tokenizer.think_tokens if asked.is_chat else None, prompt.thinks)
        if asked.is_chat:
            salt = prompt.ids if prompt.tools else ()
            self._reply = ReplyStream(tokenizer, prompt.tools, (), prompt.thinks, bool(prompt.tools), salt)
        self._told = dict[int, str]()  # arguments by call, as far as pieces have them

    @property
    def begins(self) -> bool:
        """Whether the answer is a new text, and does not continue its prompt's."""
        return not self.prompt.continued

    @property
    def stop(self) -> str | None:
        """The stop text that ended the answer; None if there was none."""
        return self.stream.stopped_by if self.stream else None

    def read(self, event: Prefilled) -> None:
        """Note that a part of the prompt has been read."""
        self.cached = event.cached
        self.prompt_logprobs += event.logprobs
        self.prompt_tops += event.tops

    def add(self, events: Sequence[Generated]) -> list[Piece]:
        """Process steps of the answer -> what they add, in as few pieces as possible."""
        pieces = list[Piece]()
        for piece in map(self._piece, events) if self._reply else (self._text(events),):
            if pieces and piece and pieces[-1].goes_before(piece):
                pieces[-1] += piece
            elif piece:
                pieces.append(piece)
        return pieces

    def _text(self, events: Sequence[Generated]) -> Piece | None:
        """What steps add to an answer that is nothing but text."""
        begins, logprobs = self.begins and not self.ids, self._note(events)
        text, finish = "".join([event.text for event in events]), events[-1].finish_reason
        self.text, self.finish_reason = self.text + text, finish
        return Piece(self.index, text, "", (), logprobs, finish, begins) if text or logprobs or finish else None

    def _piece(self, event: Generated) -> Piece | None:
        """What a step adds to an answer of a conversation, None where that is nothing yet."""
        assert self._reply
        begins, logprobs = self.begins and not self.ids, self._note((event,))
        text, calls = self._reply.push(event.id, event.text), tuple[ToolCall, ...]()
        finish: str | None = event.finish_reason
        thought, parts = self._reply.thought, self._parts(self._reply.call_parts)
        if event.finish_reason is not None:
            more, reply = self._reply.finish()
            text, calls = text + more, reply.calls[:1] if self.one_call else reply.calls
            finish = CALLS if calls and event.finish_reason == "stop" else event.finish_reason
            parts += self._parts(
                CallPart(i, call.id, call.name, call.arguments[len(self._told.get(i, "")) :])
                for i, call in enumerate(calls)
            )
        self.text, self.thoughts, self.calls = self.text + text, self.thoughts + thought, self.calls + calls
        self.finish_reason = finish
        if not (text or thought or parts or logprobs or finish):
            return None
        return Piece(self.index, text, thought, tuple(parts), logprobs, finish, begins)

    def _note(self, events: Sequence[Generated]) -> tuple[TokenLogprob, ...]:
        """Count the tokens of steps -> what is told of each."""
        ids = [event.id for event in events if event.id is not None]
        self.ids += ids
        if self._thinking.tokens:
            for token_id in ids:
                self.thought_tokens += self._thinking.inside
                self._thinking.push(token_id)
        for event in [event for event in events if event.accepted or event.rejected]:
            self.accepted, self.rejected = self.accepted + event.accepted, self.rejected + event.rejected
        logprobs = tuple(
            TokenLogprob(event.id, event.logprob, event.top)
            for event in events
            if event.logprob is not None and event.id is not None
        )
        self.logprobs += logprobs
        return logprobs

    def _parts(self, found: Iterable[CallPart]) -> list[CallPart]:
        """Those that are to be told, each with the name of its call when it is the first of it."""
        told = list[CallPart]()
        for part in found:
            if self.one_call and part.number:
                continue
            if part.number in self._told:
                part = CallPart(part.number, arguments=part.arguments)
            self._told[part.number] = self._told.get(part.number, "") + part.arguments
            told += [part] * bool(part.id or part.arguments)
        return told


class Answers:
    """All answers of a request; answer i is sample i % n of prompt i // n."""

    def __init__(self, tokenizer: Tokenizer, asked: Asked, metrics: Metrics) -> None:
        self.asked, self._metrics = asked, metrics
        prompts = [prompt for prompt in asked.prompts for _ in range(asked.n)]
        self.answers = [Answer(tokenizer, asked, prompt, index) for index, prompt in enumerate(prompts)]
        self.inbox = Inbox()
        self._failure: ApiError | None = None
        self._open, self._begun = len(self.answers), time.perf_counter()
        self._last = self._begun

    @property
    def unfinished(self) -> Sequence[Answer]:
        """The answers that have not ended."""
        return [answer for answer in self.answers if answer.finish_reason is None]

    async def whole(self) -> None:
        """Wait for the end of all answers. Raises ApiError if one of them fails."""
        async for _ in self.pieces():
            if all(answer.ids for answer in self.answers):  # when the first tokens came has been noted
                self.inbox.patience = PATIENCE

    async def pieces(self) -> AsyncGenerator[Sequence[Piece]]:
        """What has come since the last time; nothing where that took long. Raises ApiError for a failure."""
        try:
            while self._open:
                events = await self.inbox.take(KEEP_ALIVE_SECONDS)
                pieces = self._read(events)
                if pieces or not events:
                    yield pieces
                if self._failure:
                    raise self._failure
        finally:
            self.inbox.close()

    def _read(self, events: Sequence[tuple[int, Event]]) -> list[Piece]:
        """Take events, each with its answer's place -> what they add, up to the failure of an answer if one fails."""
        generated = dict[int, list[Generated]]()  # by the place of the answer
        for place, found in self._by_place(events).items():
            answer, reads = self.answers[place], 0
            if not answer.begun:
                answer.begun = True
                self._metrics.waiting.dec()
            while reads < len(found) and isinstance(event := found[reads], Prefilled):  # these come before all others
                answer.read(event)
                reads += 1
            steps: list[Generated] = found[reads:]  # type: ignore[assignment]
            if steps and steps[-1].finish_reason is not None:
                self._open -= 1
                self._failure = self._failure or self._failure_of(steps[-1])
                if self._failure:
                    steps.pop()
            if steps:
                generated[place] = steps
            if self._failure:
                break
        self._measure(generated)
        return [piece for place, steps in generated.items() for piece in self.answers[place].add(steps)]

    def _by_place(self, events: Sequence[tuple[int, Event]]) -> dict[int, list[Event]]:
        """The events of each answer, in their order."""
        if events and len(self.answers) == 1:
            return {0: [event for _, event in events]}
        found: dict[int, list[Event]] = {}
        for place, event in events:
            found.setdefault(place, []).append(event)
        return found

    def _failure_of(self, event: Generated) -> ApiError | None:
        if event.finish_reason == "error":
            self._metrics.failed.inc()
            return ApiError(500, str(event.error), code="engine_error")
        return unavailable("the server is ending") if event.finish_reason == "cancelled" else None

    def _measure(self, generated: Mapping[int, Sequence[Generated]]) -> None:
        """Note when tokens came: those that come together have each taken the same time."""
        tokens = sum(len(steps) - (steps[-1].id is None) for steps in generated.values())  # the last may have none
        if not tokens:
            return
        now, firsts = time.perf_counter(), sum(not self.answers[place].ids for place in generated)
        self._metrics.generated_tokens.inc(tokens)
        self._metrics.first.add(now - self._begun, firsts)
        self._metrics.next.add((now - self._last) / tokens, max(0, tokens - firsts))
        self._last = now

    @property
    def usage(self) -> Usage:
        """Tokens so far. A prompt with several answers counts once."""
        n = self.asked.n
        return Usage(
            sum(len(prompt.ids) for prompt in self.asked.prompts),
            sum(min(each.cached for each in self.answers[i : i + n]) for i in range(0, len(self.answers), n)),
            sum(len(answer.ids) for answer in self.answers),
            sum(answer.thought_tokens for answer in self.answers),
            sum(answer.accepted for answer in self.answers),
            sum(answer.rejected for answer in self.answers),
        )
