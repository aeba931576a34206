"""The parts of a conversation: messages, tools, and tool calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mistral.errors import InputError
from mistral.text import check_text

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    """One call that a model asks for.

    `arguments` is the JSON text of an object. `id` is 9 letters and digits, as templates from v3 on want it; a result
    refers to it.
    """

    name: str
    arguments: str
    id: str

    def record(self) -> dict[str, Any]:
        """The call as chat interfaces write it in JSON."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    An assistant's message may hold `calls`. A tool's message is the result of one of them: `call_id` says which, and
    `name` is the tool's (templates before v3 write the name, later ones the id). `prefix`, of the last message, an
    assistant's: the answer continues this content, or without content these thoughts. `thoughts`: the assistant's
    thinking before the answer. `think_marks`, of a system's message: [THINK] and [/THINK] in its content are control
    tokens, if the template has them there; see `Message.system`.
    """

    role: Role
    content: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    name: str | None = None
    prefix: bool = False
    thoughts: str = ""
    think_marks: bool = False

    @classmethod
    def system(cls, content: str) -> Message:
        """A system prompt by the person who runs the model: [THINK] in it is a control token."""
        return cls("system", content, think_marks=True)

    @classmethod
    def result(cls, call: ToolCall, content: str) -> Message:
        """The message with the result of a call, as JSON or any other text."""
        return cls("tool", content, call_id=call.id, name=call.name)


@dataclass(frozen=True)
class Tool:
    """A function that a model may call; `parameters` is the JSON schema (draft 7) of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]


def check_conversation(messages: Sequence[Message], tools: Sequence[Tool]) -> None:
    """Raise InputError, with what to pass instead, for arguments that are not messages and tools, or have no text."""
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise InputError(
            f"the conversation is of type {type(messages).__name__}; pass a list of Message(role, content)"
        )
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Message):
            raise InputError(f"message {number} is of type {type(message).__name__}; pass Message(role, content)")
        if message.role not in get_args(Role):
            roles = ", ".join(get_args(Role))
            raise InputError(f"message {number} has the role {str(message.role)[:40]!r}; pass one of {roles}")
        check_text(message.content)
        check_text(message.thoughts)
        for call in message.calls:
            if not isinstance(call, ToolCall):
                kind = type(call).__name__
                raise InputError(f"message {number}: a call is of type {kind}; pass ToolCall(name, arguments, id)")
            if not isinstance(call.arguments, str):
                kind = type(call.arguments).__name__
                raise InputError(f"message {number}: arguments of a call are of type {kind}; pass them as JSON text")
    for number, tool in enumerate(tools, 1):
        if not isinstance(tool, Tool):
            raise InputError(
                f"tool {number} is of type {type(tool).__name__}; pass Tool(name, description, parameters)"
            )
