"""Mistral's fill-in-the-middle: POST /v1/fim/completions. The response is that of a chat completion."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from mistral.llm.partial_completion import Prompt
from mistral.server.api_error import ApiError
from mistral.server.asked import Asked, read_choosing
from mistral.server.body import read_fields
from mistral.server.chat_completions import ChatWriter
from mistral.server.exchange import Exchange, check_model, new_id, service_of


async def fim_completions(request: Request) -> Response:
    """Write what is missing between two texts."""
    service, fields = service_of(request), await read_fields(request)
    check_model(service, fields)
    defaults = service.settings.defaults
    if service.tokenizer.fim is None:
        raise ApiError(501, f"the model {service.name!r} has no fill-in-the-middle", code="not_supported")
    fields.required("prompt")
    text, suffix, most = fields.text("prompt"), fields.text("suffix"), fields.whole("max_tokens")
    choosing, stream = read_choosing(fields, defaults), fields.switch("stream")
    ids = await service.in_thread(lambda: service.tokenizer.encode_fim(text, suffix), "prompt")
    asked = Asked(
        (Prompt("the prompt", ids, ids),), choosing.settings, defaults.max_tokens if most is None else most,
        choosing.stops, min_tokens=choosing.min_tokens, ignore_eos=choosing.ignore_eos,
    )  # fmt: skip
    exchange = Exchange(request, asked, new_id("fim-"))
    writer = ChatWriter(service, exchange.id, include_usage=True)
    if stream:
        return await exchange.streamed(writer.frames)
    return await exchange.whole(writer.whole)
