"""Answers as OpenAI's responses, whole or as a stream of events."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from mistral.llm.completion import TokenLogprob
from mistral.server.answers import Answer, Answers, Piece
from mistral.server.api_error import ApiError
from mistral.server.asked import Asked
from mistral.server.chat_completions import argument_pieces
from mistral.server.fields import Fields
from mistral.server.service import Service
from mistral.server.sse import frame, told
from mistral.text import parse_json
from mistral.tokenizer.call_stream import CallPart
from mistral.tokenizer.messages import ToolCall

Item = dict[str, Any]
SAME = ("instructions", "metadata", "tools", "tool_choice", "max_output_tokens", "top_logprobs", "user", "reasoning")


class ResponseWriter:
    """Writes one answer. In a stream, items follow each other: reasoning, text, calls."""

    def __init__(self, service: Service, response_id: str, fields: Fields, asked: Asked) -> None:
        self._service, self._id, self._fields, self._asked = service, response_id, fields, asked
        self._created, self._number = int(time.time()), -1
        self._items = list[Item]()  # those that are whole, in a stream
        self._open: Item | None = None
        self._logprobs = list[TokenLogprob]()  # of the item that is open

    # The response as a whole

    def whole(self, answers: Answers) -> dict[str, Any]:
        """The response with all its items."""
        return self._response(answers, items(self._service, self._id, answers.answers[0], self._asked.logprobs))

    def _response(self, answers: Answers, output: list[Item], begun: bool = False) -> dict[str, Any]:
        settings, cut = self._asked.settings, answers.answers[0].finish_reason == "length"
        same = {name: self._fields.any(name) for name in SAME}
        text = self._fields.any("text") or {"format": {"type": "text"}}
        return {
            "id": self._id, "object": "response", "created_at": self._created, "model": self._service.name,
            "status": "in_progress" if begun else "incomplete" if cut else "completed", "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None, "output": output, **same,
            "metadata": same["metadata"] or {}, "tools": same["tools"] or [],
            "tool_choice": same["tool_choice"] or "auto", "text": text,
            "parallel_tool_calls": not self._asked.one_call, "temperature": settings.temperature,
            "top_p": settings.top_p, "truncation": "disabled", "store": False, "background": False,
            "previous_response_id": None, "usage": None if begun else usage(answers),
        }  # fmt: skip

    # The stream

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return frame({"type": kind, "sequence_number": self._number, **fields}, kind)

    def error_frame(self, error: ApiError) -> bytes:
        """The event for an error in a stream."""
        return self._event("error", code=error.code, message=error.message, param=error.param)

    async def frames(self, answers: Answers) -> AsyncGenerator[bytes]:
        """The events, from response.created to response.completed."""
        begun = self._response(answers, [], begun=True)
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        async for part in told(answers.pieces(), self._of):
            yield part
        answer = answers.answers[0]
        if not self._items and self._open is None:
            for part in self._begun(message(self._id, "", "in_progress")):
                yield part
        for part in self._closed("incomplete" if answer.finish_reason == "length" else "completed"):
            yield part
        kind = "response.incomplete" if answer.finish_reason == "length" else "response.completed"
        yield self._event(kind, response=self._response(answers, self._items))

    def _of(self, piece: Piece) -> Iterator[bytes]:
        if piece.thought:
            if self._open is None or self._open["type"] != "reasoning":
                yield from self._closed()
                yield from self._begun(reasoning(self._id, "", "in_progress"))
            yield self._said("response.reasoning_text.delta", delta=piece.thought)
            self._content()["text"] += piece.thought
        if piece.text:
            if self._open is None or self._open["type"] != "message":
                yield from self._closed()
                yield from self._begun(message(self._id, "", "in_progress"))
            records = self._service.token_texts.records(piece.logprobs, piece.begins)
            yield self._said("response.output_text.delta", delta=piece.text, logprobs=records)
            self._content()["text"] += piece.text
            self._content()["logprobs"] += records
        for part in piece.parts:
            yield from self._call(part)

    def _content(self) -> Item:
        assert self._open
        found: Item = self._open["content"][0]
        return found

    def _begun(self, item: Item) -> Iterator[bytes]:
        self._open = item
        shown = {**item, "content": []}
        yield self._event("response.output_item.added", output_index=len(self._items), item=shown)
        yield self._said("response.content_part.added", part=dict(self._content()))

    def _said(self, kind: str, **fields: Any) -> bytes:
        assert self._open
        place = {"item_id": self._open["id"], "output_index": len(self._items), "content_index": 0}
        return self._event(kind, **place, **fields)

    def _closed(self, status: str = "completed") -> Iterator[bytes]:
        """The events that end the open item, if any."""
        if self._open is None:
            return
        item, place = self._open, {"item_id": self._open["id"], "output_index": len(self._items)}
        if item["type"] == "function_call":
            whole = {"arguments": item["arguments"], "name": item["name"]}
            yield self._event("response.function_call_arguments.done", **place, **whole)
            status = "completed" if _is_whole(item["arguments"]) else "incomplete"
        else:
            content = self._content()
            if item["type"] == "message":
                yield self._said("response.output_text.done", text=content["text"], logprobs=content["logprobs"])
            else:
                yield self._said("response.reasoning_text.done", text=content["text"])
            yield self._said("response.content_part.done", part=content)
        item["status"] = status
        yield self._event("response.output_item.done", output_index=len(self._items), item=item)
        self._items.append(item)
        self._open = None

    def _call(self, part: CallPart) -> Iterator[bytes]:
        if part.id:
            yield from self._closed()
            self._open = function_call(ToolCall(part.name, "", part.id)) | {"status": "in_progress"}
            shown = dict(self._open)
            yield self._event("response.output_item.added", output_index=len(self._items), item=shown)
        assert self._open
        place = {"item_id": self._open["id"], "output_index": len(self._items)}
        for text in argument_pieces(part.arguments):
            self._open["arguments"] += text
            yield self._event("response.function_call_arguments.delta", **place, delta=text)


def _is_whole(arguments: str) -> bool:
    """Whether a call is complete."""
    try:
        parse_json(arguments)
    except ValueError:
        return False
    return True


def items(service: Service, response_id: str, answer: Answer, logprobs: bool) -> list[Item]:
    """The items of an answer."""
    found, status = list[Item](), "incomplete" if answer.finish_reason == "length" else "completed"
    if answer.thoughts:
        found.append(reasoning(response_id, answer.thoughts, "completed"))
    if answer.text or not (answer.calls or answer.thoughts):
        said = message(response_id, answer.text, status)
        if logprobs:
            said["content"][0]["logprobs"] = service.token_texts.records(answer.logprobs, answer.begins)
        found.append(said)
    return found + [function_call(call) for call in answer.calls]


def message(response_id: str, text: str, status: str) -> Item:
    """An item of text."""
    content = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    item_id = response_id.replace("resp_", "msg_")
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": [content]}


def reasoning(response_id: str, text: str, status: str) -> Item:
    """An item of reasoning."""
    content = [{"type": "reasoning_text", "text": text}]
    item_id = response_id.replace("resp_", "rs_")
    return {"id": item_id, "type": "reasoning", "summary": [], "content": content, "status": status}


def function_call(call: ToolCall) -> Item:
    """An item of a tool call."""
    return {
        "id": f"fc_{call.id}", "type": "function_call", "call_id": call.id, "name": call.name,
        "arguments": call.arguments, "status": "completed",
    }  # fmt: skip


def usage(answers: Answers) -> dict[str, Any]:
    """The usage in the format of responses."""
    found = answers.usage
    return {
        "input_tokens": found.prompt,
        "input_tokens_details": {"cached_tokens": found.cached, "cache_write_tokens": 0},
        "output_tokens": found.answer, "output_tokens_details": {"reasoning_tokens": found.thoughts},
        "total_tokens": found.prompt + found.answer,
    }  # fmt: skip
