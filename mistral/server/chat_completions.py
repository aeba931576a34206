"""OpenAI's chat completions: POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mistral.grammar.constraint import Constraint
from mistral.server.answers import Answer, Answers, Piece
from mistral.server.asked import Asked, Choosing, read_choosing
from mistral.server.body import read_fields
from mistral.server.chat_asked import chat_asked
from mistral.server.exchange import Exchange, check_model, new_id, service_of
from mistral.server.fields import Fields, first_given
from mistral.server.service import Service
from mistral.server.settings import MAX_CHOICES, MAX_MESSAGES, MAX_TOP, Defaults
from mistral.server.sse import DONE, Chunks, frame, told
from mistral.server.structure import read_constraint
from mistral.server.tool_choice import ToolChoice, read_tool_choice
from mistral.tokenizer.call_stream import CallPart
from mistral.version import __version__

FINGERPRINT = f"mistral-mindspore-{__version__}"
ARGUMENTS_PIECE = 64  # characters of a call's arguments in one frame
MAX_PREDICTION = 1 << 16  # ids, where nothing limits the context


@dataclass(frozen=True)
class ChatRequest:
    """The contents of a request's body."""

    messages: list[Any]
    choosing: Choosing
    tools: ToolChoice
    constraint: Constraint | None
    max_tokens: int | None
    n: int
    logprobs: bool
    top: int
    effort: str | None
    stream: bool
    include_usage: bool
    prediction: str = ""

    @classmethod
    def read(cls, fields: Fields, defaults: Defaults) -> ChatRequest:
        """Raises ApiError naming the field that is wrong."""
        fields.required("messages")
        refuse_silent_faults(fields)
        messages = fields.items("messages", MAX_MESSAGES)
        if fields.switch("continue_final_message") and fields.switch("add_generation_prompt"):
            raise fields.wrong("continue_final_message", "is the opposite of add_generation_prompt; leave one out")
        if fields.switch("continue_final_message") and messages and isinstance(messages[-1], dict):
            messages = [*messages[:-1], messages[-1] | {"prefix": True}]
        most = first_given(fields.whole("max_completion_tokens"), fields.whole("max_tokens"))
        logprobs, top = fields.switch("logprobs"), fields.whole("top_logprobs", 0, MAX_TOP)
        if top and not logprobs:
            raise fields.wrong("top_logprobs", "needs logprobs: true")
        options = fields.inner("stream_options")
        tools, constraint = read_tool_choice(fields), read_constraint(fields)
        if tools.must and constraint:
            raise fields.wrong("tool_choice", "wants a call, and another form of the answer is asked for")
        return cls(
            messages, read_choosing(fields, defaults), tools, constraint,
            defaults.max_tokens if most is None else most, fields.whole("n", 1, MAX_CHOICES) or 1, logprobs, top or 0,
            fields.text("reasoning_effort") or None, fields.switch("stream"),
            options is not None and options.switch("include_usage"), read_prediction(fields),
        )  # fmt: skip

    def asked(self, service: Service) -> Asked:
        """The answers that it asks for. Takes a while where texts are long. Raises InputError."""
        made = chat_asked(service, self, self.n, self.logprobs, self.top)
        return replace(made, prediction=self._predicted(service))

    def _predicted(self, service: Service) -> tuple[int, ...]:
        """The ids of the prediction, cut to the length that can be used."""
        if not self.prediction:
            return ()
        limit = service.engine.context_limit or MAX_PREDICTION
        return tuple(service.tokenizer.encode(self.prediction, bos=False)[:limit])


def refuse_silent_faults(fields: Fields) -> None:
    """Raise ApiError for fields that must not be ignored, since the answer would silently lack what they ask for."""
    for name in ("functions", "function_call"):
        if fields.has(name):
            raise fields.wrong(name, "is the form before tools; give tools and tool_choice")
    if any(each != "text" for each in fields.texts("modalities")):
        raise fields.wrong("modalities", "must be text: the model writes nothing else")


def read_prediction(fields: Fields) -> str:
    """The text of OpenAI's field `prediction`; "" without it."""
    given = fields.inner("prediction")
    if given is None:
        return ""
    given.choice("type", ("content",), "content")
    if isinstance(given.any("content"), str):
        return given.text("content")
    parts = [Fields(part, f"{given.name('content')}[{i}]") for i, part in enumerate(given.items("content"))]
    return "".join(part.text("text") for part in parts)


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    service, fields = service_of(request), await read_fields(request)
    check_model(service, fields)
    chat = await service.in_thread(lambda: ChatRequest.read(fields, service.settings.defaults), size=fields.size)
    asked = await service.in_thread(lambda: chat.asked(service), "messages")
    exchange = Exchange(request, asked, new_id("chatcmpl-"))
    writer = ChatWriter(service, exchange.id, chat.include_usage, chat.logprobs)
    if chat.stream:
        return await exchange.streamed(writer.frames)
    return await exchange.whole(writer.whole)


class ChatWriter:
    """Writes answers as chat completions, whole or in chunks."""

    def __init__(self, service: Service, response_id: str, include_usage: bool = False, logprobs: bool = False) -> None:
        self._service, self._id, self._usage, self._logprobs = service, response_id, include_usage, logprobs
        self._created = int(time.time())
        self._chunks = Chunks(self._head("chat.completion.chunk"), "choices", {"usage": None} if include_usage else {})

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id, "object": kind, "created": self._created, "model": self._service.name,
            "system_fingerprint": FINGERPRINT,
        }  # fmt: skip

    def whole(self, answers: Answers) -> dict[str, Any]:
        """The response with all choices."""
        choices = [self._choice(answer) for answer in answers.answers]
        return {**self._head("chat.completion"), "choices": choices, "usage": answers.usage.record()}

    def _choice(self, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [call.record() for call in answer.calls]
        if answer.thoughts:
            message["reasoning_content"] = answer.thoughts
        logprobs = None
        if self._logprobs:
            logprobs = {"content": self._service.token_texts.records(answer.logprobs, answer.begins), "refusal": None}
        return {
            "index": answer.index, "message": message, "logprobs": logprobs, "finish_reason": answer.finish_reason
        }  # fmt: skip

    async def frames(self, answers: Answers) -> AsyncGenerator[bytes]:
        """The chunks: role, contents and finish reason of each choice; then, if wanted, the usage."""
        for answer in answers.answers:
            yield self._chunk(answer.index, {"role": "assistant", "content": "", "refusal": None})
        async for part in told(answers.pieces(), self._deltas):
            yield part
        usage = b""
        if self._usage:
            usage = frame({**self._head("chat.completion.chunk"), "choices": [], "usage": answers.usage.record()})
        yield usage + DONE

    def _deltas(self, piece: Piece) -> list[bytes]:
        """The chunks of one piece: thinking, text, calls, and the end, each in its own chunk."""
        found, logprobs = [], None
        if self._logprobs and piece.logprobs:
            logprobs = {"content": self._service.token_texts.records(piece.logprobs, piece.begins), "refusal": None}
        if piece.thought:
            found.append(self._chunk(piece.index, {"reasoning_content": piece.thought}, logprobs))
            logprobs = None
        if piece.text or logprobs:
            found.append(self._chunk(piece.index, {"content": piece.text}, logprobs))
        for part in piece.parts:
            found += [self._chunk(piece.index, {"tool_calls": [delta]}) for delta in call_deltas(part)]
        if piece.finish_reason:
            found.append(self._chunk(piece.index, {}, None, piece.finish_reason))
        return found

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, reason: str | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._chunks.frame(choice)


def call_deltas(part: CallPart) -> list[dict[str, Any]]:
    """A part of a call as deltas: id and name with its first part, then its arguments."""
    function, number = {"name": part.name, "arguments": ""}, {"index": part.number}
    first: list[dict[str, Any]] = [{**number, "id": part.id, "type": "function", "function": function}]
    pieces = argument_pieces(part.arguments)
    return [*(first if part.id else ()), *({**number, "function": {"arguments": piece}} for piece in pieces)]


def argument_pieces(arguments: str) -> list[str]:
    """The text of a call's arguments in pieces of limited length."""
    return [arguments[i : i + ARGUMENTS_PIECE] for i in range(0, len(arguments), ARGUMENTS_PIECE)]
