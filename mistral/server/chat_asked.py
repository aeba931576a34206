"""The answers that a conversation asks for, whichever interface it came by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mistral.grammar.constraint import Constraint
from mistral.server.asked import Asked, Choosing
from mistral.server.service import Service
from mistral.server.tool_choice import ToolChoice, call_constraint


class ChatBody(Protocol):
    """What the bodies of all interfaces for conversations say; `messages` as chat completions have them."""

    @property
    def messages(self) -> Sequence[dict[str, Any]]:
        """The conversation."""

    @property
    def tools(self) -> ToolChoice:
        """Which tools the answer may or must call."""

    @property
    def effort(self) -> str | None:
        """How long the model is to think; None: as its template has it."""

    @property
    def choosing(self) -> Choosing:
        """How tokens are chosen."""

    @property
    def constraint(self) -> Constraint | None:
        """What the answer must be."""

    @property
    def max_tokens(self) -> int | None:
        """New tokens at most; None: to the end of the context."""


def chat_asked(service: Service, body: ChatBody, n: int = 1, logprobs: bool = False, top: int = 0) -> Asked:
    """`n` answers, with log-probabilities and those of `top` likeliest tokens where these are wanted.

    Takes a while where texts are long. Raises InputError.
    """
    prompt, choosing = service.chat_prompt(body.messages, body.tools.tools, body.effort), body.choosing
    constraint = call_constraint(service.tokenizer, body.tools) if body.tools.must else body.constraint
    return Asked(
        (prompt,), choosing.settings, body.max_tokens, choosing.stops, n, logprobs, top, is_chat=True,
        one_call=body.tools.one_call, min_tokens=choosing.min_tokens, ignore_eos=choosing.ignore_eos,
        constraint=constraint,
    )  # fmt: skip
