"""Anthropic's messages: POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mistral.grammar.constraint import Constraint
from mistral.server.anthropic_input import conversation, read_tools, tool_choice
from mistral.server.api_error import ApiError
from mistral.server.asked import Asked, Choosing, read_choosing
from mistral.server.body import read_fields
from mistral.server.chat_asked import chat_asked
from mistral.server.exchange import Exchange, check_model, new_id, service_of
from mistral.server.fields import Fields
from mistral.server.messages_writer import MessageWriter, error_frame
from mistral.server.service import Service
from mistral.server.settings import Defaults
from mistral.server.structure import read_format
from mistral.server.tool_choice import ToolChoice


@dataclass(frozen=True)
class MessagesRequest:
    """The contents of a request's body; `messages` are those of chat completions."""

    messages: list[dict[str, Any]]
    choosing: Choosing
    tools: ToolChoice
    constraint: Constraint | None
    max_tokens: int | None
    effort: str | None
    stream: bool

    @classmethod
    def read(cls, fields: Fields, defaults: Defaults, efforts: Sequence[str], counted: bool = False) -> MessagesRequest:
        """`efforts`: how long the model can be told to think; `counted`: tokens are counted, and nothing is answered.

        Raises ApiError naming the field that is wrong.
        """
        if not counted:
            fields.required("max_tokens")
        fields.items("stop_sequences")  # a list, where others take a text as well
        tools = tool_choice(fields, read_tools(fields))
        formed = fields.inner("output_config")
        form = formed.inner("format") if formed else fields.inner("output_format")
        return cls(
            conversation(fields), read_choosing(fields, defaults, stop="stop_sequences"), tools,
            read_format(form) if form else None, fields.whole("max_tokens", 1), thinking(fields, efforts),
            fields.switch("stream"),
        )  # fmt: skip

    def asked(self, service: Service) -> Asked:
        """The answer that it asks for. Takes a while where texts are long. Raises InputError."""
        return chat_asked(service, self)


def thinking(fields: Fields, efforts: Sequence[str]) -> str | None:
    """The reasoning effort for the request's `thinking`; None if the model's template has none."""
    config = fields.inner("thinking")
    if config is None:
        return None
    kind = config.choice("type", ("enabled", "disabled", "adaptive"), "")
    wanted = "none" if kind == "disabled" else "high"
    return wanted if wanted in efforts else None


async def messages(request: Request) -> Response:
    """Answer a conversation."""
    service, fields = service_of(request), await read_fields(request)
    check_model(service, fields)
    defaults, efforts, size = service.settings.defaults, service.efforts, fields.size
    wanted = await service.in_thread(lambda: MessagesRequest.read(fields, defaults, efforts), size=size)
    asked = await service.in_thread(lambda: wanted.asked(service), "messages")
    exchange = Exchange(request, asked, new_id("msg_"))
    writer = MessageWriter(service, exchange.id)
    if wanted.stream:
        return await exchange.streamed(writer.frames, error_frame)
    return await exchange.whole(writer.whole)


async def count_tokens(request: Request) -> Response:
    """Tokens of a conversation, as `messages` would read it."""
    service, fields = service_of(request), await read_fields(request)
    check_model(service, fields)
    defaults = service.settings.defaults
    wanted = await service.in_thread(lambda: MessagesRequest.read(fields, defaults, service.efforts, counted=True))
    asked = await service.in_thread(lambda: wanted.asked(service), "messages")
    return JSONResponse({"input_tokens": len(asked.prompts[0].ids)})


async def batches(request: Request) -> Response:
    """Batches are not supported."""
    raise ApiError(501, "batches are not kept; send each request by itself", code="not_supported")
