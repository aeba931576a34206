"""Conversations as token ids, written by mistral-common in the template of a tokenizer file's version."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mistral.errors import InputError, one_line
from mistral.text import MAX_DEPTH, depth, parse_json
from mistral.tokenizer.codec import unencodable
from mistral.tokenizer.messages import Message, Tool

if TYPE_CHECKING:
    from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, ToolMessage, UserMessage
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

if TYPE_CHECKING:
    Turn = AssistantMessage | SystemMessage | ToolMessage | UserMessage
Template = Callable[[Sequence[Message], Sequence[Tool]], list[int]]


@dataclass(frozen=True)
class ToolTokens:
    """Ids of the control tokens around tool calls.

    Up to v7, one [TOOL_CALLS] is followed by a JSON list, and `args` is None. From v11 on, each call is [TOOL_CALLS]
    name [ARGS] arguments, in v11 with [CALL_ID] id after the name. `beside_text`: an assistant's message may have both
    text and calls.
    """

    calls: int
    args: int | None
    call_id: int | None
    beside_text: bool


def tool_tokens(mistral: MistralTokenizer[Any, Any, Any, Any, Any]) -> ToolTokens | None:
    """The ids of the control tokens around tool calls; None for a v1 tokenizer, which has no tools."""
    instruct = mistral.instruct_tokenizer
    version = int(instruct.tokenizer.version.value.removeprefix("v").partition("m")[0])
    calls = getattr(instruct, "TOOL_CALLS", None)
    if calls is None:
        return None
    return ToolTokens(calls, getattr(instruct, "ARGS", None), getattr(instruct, "CALL_ID", None), version > 3)


def official_template(mistral: MistralTokenizer[Any, Any, Any, Any, Any], path: Path) -> Template:
    """The function from messages and tools to ids, with the tokenizer of a file.

    It raises InputError where they do not fit the template, or the library fails over a text.
    """
    from mistral_common.exceptions import MistralCommonException
    from mistral_common.protocol.instruct import tool_calls
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    def template(messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        try:
            turns = [_turn(message) for message in messages]
            functions = [
                tool_calls.Function(name=tool.name, description=tool.description, parameters=dict(tool.parameters))
                for tool in tools
            ]
            offered = [tool_calls.Tool(function=function) for function in functions]
            request: ChatCompletionRequest[Any] = ChatCompletionRequest(messages=turns, tools=offered or None)
            return list(mistral.encode_chat_completion(request).tokens)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a panic of a Rust library is no Exception
            fits = isinstance(error, MistralCommonException | ValueError | RecursionError)
            if fits and not str(error).startswith("Regex error"):
                raise InputError(f"the conversation does not fit the chat template: {one_line(error)}") from None
            raise unencodable(path, [message.content for message in messages], error) from None

    return template


def _turn(message: Message) -> Turn:
    from mistral_common.protocol.instruct import tool_calls
    from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, ToolMessage, UserMessage

    if message.role == "system":
        return SystemMessage(content=message.content)
    if message.role == "user":
        return UserMessage(content=message.content)
    if message.role == "tool":
        return ToolMessage(content=_result(message.content), tool_call_id=message.call_id, name=message.name)
    functions = [
        tool_calls.FunctionCall(name=call.name, arguments=_arguments(call.arguments)) for call in message.calls
    ]
    calls = [
        tool_calls.ToolCall(id=call.id, function=function)
        for call, function in zip(message.calls, functions, strict=True)
    ]
    return AssistantMessage(content=message.content or None, tool_calls=calls or None, prefix=message.prefix)


def _result(content: str) -> str:
    """A tool's result as the library is given it.

    The library reads it as JSON if it can, and fails on hostile JSON: that is quoted, so that it is read as a text.
    """
    try:
        value = json.loads(content)
        json.dumps(value, ensure_ascii=False).encode()
        if depth(value) <= MAX_DEPTH:
            return content
    except json.JSONDecodeError:
        return content
    except (ValueError, RecursionError):
        pass
    return json.dumps(content, ensure_ascii=False)


def _arguments(arguments: str) -> str:
    """The arguments of a call, unchanged. Raises ValueError for what is not the JSON text of an object."""
    if not isinstance(parse_json(arguments), dict):
        raise ValueError("the arguments of a tool call are not a JSON object")
    return arguments
