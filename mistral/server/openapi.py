"""The OpenAPI description of the main operations: /openapi.json.

The server accepts what it allows, and refuses what it forbids. Where a schema cannot express a rule, such as the name
of one of the tools or the role of the last message, it allows less than the server, and says so in words. It cannot
express the limits of the context and, for prompts times `n`, of the queue.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mistral.server.asked import PENALTY
from mistral.server.completions import MAX_PROMPTS
from mistral.server.exchange import service_of
from mistral.server.fields import MOST
from mistral.server.service import Service
from mistral.server.settings import MAX_CHOICES, MAX_MESSAGES, MAX_STOP, MAX_STOPS, MAX_TOOLS, MAX_TOP
from mistral.version import __version__

Schema = dict[str, Any]
TEXT, SWITCH, OBJECT = {"type": "string"}, {"type": "boolean"}, {"type": "object"}


def optional(schema: Schema) -> Schema:
    """An optional field, which may also be null."""
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    return {**schema, "type": [schema["type"], "null"]} if "type" in schema else {"anyOf": [schema, {"type": "null"}]}


def fields(required: tuple[str, ...] = (), **given: Schema) -> Schema:
    """An object with these fields, of which all but the required ones are optional."""
    properties = {name: schema if name in required else optional(schema) for name, schema in given.items()}
    return {"type": "object", "properties": properties, "required": list(required)}


def whole(least: int, most: int = MOST) -> Schema:
    """A whole number in a range."""
    return {"type": "integer", "minimum": least, "maximum": most}


def number(least: float, most: float) -> Schema:
    """A number in a range."""
    return {"type": "number", "minimum": least, "maximum": most}


def several(items: Schema, most: int | None = None, least: int = 0) -> Schema:
    """A list."""
    return {"type": "array", "items": items, "minItems": least} | ({} if most is None else {"maxItems": most})


def one_of(*words: str) -> Schema:
    """One of some words."""
    return {"enum": list(words)}


def below(limit: int) -> str:
    """A regular expression for the integers from 0 to below a limit, without leading zeros."""
    most = str(limit - 1)
    found = ["0", f"[1-9][0-9]{{0,{len(most) - 2}}}" if len(most) > 1 else "[1-9]"]
    for place, digit in enumerate(most):
        lowest, rest = "0" if place else "1", len(most) - place - 1
        if digit > lowest:
            found.append(f"{most[:place]}[{lowest}-{int(digit) - 1}][0-9]{{{rest}}}")
    return f"^({'|'.join(found)}|{most})$" if len(most) > 1 else f"^[0-{most}]$"


KINDS = one_of("text", "input_text", "output_text")
PART = {"type": "object", "properties": {"type": KINDS, "text": TEXT}, "required": ["text"]}
BLOCK = fields(("type", "text"), type=one_of("text"), text=TEXT)
STOP = {"type": "string", "maxLength": MAX_STOP}
TOOL_NAME = {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}
ROLES = "Beside the user's there may be messages of others, as the interface has them; the last is the user's."
CHOICES = "May be an object that names one of the tools, too, or ask for a call of any."
CHOOSING: Schema = {
    "model": TEXT, "stream": SWITCH, "temperature": number(0, 100), "top_p": number(0, 1), "top_k": whole(-1),
    "min_p": number(0, 1),
}  # fmt: skip


def openai(service: Service) -> Schema:
    """Fields that both of OpenAI's older interfaces have."""
    ids = below(service.engine.args.vocab_size)
    bias = {"type": "object", "patternProperties": {ids: number(-100, 100)}, "additionalProperties": False}
    stop = {"anyOf": [STOP, several(STOP, MAX_STOPS)]}
    return {
        **CHOOSING, "max_tokens": whole(0), "n": whole(1, MAX_CHOICES), "seed": whole(-(1 << 63), (1 << 64) - 1),
        "stop": stop, "logit_bias": bias,
        "presence_penalty": number(-PENALTY, PENALTY), "frequency_penalty": number(-PENALTY, PENALTY),
        "stream_options": fields(include_usage=SWITCH),
    }  # fmt: skip


def turns(content: Schema) -> Schema:
    """The messages of a conversation."""
    turn = fields(("role", "content"), role=one_of("user"), content={"anyOf": [TEXT, several(content, None, 1)]})
    return {**several(turn, MAX_MESSAGES, 1), "description": ROLES}


def tools(kind: str, parameters: str, inner: str | None = None, required: tuple[str, ...] = ("type",)) -> Schema:
    """Tools of a type; their names differ. `inner`: where the fields of one are, if not beside its type."""
    tool: Schema = {"name": TOOL_NAME, "description": TEXT, parameters: OBJECT}
    if inner is None:
        items = fields((*required, "name"), type=one_of(kind), **tool)
    else:
        items = fields((*required, inner), **{"type": one_of(kind), inner: fields(("name",), **tool)})
    return {**several(items), "uniqueItems": True, "description": f"{MAX_TOOLS} at most, each of another name."}


def formats(schema: Schema) -> Schema:
    """The form of an answer: any text, JSON, or JSON by a schema."""
    return {"anyOf": [
        fields(("type",), type=one_of("text")),
        fields(("type",), type=one_of("json_object")),
        {**schema, "properties": {"type": one_of("json_schema"), **schema["properties"]},
         "required": ["type", *schema["required"]]},
    ]}  # fmt: skip


def chat_completions(service: Service) -> Schema:
    """The body of a chat completion."""
    of_schema = fields(("json_schema",), json_schema=fields(("schema",), name=TEXT, schema=OBJECT, strict=SWITCH))
    body = fields(
        ("messages",), **openai(service), messages=turns({"anyOf": [TEXT, PART]}), logprobs=SWITCH,
        top_logprobs=whole(0, MAX_TOP), tools=tools("function", "parameters", "function", ()),
        tool_choice={**one_of("none", "auto"), "description": CHOICES}, parallel_tool_calls=SWITCH,
        response_format=formats(of_schema), max_completion_tokens=whole(0),
    )  # fmt: skip
    none = {"properties": {"top_logprobs": {"enum": [0, None]}}}
    return {**body, "anyOf": [none, {"properties": {"logprobs": {"const": True}}, "required": ["logprobs"]}]}


def completions(service: Service) -> Schema:
    """The body of a completion of texts. It may have `suffix` and `best_of`, too."""
    settings = service.settings
    most, ids = min(MAX_PROMPTS, settings.max_rows + settings.max_queue), whole(0, service.engine.args.vocab_size - 1)
    prompts = [TEXT, several(TEXT, most, 1), several(ids, None, 1), several(several(ids, None, 1), most, 1)]
    return fields(
        ("prompt",), **openai(service), prompt={"anyOf": prompts}, echo=SWITCH, logprobs=whole(0, MAX_TOP)
    )  # fmt: skip


def messages(service: Service) -> Schema:
    """The body of Anthropic's messages."""
    return fields(
        ("messages", "max_tokens"), **CHOOSING, messages=turns(BLOCK), max_tokens=whole(1),
        system={"anyOf": [TEXT, several(BLOCK)]}, stop_sequences=several(STOP, MAX_STOPS),
        tools=tools("custom", "input_schema", required=()),
        tool_choice={**fields(("type",), type=one_of("none", "auto"), disable_parallel_tool_use=SWITCH),
                     "description": CHOICES},
        thinking=fields(("type",), type=one_of("enabled", "disabled", "adaptive")),
    )  # fmt: skip


def responses(service: Service) -> Schema:
    """The body of OpenAI's responses."""
    of_schema = fields(("schema",), name=TEXT, schema=OBJECT, strict=SWITCH)
    return fields(
        ("input",), **CHOOSING, input={"anyOf": [TEXT, turns({"anyOf": [TEXT, PART]})]}, instructions=TEXT,
        max_output_tokens=whole(1), tools=tools("function", "parameters"),
        tool_choice={**one_of("none", "auto"), "description": CHOICES}, parallel_tool_calls=SWITCH,
        text=fields(format=formats(of_schema)), reasoning=fields(effort=TEXT), top_logprobs=whole(0, MAX_TOP),
    )  # fmt: skip


BODIES = {
    "/v1/chat/completions": ("Answer a conversation, as OpenAI's interface has it", chat_completions),
    "/v1/completions": ("Continue texts, as OpenAI's interface has it", completions),
    "/v1/messages": ("Answer a conversation, as Anthropic's interface has it", messages),
    "/v1/responses": ("Answer a conversation, as OpenAI's responses have it; nothing is kept", responses),
}
STATUSES = {
    "200": "The answer, whole or as server-sent events", "400": "A field is wrong; the message names it",
    "401": "The API key is missing or wrong", "403": "The Host is not this machine", "404": "There is no such model",
    "408": "The body came too slowly", "413": "The body is too large", "415": "The body is compressed",
    "429": "The queue is full; see Retry-After", "500": "The engine has failed over this request",
    "501": "The model cannot do this", "503": "The server is ending; see Retry-After",
}  # fmt: skip


def description(service: Service) -> Schema:
    """The document."""
    paths = {path: {"post": _operation(path, what, body(service))} for path, (what, body) in BODIES.items()}
    info = {"title": "mistral-mindspore", "version": __version__}
    return {"openapi": "3.1.0", "info": info, "paths": paths}


def _operation(path: str, summary: str, schema: Schema) -> Schema:
    responses: Schema = {
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
    return JSONResponse(description(service_of(request)))
