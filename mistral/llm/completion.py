"""A finished answer: a text with its ids, finish reason and other facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mistral.engine.requests import FinishReason
from mistral.tokenizer.messages import ToolCall


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability, in nats from the raw logits, and the likeliest ids at its position with theirs."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Completion(str):
    """The text of an answer, which is a `str`, with its facts.

    ids: the generated tokens. finish_reason: "stop" (the model or a stop text ended it) or "length". logprobs: of each
    token, if they were asked for. tool_calls: the model's tool calls. prompt_tokens: the number of ids in the prompt.
    cached_tokens: how many of these were reused and not computed. seed: that of sampling. thoughts: in a conversation,
    the model's thinking before the answer.
    """

    ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...]
    tool_calls: tuple[ToolCall, ...]
    prompt_tokens: int
    seed: int
    thoughts: str
    cached_tokens: int

    def __new__(
        cls,
        text: str,
        ids: Sequence[int] = (),
        finish_reason: FinishReason = "stop",
        logprobs: Sequence[TokenLogprob] = (),
        tool_calls: Sequence[ToolCall] = (),
        prompt_tokens: int = 0,
        seed: int = 0,
        thoughts: str = "",
        cached_tokens: int = 0,
    ) -> Completion:
        """A text with its facts."""
        self = super().__new__(cls, text)
        self.ids, self.finish_reason, self.logprobs = tuple(ids), finish_reason, tuple(logprobs)
        self.tool_calls, self.prompt_tokens, self.seed = tuple(tool_calls), prompt_tokens, seed
        self.thoughts, self.cached_tokens = thoughts, cached_tokens
        return self

    @property
    def text(self) -> str:
        """The text alone."""
        return str(self)
