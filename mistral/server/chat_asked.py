"""The request for answers to a conversation, independent of the interface that it came by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mistral.grammar.constraint import Constraint
from mistral.server.asked import Asked, Choosing
from mistral.server.service import Service
from mistral.server.tool_choice import ToolChoice, call_constraint


class ChatBody(Protocol):
    """The common contents of the bodies of all chat interfaces; `messages` are those of chat completions."""

    @property
    def messages(self) -> Sequence[dict[str, Any]]:
        """The conversation."""

    @property
    def tools(self) -> ToolChoice:
        """Which tools the answer may or must call."""

    @property
    def effort(self) -> str | None:
        """The reasoning effort; None: the template's default."""

    @property
    def choosing(self) -> Choosing:
        """The sampling settings."""

    @property
    def constraint(self) -> Constraint | None:
        """The form of the answer."""

    @property
    def max_tokens(self) -> int | None:
        """The most new tokens; None: to the end of the context."""


def chat_asked(service: Service, body: ChatBody, n: int = 1, logprobs: bool = False, top: int = 0) -> Asked:
    """The request for `n` answers, with log-probabilities of tokens and of the `top` likeliest ones if wanted.

    It takes a while for long texts. Raises InputError for an invalid conversation.
    """
    prompt, choosing = service.chat_prompt(body.messages, body.tools.tools, body.effort), body.choosing
    constraint = call_constraint(service.tokenizer, body.tools) if body.tools.must else body.constraint
    return Asked(
        (prompt,), choosing.settings, body.max_tokens, choosing.stops, n, logprobs, top, is_chat=True,
        one_call=body.tools.one_call, min_tokens=choosing.min_tokens, ignore_eos=choosing.ignore_eos,
        constraint=constraint,
    )  # fmt: skip
