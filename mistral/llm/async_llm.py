"""`LLM` for asyncio: no call blocks the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack, overload

from mistral.engine.requests import Event
from mistral.llm.answer_options import Answering, AnswerOptions
from mistral.llm.llm import LLM, Completions, Conversation
from mistral.llm.partial_completion import PartialCompletions, Prompt
from mistral.tokenizer.messages import Tool

AsyncEvents = asyncio.Queue[tuple[int, Event]]


class AsyncLLM:
    """An `LLM` whose methods are coroutines; a task that is cancelled cancels its answer."""

    def __init__(self, model: LLM | str | Path) -> None:
        """`model`: an LLM, or a folder to load one from, which takes a while.

        In a running loop, `AsyncLLM(await asyncio.to_thread(LLM, folder))` loads without blocking it.
        """
        self.llm = model if isinstance(model, LLM) else LLM(model)

    @overload
    async def generate(self, prompts: str, **options: Unpack[AnswerOptions]) -> Completions: ...

    @overload
    async def generate(
        self, prompts: list[str] | tuple[str, ...], **options: Unpack[AnswerOptions]
    ) -> list[Completions]: ...

    async def generate(
        self, prompts: str | list[str] | tuple[str, ...], **options: Unpack[AnswerOptions]
    ) -> Completions | list[Completions]:
        """See `LLM.generate`."""
        asked = await asyncio.to_thread(self.llm.text_prompts, prompts)
        found = await self._complete(asked, Answering.of(options, chat=False))
        return found[0] if isinstance(prompts, str) else found

    async def chat(
        self, messages: Conversation, tools: Sequence[Tool] = (), **options: Unpack[AnswerOptions]
    ) -> Completions:
        """See `LLM.chat`."""
        answering = Answering.of(options)
        prompt = await asyncio.to_thread(self.llm.chat_prompt, messages, tools, answering.reasoning_effort)
        return (await self._complete([prompt], answering))[0]

    async def stream(
        self, prompt: str | Conversation, tools: Sequence[Tool] = (), **options: Unpack[AnswerOptions]
    ) -> AsyncIterator[str]:
        """See `LLM.stream`."""
        answering = Answering.of(options, single=True, chat=not isinstance(prompt, str))
        if isinstance(prompt, str):
            asked = await asyncio.to_thread(self.llm.text_prompts, prompt)
        else:
            asked = [await asyncio.to_thread(self.llm.chat_prompt, prompt, tools, answering.reasoning_effort)]
        await asyncio.to_thread(self.llm.grammars_of, asked, answering)  # compiled and cached off the event loop
        partial, events = PartialCompletions(self.llm.tokenizer, asked, answering), AsyncEvents()
        with self.llm.submitted(asked, answering, put_into(events)):
            while partial.missing:
                place, event = await events.get()
                text = partial.add(place, event)
                if text:
                    yield text

    async def close(self) -> None:
        """See `LLM.close`."""
        await asyncio.to_thread(self.llm.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _complete(self, prompts: Sequence[Prompt], answering: Answering) -> list[Completions]:
        await asyncio.to_thread(self.llm.grammars_of, prompts, answering)
        partial, events = PartialCompletions(self.llm.tokenizer, prompts, answering), AsyncEvents()
        with self.llm.submitted(prompts, answering, put_into(events)):
            while partial.missing:
                partial.add(*await events.get())
        return partial.by_prompt()


def put_into(events: AsyncEvents) -> Callable[[tuple[int, Event]], None]:
    """A function that puts an event from another thread into a queue of this loop, unless the loop is closed."""
    loop = asyncio.get_running_loop()

    def put(event: tuple[int, Event]) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(events.put_nowait, event)

    return put
