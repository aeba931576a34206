"""The application: its routes and error handlers. Read `run.py` next."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mistral.server.api_error import ApiError
from mistral.server.chat_completions import chat_completions
from mistral.server.completions import completions
from mistral.server.fim import fim_completions
from mistral.server.guard import Guard
from mistral.server.messages import batches, count_tokens, messages
from mistral.server.models import embeddings, health, metrics, model, models
from mistral.server.openapi import openapi
from mistral.server.page_file import page
from mistral.server.responses import response_by_id, responses
from mistral.server.service import Service
from mistral.server.sse import ClientGoneError
from mistral.server.tokenize import detokenize, tokenize, tokenizer_info

Endpoint = Callable[[Request], Awaitable[Response]]
POSTS: dict[str, Endpoint] = {
    "/v1/chat/completions": chat_completions, "/v1/completions": completions, "/v1/fim/completions": fim_completions,
    "/v1/embeddings": embeddings, "/v1/messages": messages, "/v1/messages/count_tokens": count_tokens,
    "/v1/messages/batches": batches, "/v1/responses": responses, "/tokenize": tokenize, "/detokenize": detokenize,
}  # fmt: skip
GETS: dict[str, Endpoint] = {
    "/": page, "/health": health, "/metrics": metrics, "/v1/models": models, "/v1/models/{name:path}": model,
    "/v1/responses/{name}": response_by_id, "/tokenizer_info": tokenizer_info, "/openapi.json": openapi,
}  # fmt: skip
GONE = 499  # what the log has for a client that went before its answer was there


def build_app(service: Service) -> ASGIApp:
    """The application over a model."""
    routes = [Route(path, endpoint, methods=["POST"]) for path, endpoint in POSTS.items()]
    routes += [Route(path, endpoint, methods=["GET"]) for path, endpoint in GETS.items()]
    app = Starlette(
        routes=routes,
        exception_handlers={
            ApiError: told, HTTPException: not_found, ClientDisconnect: nobody, ClientGoneError: nobody,
            Exception: fault,
        },
    )  # fmt: skip
    app.router.redirect_slashes = False  # an answer, not a second request
    app.state.service = service
    settings = service.settings
    guarded: ASGIApp = Guard(app, settings, service.metrics, service.log, [*POSTS, *GETS])
    if settings.cors:
        guarded = CORSMiddleware(
            guarded, allow_origins=settings.cors, allow_methods=["GET", "POST"], allow_headers=["*"], max_age=600
        )
    return guarded


async def told(request: Request, error: Exception) -> Response:
    """The response for an ApiError, in the format of the caller's interface."""
    assert isinstance(error, ApiError)
    return JSONResponse(error.envelope(request.url.path), error.status, error.headers)


async def not_found(request: Request, error: Exception) -> Response:
    """The response for an unknown path or method."""
    assert isinstance(error, HTTPException)
    what = "takes no such method" if error.status_code == 405 else "is not here; docs/SERVER.md lists what is"
    told_error = ApiError(error.status_code, f"{request.method} {request.url.path[:200]} {what}")
    return JSONResponse(told_error.envelope(request.url.path), error.status_code, error.headers)


async def nobody(request: Request, error: Exception) -> Response:
    """A placeholder response for a client that has disconnected: it is not sent."""
    request.scope["state"]["gone"] = True
    return Response(status_code=GONE)


async def fault(request: Request, error: Exception) -> Response:
    """The response for an internal error."""
    failed = ApiError(500, "the server has failed over this request; its log says where", code="internal_error")
    return JSONResponse(failed.envelope(request.url.path), 500)
