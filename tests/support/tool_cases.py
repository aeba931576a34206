"""Tokenizers of every template version and a conversation with tools, for tests. No MindSpore."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import mistral_common
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
LATER = ("v7 tekken", "v11 tekken", "v13 tekken")  # the real vocabulary's beginning, under a later version's header
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
    table = json.loads((DATA / FILES["v3 tekken"]).read_text())
    control = [{**token, "token_str": str(token["token_str"])} for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS]
    names = ["[AUDIO]", "[BEGIN_AUDIO]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"]
    control += [{"rank": len(control) + i, "token_str": name, "is_control": True} for i, name in enumerate(names)]
    table["vocab"] = table["vocab"][:2000]
    table["config"] |= {"version": kind.split()[0], "default_vocab_size": 3000, "num_vocab_tokens": 2000}
    table["special_tokens"] = control
    path = folder() / f"tekken_{kind.split()[0]}.json"
    path.write_text(json.dumps(table))
    return path


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
