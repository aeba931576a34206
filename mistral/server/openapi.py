"""A description of the main operations, for programs: /openapi.json."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mistral.server.settings import MAX_CHOICES, MAX_TOP
from mistral.version import __version__

TEXT, SWITCH, OBJECT = {"type": "string"}, {"type": "boolean"}, {"type": "object"}
SEED = {"type": "integer", "minimum": -1, "maximum": 2**63 - 1}
COUNT = {"type": "integer", "minimum": 0, "maximum": 64}
TEXTS = {"anyOf": [TEXT, {"type": "array", "items": TEXT, "maxItems": 4}]}
PART = {"type": "object", "properties": {"type": {"enum": ["text"]}, "text": TEXT}, "required": ["type", "text"]}
CONTENT = {"anyOf": [TEXT, {"type": "array", "items": PART, "minItems": 1}]}
TURN = {
    "type": "object", "required": ["role", "content"],
    "properties": {"role": {"enum": ["user", "assistant"]}, "content": CONTENT},
}  # fmt: skip
CHOOSING: dict[str, Any] = {
    "model": TEXT, "stream": SWITCH, "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
}  # fmt: skip
OPENAI: dict[str, Any] = {
    **CHOOSING, "max_tokens": COUNT, "n": {"type": "integer", "minimum": 1, "maximum": MAX_CHOICES}, "seed": SEED,
    "stop": TEXTS, "min_tokens": COUNT, "ignore_eos": SWITCH, "logit_bias": OBJECT,
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
}  # fmt: skip
BODIES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "/v1/chat/completions": (
        "Answer a conversation, as OpenAI's interface has it",
        {
            **OPENAI, "messages": {"type": "array", "items": TURN, "minItems": 1}, "logprobs": SWITCH,
            "top_logprobs": {"type": "integer", "minimum": 0, "maximum": MAX_TOP}, "tools": {"type": "array"},
            "tool_choice": {}, "parallel_tool_calls": SWITCH, "response_format": OBJECT,
            "max_completion_tokens": COUNT, "stream_options": OBJECT,
        },
        ["messages"],
    ),
    "/v1/completions": (
        "Continue texts, as OpenAI's interface has it",
        {
            **OPENAI, "prompt": TEXTS, "suffix": TEXT, "echo": SWITCH,
            "best_of": {"type": "integer", "minimum": 1, "maximum": MAX_CHOICES},
            "logprobs": {"type": "integer", "minimum": 0, "maximum": MAX_TOP},
        },
        ["prompt"],
    ),
    "/v1/messages": (
        "Answer a conversation, as Anthropic's interface has it",
        {
            **CHOOSING, "messages": {"type": "array", "items": TURN, "minItems": 1}, "system": CONTENT,
            "max_tokens": {"type": "integer", "minimum": 1, "maximum": 64}, "tools": {"type": "array"},
            "stop_sequences": {"type": "array", "items": TEXT}, "top_k": COUNT, "tool_choice": OBJECT,
        },
        ["messages", "max_tokens"],
    ),
    "/v1/responses": (
        "Answer a conversation, as OpenAI's responses have it; nothing is kept",
        {
            **CHOOSING, "input": {"anyOf": [TEXT, {"type": "array", "items": TURN, "minItems": 1}]},
            "instructions": TEXT, "max_output_tokens": {"type": "integer", "minimum": 1, "maximum": 64},
            "tools": {"type": "array"}, "tool_choice": {}, "text": OBJECT, "reasoning": OBJECT,
        },
        ["input"],
    ),
}  # fmt: skip
STATUSES = {
    "200": "The answer, whole or as server-sent events", "400": "A field is wrong; the message names it",
    "401": "The API key is missing or wrong", "403": "The Host is not this machine", "404": "There is no such model",
    "408": "The body came too slowly", "413": "The body is too large", "429": "The queue is full; see Retry-After",
    "500": "The engine has failed over this request", "501": "The model cannot do this",
    "503": "The server is ending; see Retry-After",
}  # fmt: skip


def description() -> dict[str, Any]:
    """The document."""
    paths = {path: {"post": _operation(path, *body)} for path, body in BODIES.items()}
    info = {"title": "mistral-mindspore", "version": __version__}
    return {"openapi": "3.1.0", "info": info, "paths": paths}


def _operation(path: str, summary: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required}
    responses: dict[str, Any] = {
        status: {"description": what, "content": {"application/json": {"schema": OBJECT}}}
        for status, what in STATUSES.items()
    }
    responses["200"]["content"]["text/event-stream"] = {}
    return {
        "operationId": path.removeprefix("/v1/").replace("/", "_"),
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": responses,
    }


async def openapi(request: Request) -> Response:
    """The document."""
    return JSONResponse(description())
