"""What a conversation is made of: messages, the tools that a model may call, and its calls. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


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
    `name` is the tool's (templates before v3 write the name, later ones the id).
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    name: str | None = None

    @classmethod
    def result(cls, call: ToolCall, content: str) -> Message:
        """What came of a call: JSON or any other text."""
        return cls("tool", content, call_id=call.id, name=call.name)


@dataclass(frozen=True)
class Tool:
    """A function that a model may call; `parameters` is the JSON schema (draft 7) of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]
