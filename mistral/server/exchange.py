"""One request and its response: the common part of all endpoints that generate answers."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mistral.server.answers import Answers
from mistral.server.api_error import ApiError
from mistral.server.asked import Asked
from mistral.server.fields import Fields
from mistral.server.service import Service
from mistral.server.sse import EventStream, frame, while_connected
from mistral.text import json_line

ANY_MODEL = "default"  # a name that stands for whichever model is served


def service_of(request: Request) -> Service:
    """The service of the application."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def check_model(service: Service, fields: Fields) -> None:
    """Raise ApiError for the name of another model; it may be left out."""
    name = fields.text("model", service.name)
    if name not in (service.name, ANY_MODEL, ""):
        raise ApiError(404, f"the model {name[:100]!r} is not here; {service.name!r} is", "model", "model_not_found")


def new_id(kind: str) -> str:
    """A unique id of a response."""
    return f"{kind}{random.getrandbits(96):024x}"


class Exchange:
    """A request for answers; `id` is that of the response."""

    def __init__(self, request: Request, asked: Asked, response_id: str) -> None:
        self.request, self.asked, self.id = request, asked, response_id
        self.service, self.state = service_of(request), request.scope["state"]
        self.state["id"] = response_id

    async def whole(self, record: Callable[[Answers], dict[str, Any]]) -> Response:
        """The whole response. Raises ApiError, and ClientGoneError if the client has disconnected."""
        async with self.service.answering(self.asked, self.key) as answers:
            await while_connected(self.request.receive, answers.whole())
            self._note(answers)
            return await self.service.in_thread(lambda: JSONResponse(record(answers)), size=4 * answers.usage.answer)

    async def streamed(
        self,
        frames: Callable[[Answers], AsyncGenerator[bytes]],
        on_error: Callable[[ApiError], bytes] | None = None,
    ) -> Response:
        """The streamed response. Raises ApiError for an invalid request."""
        stack = AsyncExitStack()
        answers = await stack.enter_async_context(self.service.answering(self.asked, self.key))
        stack.callback(self._note, answers)
        return EventStream(frames(answers), on_error or self._error_frame, stack)

    @property
    def key(self) -> str:
        """The key of the request's owner, for fair scheduling."""
        return str(self.state.get("key", ""))

    def _error_frame(self, error: ApiError) -> bytes:
        return frame(error.envelope(self.request.url.path))

    def _note(self, answers: Answers) -> None:
        usage = answers.usage
        self.state["tokens"] = f"{usage.prompt}+{usage.answer} tokens"
        if self.service.settings.log_prompts:
            tokenizer = self.service.tokenizer
            texts = {
                "prompts": [tokenizer.decode(prompt.ids) for prompt in self.asked.prompts],
                "answers": [answer.text for answer in answers.answers],
            }
            self.service.log.say(f"{self.id} {json_line(texts)}", most=1 << 20)
