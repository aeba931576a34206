"""OpenAI's responses: POST /v1/responses. Nothing is stored: each request has the whole conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mistral.grammar.constraint import Constraint
from mistral.server.api_error import ApiError
from mistral.server.asked import Asked, Choosing, read_choosing
from mistral.server.body import read_fields
from mistral.server.chat_asked import chat_asked
from mistral.server.exchange import Exchange, check_model, new_id, service_of
from mistral.server.fields import Fields
from mistral.server.responses_input import conversation
from mistral.server.responses_writer import ResponseWriter
from mistral.server.service import Service
from mistral.server.settings import MAX_TOOLS, MAX_TOP, Defaults
from mistral.server.structure import read_format
from mistral.server.tool_choice import ToolChoice, read_tool_choice

LOGPROBS = "message.output_text.logprobs"  # what `include` has where log-probabilities are wanted


@dataclass(frozen=True)
class ResponsesRequest:
    """The contents of a request's body; `messages` are those of chat completions."""

    fields: Fields
    messages: list[dict[str, Any]]
    choosing: Choosing
    tools: ToolChoice
    constraint: Constraint | None
    max_tokens: int | None
    logprobs: bool
    top: int
    effort: str | None
    stream: bool

    @classmethod
    def read(cls, fields: Fields, defaults: Defaults, efforts: Sequence[str]) -> ResponsesRequest:
        """`efforts`: how long the model can be told to think. Raises ApiError naming the field that is wrong."""
        for name in ("previous_response_id", "conversation", "prompt"):
            if fields.has(name):
                raise fields.wrong(name, "nothing is kept here; send the whole conversation as input")
        if fields.switch("background"):
            raise fields.wrong("background", "nothing is kept here; leave it out")
        entries = fields.items("tools", MAX_TOOLS)
        if any(isinstance(tool, dict) and tool.get("type") != "function" for tool in entries):
            raise fields.wrong("tools", "must be functions: this server has no tools of its own")
        table = {**fields.table, "tools": [_without_type(tool) for tool in entries]}
        text = fields.inner("text")
        form = text.inner("format") if text else None
        top = fields.whole("top_logprobs", 0, MAX_TOP)
        most = fields.whole("max_output_tokens", 1)
        return cls(
            fields, conversation(fields), read_choosing(fields, defaults), read_tool_choice(Fields(table)),
            read_format(form) if form else None, defaults.max_tokens if most is None else most,
            bool(top) or LOGPROBS in fields.items("include"), top or 0, effort(fields, efforts),
            fields.switch("stream"),
        )  # fmt: skip

    def asked(self, service: Service) -> Asked:
        """The answer that it asks for. Takes a while where texts are long. Raises InputError."""
        return chat_asked(service, self, 1, self.logprobs, self.top)


def _without_type(tool: object) -> object:
    """A tool in the format of chat completions."""
    if not isinstance(tool, dict):
        return tool
    return {name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None}


def effort(fields: Fields, efforts: Sequence[str]) -> str | None:
    """The template's value for the requested reasoning effort; None if it has no such setting."""
    reasoning = fields.inner("reasoning")
    wanted = reasoning.text("effort") if reasoning else ""
    if not wanted or not efforts:
        return None
    return wanted if wanted in efforts else "none" if wanted in ("minimal", "low") else efforts[-1]


async def responses(request: Request) -> Response:
    """Answer a conversation."""
    service, fields = service_of(request), await read_fields(request)
    check_model(service, fields)
    defaults, efforts, size = service.settings.defaults, service.efforts, fields.size
    wanted = await service.in_thread(lambda: ResponsesRequest.read(fields, defaults, efforts), size=size)
    asked = await service.in_thread(lambda: wanted.asked(service), "input")
    exchange = Exchange(request, asked, new_id("resp_"))
    writer = ResponseWriter(service, exchange.id, wanted.fields, asked)
    if wanted.stream:
        return await exchange.streamed(writer.frames, writer.error_frame)
    return await exchange.whole(writer.whole)


async def response_by_id(request: Request) -> Response:
    """Responses are not stored."""
    raise ApiError(404, "no response is kept here; ask again with the whole conversation", code="response_not_found")
