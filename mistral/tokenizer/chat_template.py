"""Conversations encoded by mistral-common, in the chat template of a tokenizer file's version."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mistral.errors import InputError, one_line
from mistral.text import MAX_DEPTH, depth, parse_json
from mistral.tokenizer.codec import unencodable
from mistral.tokenizer.messages import Message, Tool
from mistral.tokenizer.thoughts import SystemThoughts, system_parts

if TYPE_CHECKING:
    from mistral_common.protocol.instruct.chunk import ContentChunk
    from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, ToolMessage, UserMessage
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    Turn = AssistantMessage | SystemMessage | ToolMessage | UserMessage
NO_SYSTEM_THOUGHTS = "the system prompt has [THINK], and templates of version v15 have none there; leave it out"


class Template(Protocol):
    """The function from messages and tools to ids, and what the template can hold."""

    @property
    def keeps_thoughts(self) -> bool:
        """Whether it includes an assistant's earlier thinking."""

    @property
    def system_thoughts(self) -> SystemThoughts:
        """How it handles [THINK] in a system prompt."""

    @property
    def reasoning_efforts(self) -> tuple[str, ...]:
        """The values of reasoning_effort that it accepts."""

    def __call__(
        self, messages: Sequence[Message], tools: Sequence[Tool], reasoning_effort: str | None = None
    ) -> list[int]:
        """Ids of a conversation. Raises InputError where it does not fit the template."""


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


def official_template(mistral: MistralTokenizer[Any, Any, Any, Any, Any], path: Path) -> OfficialTemplate:
    """The template of a tokenizer that mistral-common has loaded from a file."""
    instruct = mistral.instruct_tokenizer
    settings = getattr(instruct.tokenizer, "model_settings_builder", None)
    keeps = getattr(instruct, "BEGIN_THINK", None) is not None
    refuses = hasattr(instruct, "BEGIN_MODEL_SETTINGS")
    efforts = settings.reasoning_effort.values if settings and settings.reasoning_effort else ()
    return OfficialTemplate(
        mistral, path, keeps, "refused" if refuses else "written" if keeps else "text",
        tuple(str(effort) for effort in efforts),
    )  # fmt: skip


@dataclass(frozen=True)
class OfficialTemplate:
    """The template of a tokenizer file's version, as mistral-common writes it; see `Template`."""

    mistral: MistralTokenizer[Any, Any, Any, Any, Any]
    path: Path
    keeps_thoughts: bool
    system_thoughts: SystemThoughts
    reasoning_efforts: tuple[str, ...]

    def __call__(
        self, messages: Sequence[Message], tools: Sequence[Tool], reasoning_effort: str | None = None
    ) -> list[int]:
        """Ids of a conversation. Raises InputError where it does not fit, or the library fails over a text."""
        from mistral_common.exceptions import MistralCommonException
        from mistral_common.protocol.instruct import tool_calls
        from mistral_common.protocol.instruct.request import ChatCompletionRequest

        try:
            turns = [self._turn(message) for message in messages]
            functions = [
                tool_calls.Function(name=tool.name, description=tool.description, parameters=dict(tool.parameters))
                for tool in tools
            ]
            offered = [tool_calls.Tool(function=function) for function in functions]
            request: ChatCompletionRequest[Any] = ChatCompletionRequest.model_validate(
                {"messages": turns, "tools": offered or None, "reasoning_effort": reasoning_effort}
            )
            return list(self.mistral.encode_chat_completion(request).tokens)
        except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a panic of a Rust library is no Exception
            fits = isinstance(error, MistralCommonException | ValueError | RecursionError)
            if fits and not str(error).startswith("Regex error"):
                raise InputError(f"the conversation does not fit the chat template: {one_line(error)}") from None
            texts = [text for message in messages for text in (message.content, message.thoughts)]
            raise unencodable(self.path, texts, error) from None

    def _turn(self, message: Message) -> Turn:
        from mistral_common.protocol.instruct import tool_calls
        from mistral_common.protocol.instruct.chunk import ThinkChunk
        from mistral_common.protocol.instruct.messages import AssistantMessage, ToolMessage, UserMessage

        if message.role == "system":
            return self._system(message)
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
        content: str | list[ContentChunk] | None = message.content or None
        if message.thoughts and self.keeps_thoughts:
            closed = not message.prefix or bool(message.content)
            content = [ThinkChunk(thinking=message.thoughts, closed=closed), *_text(message.content)]
        return AssistantMessage(content=content, tool_calls=calls or None, prefix=message.prefix)

    def _system(self, message: Message) -> SystemMessage:
        """A system prompt, with what stands between [THINK] and [/THINK] in it as thoughts where it has such marks."""
        from mistral_common.protocol.instruct.chunk import ThinkChunk
        from mistral_common.protocol.instruct.messages import SystemMessage

        if not message.think_marks or self.system_thoughts == "text":
            return SystemMessage(content=message.content)
        parts = system_parts(message.content)
        if not any(is_thought for _, is_thought in parts):
            return SystemMessage(content=message.content)
        if self.system_thoughts == "refused":
            raise InputError(NO_SYSTEM_THOUGHTS)
        chunks = [[ThinkChunk(thinking=text)] if is_thought else _text(text) for text, is_thought in parts]
        return SystemMessage(content=[chunk for part in chunks for chunk in part])


def _text(text: str) -> list[ContentChunk]:
    from mistral_common.protocol.instruct.chunk import TextChunk

    return [TextChunk(text=text)] if text else []


def _result(content: str) -> str:
    """A tool's result in the form that is passed to mistral-common.

    The library parses it as JSON if it can, and fails on hostile JSON, which is therefore quoted as a text.
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
