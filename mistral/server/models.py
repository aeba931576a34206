"""The model and its state: /v1/models, /health, /metrics; and endpoints that are not supported."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mistral.server.api_error import ApiError
from mistral.server.exchange import service_of
from mistral.server.metrics import CONTENT_TYPE
from mistral.server.service import Service


async def models(request: Request) -> Response:
    """The list of models, which has one, in the common format of OpenAI, Anthropic and Mistral."""
    service = service_of(request)
    name, found = service.name, card(service, "anthropic-version" in request.headers)
    return JSONResponse({"object": "list", "data": [found], "has_more": False, "first_id": name, "last_id": name})


async def model(request: Request) -> Response:
    """One model by its name."""
    service, name = service_of(request), request.path_params["name"]
    if name != service.name:
        raise ApiError(404, f"the model {name[:100]!r} is not here; {service.name!r} is", "model", "model_not_found")
    return JSONResponse(card(service, "anthropic-version" in request.headers))


def card(service: Service, anthropic: bool) -> dict[str, Any]:
    """The properties of the model; Anthropic's and Mistral's clients expect different values of `type`."""
    tokenizer = service.tokenizer
    made = datetime.fromtimestamp(service.created, UTC).isoformat().replace("+00:00", "Z")
    can = {
        "completion_chat": tokenizer.can_chat, "completion_fim": tokenizer.fim is not None,
        "function_calling": tokenizer.tool_tokens is not None, "fine_tuning": False, "vision": False,
    }  # fmt: skip
    limit = service.engine.context_limit
    return {
        "id": service.name, "object": "model", "created": service.created, "owned_by": "mistral-mindspore",
        "max_model_len": limit, "max_context_length": limit or 0, "capabilities": can,
        "reasoning_efforts": list(service.efforts),
        "type": "model" if anthropic else "base", "display_name": service.name, "created_at": made,
    }  # fmt: skip


async def health(request: Request) -> Response:
    """200 while requests are accepted, 503 if the server is shutting down or its engine has failed."""
    service = service_of(request)
    status = "ok" if service.alive else "draining" if service.draining else "failed"
    return JSONResponse({"status": status}, 200 if service.alive else 503)


async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    return Response(service_of(request).metrics.text(), headers={"content-type": CONTENT_TYPE})


async def embeddings(request: Request) -> Response:
    """There are none."""
    raise ApiError(
        501, "this server has no embeddings: its model writes text, and was not trained to compare texts",
        code="not_supported",
    )  # fmt: skip
