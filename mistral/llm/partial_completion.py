"""Answers that are being generated: events to completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mistral.engine.requests import Event, FinishReason, Generated
from mistral.llm.answer_options import Answering
from mistral.llm.completion import Completion, TokenLogprob
from mistral.tokenizer.messages import Tool, ToolCall
from mistral.tokenizer.thoughts import ThinkTokens, ThoughtStream
from mistral.tokenizer.tokenizer import Tokenizer
from mistral.tokenizer.tool_calls import parse_reply


@dataclass(frozen=True)
class Prompt:
    """The ids of a prompt. `name`: its name in errors; `continued`: the ids whose text the answer continues.

    think_tokens: the control tokens around thinking, in a conversation; thinks: the prompt ends within thinking.
    """

    name: str
    ids: list[int]
    continued: Sequence[int]
    tools: Sequence[Tool] = ()
    think_tokens: ThinkTokens | None = None
    thinks: bool = False


class PartialCompletion:
    """An answer that is being generated."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt, seed: int) -> None:
        self.tokenizer, self.prompt, self.seed = tokenizer, prompt, seed
        self.ids, self.logprobs = list[int](), list[TokenLogprob]()
        self.parts = ThoughtStream(prompt.think_tokens, prompt.thinks)
        self.whole: Completion | None = None
        self.cached = 0

    def add(self, event: Event) -> str:
        """Take an event -> what it adds to the text; with the last one, the completion is `whole`.

        Raises the InputError that ended it.
        """
        if not isinstance(event, Generated):
            self.cached = event.cached
            return ""
        if event.error:
            raise event.error.within(self.prompt.name)
        text, _ = self.parts.push(event.id, event.text)
        if event.id is not None:
            self.ids.append(event.id)
            if event.logprob is not None:
                self.logprobs.append(TokenLogprob(event.id, event.logprob, event.top))
        if event.finish_reason is not None:
            self.whole = self._completion(event.finish_reason)
        return text

    def _completion(self, finish_reason: FinishReason) -> Completion:
        text, calls = self.parts.text, tuple[ToolCall, ...]()
        if self.prompt.tools:
            reply = parse_reply(self.tokenizer, self.ids, self.prompt.tools, thinking=self.prompt.thinks)
            text, calls = (reply.text, reply.calls) if reply.calls else (text, calls)
        return Completion(
            text,
            self.ids,
            finish_reason,
            self.logprobs,
            calls,
            len(self.prompt.ids),
            self.seed,
            self.parts.thoughts,
            self.cached,
        )


class PartialCompletions:
    """The n answers to each of several prompts; an answer has the index of its prompt times n, plus its sample."""

    def __init__(self, tokenizer: Tokenizer, prompts: Sequence[Prompt], answering: Answering) -> None:
        self.prompts, self.n, self.seed = prompts, answering.n, answering.seed or 0
        asked = [prompt for prompt in prompts for _ in range(self.n)]
        self._partial = [PartialCompletion(tokenizer, prompt, self.seed) for prompt in asked]
        self._found: dict[int, Completion] = {}

    def add(self, place: int, event: Event) -> str:
        """Take an event of an answer -> what it adds to the text. Raises the InputError that ended the answer."""
        partial = self._partial[place]
        text = partial.add(event)
        if partial.whole is not None:
            self._found[place] = partial.whole
        return text

    @property
    def missing(self) -> bool:
        """Whether an answer is not finished yet."""
        return len(self._found) < len(self._partial)

    def by_prompt(self) -> list[Completion | list[Completion]]:
        """For each prompt its completion, or with n above 1 the list of them."""
        lists = [[self._found[i * self.n + sample] for sample in range(self.n)] for i in range(len(self.prompts))]
        return [found[0] if self.n == 1 else found for found in lists]
