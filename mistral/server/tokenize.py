"""Texts to ids and back: /tokenize, /detokenize and /tokenizer_info, as in other servers."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mistral.server.api_error import wrong
from mistral.server.body import read_fields
from mistral.server.exchange import check_model, service_of
from mistral.server.fields import Fields
from mistral.server.service import Service
from mistral.server.settings import MAX_MESSAGES
from mistral.server.tool_choice import read_tool_choice


async def tokenize(request: Request) -> Response:
    """The ids of a text (`prompt`, or `content`), or of a conversation (`messages`)."""
    service, fields = service_of(request), await read_fields(request)
    check_model(service, fields)
    ids = await service.in_thread(lambda: _ids(service, fields), "messages" if fields.has("messages") else None)
    found: dict[str, object] = {"tokens": ids, "count": len(ids), "max_model_len": service.engine.context_limit}
    if fields.switch("return_token_strs"):
        found["token_strs"] = [service.token_texts.text_of(token_id) for token_id in ids]
    if fields.switch("with_pieces"):  # llama.cpp's name for both in one
        found["tokens"] = [{"id": token_id, "piece": _piece(service, token_id)} for token_id in ids]
    return JSONResponse(found)


def _ids(service: Service, fields: Fields) -> list[int]:
    if fields.has("messages"):
        tools = read_tool_choice(fields).tools
        return service.chat_prompt(fields.items("messages", MAX_MESSAGES), tools).ids
    name = "content" if fields.has("content") else "prompt"
    fields.required(name)
    bos = fields.switch("add_special") if name == "content" else fields.switch("add_special_tokens", True)
    text, tokenizer = fields.text(name), service.tokenizer
    for token_id in (tokenizer.bos_id, tokenizer.eos_id):  # lm-eval asks so for what /tokenizer_info has named
        if text and not bos and text == service.token_texts.text_of(token_id):
            return [token_id]
    return tokenizer.encode(text, bos=bos)


def _piece(service: Service, token_id: int) -> str | list[int]:
    """The text of a token; its bytes where it holds a part of a character."""
    found = service.token_texts.bytes_of(token_id)
    try:
        return found.decode()
    except UnicodeDecodeError:
        return list(found)


async def detokenize(request: Request) -> Response:
    """The text of ids (`tokens`)."""
    service, fields = service_of(request), await read_fields(request)
    check_model(service, fields)
    fields.required("tokens")
    ids = fields.items("tokens")
    if not all(isinstance(token_id, int) and not isinstance(token_id, bool) for token_id in ids):
        raise wrong("tokens", "must be a list of token ids")
    service.check_ids(ids, "tokens")
    text = await service.in_thread(lambda: service.tokenizer.decode(ids), "tokens")
    return JSONResponse({"prompt": text, "content": text})


async def tokenizer_info(request: Request) -> Response:
    """The properties of the tokenizer."""
    service = service_of(request)
    tokenizer = service.tokenizer
    bos, eos = (service.token_texts.text_of(token_id) for token_id in (tokenizer.bos_id, tokenizer.eos_id))
    return JSONResponse(
        {
            "tokenizer_class": tokenizer.version, "vocab_size": tokenizer.vocab_size,
            "bos_token": bos, "bos_token_id": tokenizer.bos_id, "eos_token": eos, "eos_token_id": tokenizer.eos_id,
            "end_ids": list(tokenizer.end_ids), "add_bos_token": tokenizer.vocabulary.adds_bos,
            "chat_template": tokenizer.template_source or (tokenizer.version if tokenizer.can_chat else None),
            "max_model_len": service.engine.context_limit,
        }
    )  # fmt: skip
