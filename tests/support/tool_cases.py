"""Tokenizers of every template version and a conversation with tools, for tests. No MindSpore."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import mistral_common
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from mistral.tokenizer.messages import Message, Tool, ToolCall
from mistral.tokenizer.tokenizer import Tokenizer

DATA = Path(mistral_common.__file__).parent / "data"
FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
    "v3 tekken": "tekken_240718.json",
}
LATER = ("v7 tekken", "v11 tekken", "v13 tekken", "v15 tekken")  # the real vocabulary's beginning, under a later header
WHOLE = "240911"  # of a kind: the official vocabulary of this date, all of it
PLACES = {
    24: ("[AUDIO]", 7), 25: ("[BEGIN_AUDIO]", 7), 32: ("[ARGS]", 11), 33: ("[CALL_ID]", 11), 34: ("[THINK]", 13),
    35: ("[/THINK]", 13), 36: ("[MODEL_SETTINGS]", 15), 37: ("[/MODEL_SETTINGS]", 15),
}  # fmt: skip
"""Ids of the control tokens after the first twenty, and the version that has them first."""
IMAGES = {"image_patch_size": 14, "max_image_size": 1540, "spatial_merge_size": 2}
SETTINGS = {"reasoning_effort": {"type": "enum", "accepts_none": True, "default": "none", "values": ["none", "high"]}}
WITH_TOOLS = [*(kind for kind in FILES if kind != "v1"), *LATER]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = (Tool("get_weather", "The weather of a city, à l'heure", SCHEMA), Tool("now", "", {}))
CALL = ToolCall("get_weather", '{"city": "Zürich", "days": [1, 2.5, null]}', "abcDEF123")
OTHER = ToolCall("now", "{}", "000000000")


@functools.cache
def folder() -> Path:
    """Where the files are that are made here; gone when the process ends."""
    keeper = tempfile.TemporaryDirectory(prefix="tekken-")
    folders.append(keeper)
    return Path(keeper.name)


folders: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def file(kind: str) -> Path:
    if kind in FILES:
        return DATA / FILES[kind]
    version, whole = kind.split()[0], kind.endswith(WHOLE)
    table = json.loads((DATA / ("tekken_240911.json" if whole else FILES["v3 tekken"])).read_text())
    if not whole:
        table["vocab"] = table["vocab"][:2000]
        table["config"] |= {"default_vocab_size": 3000, "num_vocab_tokens": 2000}
    path = folder() / f"tekken_{kind.replace(' ', '_')}.json"
    path.write_text(json.dumps(with_header(table, version)))
    return path


def with_header(table: dict[str, Any], version: str) -> dict[str, Any]:
    """A tekken.json with the header of a later version: what real files have beside the vocabulary."""
    number = int(version[1:])
    places = {rank: name for rank, (name, least) in PLACES.items() if number >= least}
    names = [str(token["token_str"]) for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS]
    names += [places.get(rank, f"<SPECIAL_{rank}>") for rank in range(len(names), max(PLACES) + 1)]
    table["config"]["version"] = version
    table["special_tokens"] = [{"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)]
    table.pop("image", None)
    table["image" if number > 11 else "multimodal"] = IMAGES
    if number >= 15:
        table["model_settings_builder"] = SETTINGS
    return table


@functools.cache
def load(kind: str) -> Tokenizer:
    return Tokenizer.from_file(file(kind))


@functools.cache
def library(kind: str) -> MistralTokenizer[Any, Any, Any, Any, Any]:
    return MistralTokenizer.from_file(str(file(kind)))


def conversation(kind: str) -> list[Message]:
    """Two questions, the first answered with the help of a tool; v2 takes one result in a turn."""
    calls = (CALL,) if kind == "v2" else (CALL, OTHER)
    results = [Message.result(call, text) for call, text in zip(calls, ('{"sky": "grün"}', "12 o'clock"), strict=False)]
    return [
        Message("system", "Be nice"), Message("user", "Weather?"), Message("assistant", "", calls), *results,
        Message("assistant", "Fine."), Message("user", "And tomorrow?"), Message("assistant", "", calls), *results,
    ]  # fmt: skip


def as_openai(messages: list[Message], tools: tuple[Tool, ...]) -> dict[str, Any]:
    """The conversation as chat interfaces write it; mistral-common has a reader of its own for that."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.thoughts:
            text = [{"type": "text", "text": message.content}] if message.content else []
            turn["content"] = [{"type": "thinking", "thinking": message.thoughts, "closed": True}, *text]
        if message.calls:
            turn["tool_calls"] = [call.record() for call in message.calls]
            if not message.content and not message.thoughts:
                del turn["content"]
        if message.prefix:
            turn["prefix"] = True
        if message.role == "tool":
            turn |= {"tool_call_id": message.call_id, "name": message.name}
        turns.append(turn)
    functions = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in tools]
    return {"messages": turns, "tools": [{"type": "function", "function": function} for function in functions]}


def by_library(kind: str, messages: list[Message], tools: tuple[Tool, ...] = (), **more: str) -> list[int]:
    """Ids that mistral-common makes of a conversation by itself."""
    asked = as_openai(messages, tools) | more
    request: ChatCompletionRequest[Any] = ChatCompletionRequest.model_validate(asked)
    return list(library(kind).encode_chat_completion(request).tokens)
