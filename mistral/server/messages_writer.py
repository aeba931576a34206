"""Answers as Anthropic's messages, whole or as a stream of blocks."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from mistral.server.answers import CALLS, Answer, Answers, Piece
from mistral.server.api_error import ApiError
from mistral.server.chat_completions import argument_pieces
from mistral.server.service import Service
from mistral.server.sse import frame, told

Block = dict[str, Any]


def error_frame(error: ApiError) -> bytes:
    """The event for an error in a stream."""
    return frame(error.envelope("/v1/messages"), "error")


class MessageWriter:
    """Writes one answer."""

    def __init__(self, service: Service, response_id: str) -> None:
        self._service, self._id = service, response_id
        self._kind = ""  # of the block that is open in a stream
        self._index = -1

    def whole(self, answers: Answers) -> dict[str, Any]:
        """The message with all its blocks."""
        answer = answers.answers[0]
        blocks = list[Block]()
        if answer.thoughts:
            blocks.append({"type": "thinking", "thinking": answer.thoughts, "signature": ""})
        if answer.text or not (answer.calls or answer.thoughts):
            blocks.append({"type": "text", "text": answer.text})
        for call in answer.calls:
            blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)})
        return {**self._message(answers), "content": blocks, **reasons(answer)}

    def _message(self, answers: Answers) -> dict[str, Any]:
        return {
            "id": self._id, "type": "message", "role": "assistant", "model": self._service.name, "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": usage(answers),
        }  # fmt: skip

    async def frames(self, answers: Answers) -> AsyncGenerator[bytes]:
        """The events: start of the message, its blocks in order, and its end."""
        yield event("message_start", message=self._message(answers))
        yield event("ping")
        async for part in told(answers.pieces(), self._of):
            yield part
        answer = answers.answers[0]
        if self._index < 0:
            for part in self._delta("text", {"type": "text", "text": ""}):
                yield part
        for part in self._closed():
            yield part
        yield event("message_delta", delta=reasons(answer), usage=usage(answers))
        yield event("message_stop")

    def _of(self, piece: Piece) -> Iterator[bytes]:
        if piece.thought:
            opened: Block = {"type": "thinking", "thinking": "", "signature": ""}
            yield from self._delta("thinking", opened, {"type": "thinking_delta", "thinking": piece.thought})
        if piece.text:
            yield from self._delta("text", {"type": "text", "text": ""}, {"type": "text_delta", "text": piece.text})
        for part in piece.parts:
            begun: Block = {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
            if part.id:
                yield from self._closed()
                yield from self._delta("tool_use", begun)
            for text in argument_pieces(part.arguments):
                yield from self._delta("tool_use", begun, {"type": "input_json_delta", "partial_json": text})

    def _delta(self, kind: str, begun: Block, delta: Block | None = None) -> Iterator[bytes]:
        """The events for a part of a block; a part of another kind ends the open block and starts a new one."""
        if self._kind != kind:
            yield from self._closed()
            self._kind, self._index = kind, self._index + 1
            yield event("content_block_start", index=self._index, content_block=begun)
        if delta:
            yield event("content_block_delta", index=self._index, delta=delta)

    def _closed(self) -> Iterator[bytes]:
        if self._kind == "thinking":
            yield event("content_block_delta", index=self._index, delta={"type": "signature_delta", "signature": ""})
        if self._kind:
            yield event("content_block_stop", index=self._index)
        self._kind = ""


def event(kind: str, **fields: Any) -> bytes:
    """An event, whose name is also its type."""
    return frame({"type": kind, **fields}, kind)


def reasons(answer: Answer) -> dict[str, Any]:
    """The stop reason of an answer, and the stop text that ended it, if any."""
    found = {"length": "max_tokens", CALLS: "tool_use"}.get(answer.finish_reason or "", "end_turn")
    if answer.stop is not None and found == "end_turn":
        return {"stop_reason": "stop_sequence", "stop_sequence": answer.stop}
    return {"stop_reason": found, "stop_sequence": None}


def usage(answers: Answers) -> dict[str, int]:
    """The usage; cached prompt tokens are counted separately."""
    found = answers.usage
    return {
        "input_tokens": found.prompt - found.cached, "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": found.cached, "output_tokens": found.answer,
    }  # fmt: skip
